"""Two approximators' guesses held against each other (RACER, arXiv 2608.01740): where they part, neither can be right.

e = |g_a - g_b| / |g_a|        L2, per sample
"""

from dataclasses import dataclass

import torch

from dicache.estimators.base import Estimator, Evidence
from dicache.estimators.relative_change import finite
from dicache.tensors.norms import relative_change
from dicache.types import Grid, Rows


@dataclass(frozen=True)
class Disagreement(Estimator[int]):
    """The same for all approximators; which one is handed out is the first of the configuration. State: how many."""

    base: int = 0
    """Place of approximator a in the configuration."""
    observer: int = 1

    def init(self, samples: int, n_approximators: int) -> int:
        return n_approximators

    def predict(self, evidence: Evidence, state: int) -> Grid:
        base, observer = evidence.guess(self.base), evidence.guess(self.observer)
        if base is None or observer is None:
            return torch.full((len(evidence.growth), state), torch.inf, dtype=torch.float64)
        known = evidence.growth[:, [self.base, self.observer]].isfinite().all(1)
        predicted = finite(relative_change(observer, base), state)
        return torch.where(known[:, None], predicted, torch.inf)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: int) -> int:
        return state
