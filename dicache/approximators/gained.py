"""The last difference again, with a gain, whatever the time that has passed.

    v ~ v_0 + w (v_0 - v_1)

FasterCache (arXiv 2410.19355) does so to attention with w = 0.3; gradient-optimised caching (arXiv 2503.05156) with w =
1.2, and in one part of the run only. Without a ratio of times it is not exact on lines, and grows like plain reuse,
which it is outside of its part of the run.
"""

from dataclasses import dataclass

from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.hold import Reuse
from dicache.approximators.taylor import until
from dicache.types import Action, Rows


@dataclass(frozen=True)
class Gained(Approximator):
    weight: float
    begin: float = 0.0
    """Shares of the run's steps between which it holds; where the timetable is unknown it holds only if that is all."""
    end: float = 1.0

    action = Action.EXTRAPOLATE
    needs = 2
    over_ranks = True

    def guess(self, histories: Histories, target: Target) -> Tensor:
        newest, before = histories.outputs.values[:2]
        inside = (self.begin <= 0 and self.end >= 1) or self.begin <= target.passed < self.end
        return newest + self.weight * (newest - before) if inside else newest.clone()

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return until(sigmas, self.needs, Reuse().growth(sigmas, sigma))
