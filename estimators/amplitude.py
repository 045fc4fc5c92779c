"""Every model turns as `dicache.law` says, each sample a little more or less: one amplitude per sample and
approximator, learned while it runs.

A guess that was wrong by e where its law had grown to phi and the law's usual constant is k says rho = e / (k phi). The
amplitude s is a running geometric mean that begins at 1,

    s  <-  s^(1 - g) rho^g,        g = max(gain, 1 / (n + weight)) at the n-th observation,

and the prediction is s k phi, unknown before the first observation. Over captions of the reference model the amplitudes
differ by a third, single observations by half, neighbours in time correlate at 0.8: following the last observation, as
`ClosedLoop` does, follows mostly noise. Where the course is not known, neither is k: it counts as 1, and the first
observation as all that is known.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dicache.estimators.base import Estimator, Evidence
from dicache.types import Grid, Rows


class Amplitudes(NamedTuple):
    log: Grid
    """log s, (B, A)."""
    seen: Grid
    """n, (B, A)."""


@dataclass(frozen=True)
class Amplitude(Estimator[Amplitudes]):
    gain: float = 0.2
    weight: float = 3.0
    """How many observations what is usual is worth."""

    def init(self, samples: int, forms: int) -> Amplitudes:
        zero = torch.zeros(samples, forms, dtype=torch.float64)
        return Amplitudes(zero, zero.clone())

    def predict(self, evidence: Evidence, state: Amplitudes) -> Grid:
        predicted = state.log.exp() * _usual(evidence)
        return torch.where(predicted.isfinite() & (state.seen > 0), predicted, torch.inf)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Amplitudes) -> Amplitudes:
        ratio = (realised / _usual(evidence)).log()
        new = computed[:, None] & ratio.isfinite()
        seen = state.seen + new
        gain = (1 / (state.seen + (1.0 if evidence.typical is None else self.weight))).clamp(min=self.gain)
        return Amplitudes(torch.where(new, state.log + gain * (ratio - state.log), state.log), seen)


def _usual(evidence: Evidence) -> Grid:
    return evidence.growth * (1.0 if evidence.typical is None else evidence.typical)
