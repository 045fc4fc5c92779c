"""The step-size controller of an ODE solver, turned around: every computed step says what its guesses would have been
wrong by, and that scales the next prediction.

A guess that was wrong by e where its error law (see `dicache.approximators.base`) had grown to phi has the constant k =
e / phi, per sample and approximator. The prediction for a step where the law stands at phi' is k phi'. The constant
rises at once and falls at most by half at a time:

    k  <-  max(k_new, (k_new + k) / 2)

because unsmoothed per-sample constants were measured to lose against one decision for the whole batch. With a probe,
the prediction is scaled by how much worse the probe itself was extrapolated than its own constant had said, to the
power `trust`; trust 0 ignores the probe.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dicache.estimators.base import Estimator, Evidence
from dicache.types import Grid, Rows


class Constants(NamedTuple):
    per_approximator: Grid
    """k, (B, A); inf before the first observation."""
    probe: Rows
    """The same for the probe's own extrapolation, (B,)."""


@dataclass(frozen=True)
class ClosedLoop(Estimator[Constants]):
    trust: float = 0.0

    @property
    def over_ranks(self) -> bool:
        return True

    @property
    def reads_innovation(self) -> bool:
        return self.trust != 0

    def init(self, samples: int, n_approximators: int) -> Constants:
        unknown = torch.full((samples, n_approximators), torch.inf, dtype=torch.float64)
        return Constants(unknown, unknown[:, 0].clone())

    def predict(self, evidence: Evidence, state: Constants) -> Grid:
        surprise = evidence.innovation / (state.probe * evidence.innovation_growth)
        surprise = torch.where(surprise.isfinite() & (surprise > 0), surprise, 1.0) ** self.trust
        predicted = state.per_approximator * evidence.growth * surprise[:, None]
        return torch.where(predicted.isfinite(), predicted, torch.inf)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Constants) -> Constants:
        per_approximator = _learn(state.per_approximator, realised / evidence.growth, computed[:, None])
        return Constants(
            per_approximator, _learn(state.probe, evidence.innovation / evidence.innovation_growth, computed)
        )


def _learn(old: Grid, new: Grid, computed: Rows) -> Grid:
    """Smooth where both are known; an unknown old constant is replaced, an unknown new one is not learned from."""
    smoothed = torch.where(old.isfinite(), torch.maximum(new, (new + old) / 2), new)
    return torch.where(computed & new.isfinite(), smoothed, old)
