"""DiCache's trajectory alignment (arXiv 2508.17356): the probe says how far along the line to go.

    gamma = clip(|P - P_1|_1 / |P_0 - P_1|_1, 1, limit),    v ~ v_1 + gamma (v_0 - v_1)

P is the probe's feature now, P_0 and P_1 those of the last two computed steps. As published, the clip keeps it from
interpolating and from going more than `limit - 1` past the newest value. Where the probe stood still (0 / 0) gamma is
1, that is plain reuse.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target, per_row
from dicache.approximators.linear import Extrapolate
from dicache.ranks.sums import Pair
from dicache.types import Action, Rows


@dataclass(frozen=True)
class Align(Approximator):
    limit: float = 1.5

    action = Action.ALIGN
    needs = 2
    reads_feature = True
    over_ranks = True

    def pairs(self, histories: Histories, target: Target) -> Sequence[Pair]:
        assert target.feature is not None, "alignment needs a probe; Config checks this"
        newest, before = histories.features.values[:2]
        return (target.feature, before), (newest, before)

    def guess(self, histories: Histories, target: Target) -> Tensor:
        newest, before = histories.outputs.values[:2]
        travelled, spacing = (target.sums.of(*pair)[:, 0] for pair in self.pairs(histories, target))
        gamma = (travelled / spacing).nan_to_num(1.0, self.limit, 1.0).clamp(1.0, self.limit)
        return before + (newest - before) * per_row(gamma, newest)

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return Extrapolate().growth(sigmas, sigma)
