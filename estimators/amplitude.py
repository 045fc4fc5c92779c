"""Every model turns as `dicache.planning.error_law` says, each sample a little more or less: one amplitude per sample
and approximator, learned while it runs.

A guess that was wrong by e where its law had grown to phi and the law's usual constant is k says rho = e / (k phi). A
sample keeps the running mean m of log rho; n observations of it, neighbours in time being correlated, leave it unsure
by v:

    m  <-  m + g (log rho - m),        g = max(gain, 1 / n)
    v   =  noise^2 / (1 + fresh (n - 1))

Then it is read against what is known beforehand. With probability `chance` this is a model like the one that the law
was made on, with log s spread by `usual` around 0; else it is any other, spread by `other`:

    w      =  P(like that one | m),     by N(m; 0, usual^2 + v) against N(m; 0, other^2 + v)
    log s  =  m (w usual^2 / (usual^2 + v) + (1 - w) other^2 / (other^2 + v))

So single observations, which differ by half, hardly move a sample of a usual model, and a model that has little in
common with it is known by the first. The prediction is s k phi, unknown before that. Where the timetable is not known,
neither is k: it counts as 1, and m as all that is known. In a hand-written loop, of which nobody knows what is to
come, it follows what was seen last: on galaxies (bench/models/galaxies.py) budgets were kept there no less often than
by a long mean, with an eighth to a quarter less work.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.estimators.base import Estimator, Evidence
from dicache.types import Grid, Rows


class Amplitudes(NamedTuple):
    log: Grid
    """m, (B, A)."""
    seen: Grid
    """n, (B, A)."""


@dataclass(frozen=True)
class Amplitude(Estimator[Amplitudes]):
    gain: float = 0.1
    """Least weight of a new observation."""
    alone: float = 0.6
    """The same in hand-written loops."""
    usual: float = 0.3
    """Standard deviation of log s over samples of a usual model."""
    other: float = 1.2
    """The same over other models."""
    chance: float = 0.8
    """That a model is a usual one."""
    noise: float = 0.45
    """Standard deviation of one observation."""
    fresh: float = 0.3
    """How much one more observation says that those before it did not."""

    @property
    def over_ranks(self) -> bool:
        return True

    def init(self, samples: int, n_approximators: int) -> Amplitudes:
        zero = torch.zeros(samples, n_approximators, dtype=torch.float64)
        return Amplitudes(zero, zero.clone())

    def predict(self, evidence: Evidence, state: Amplitudes) -> Grid:
        log = state.log if evidence.typical is None else self._shrunk(state)
        predicted = log.exp() * _typical(evidence)
        return torch.where(predicted.isfinite() & (predicted > 0) & (state.seen > 0), predicted, torch.inf)

    def _shrunk(self, state: Amplitudes) -> Grid:
        """log s, (B, A)."""
        unsure = self.noise**2 / (1 + self.fresh * (state.seen - 1).clamp(min=0))
        near, far = self.usual**2, self.other**2
        like = self.chance * _density(state.log, near + unsure)
        unlike = (1 - self.chance) * _density(state.log, far + unsure)
        w = torch.where(like > 0, like / (like + unlike), 0.0)
        return state.log * (w * near / (near + unsure) + (1 - w) * far / (far + unsure))

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Amplitudes) -> Amplitudes:
        if not bool(computed.any()):
            return state
        ratio = (realised / _typical(evidence)).log()
        new = computed[:, None] & ratio.isfinite()
        seen = state.seen + new
        gain = (1 / seen).clamp(min=self.gain if evidence.timetable else self.alone)
        return Amplitudes(torch.where(new, state.log + gain * (ratio - state.log), state.log), seen)


def _density(value: Grid, variance: Tensor) -> Tensor:
    """Of a normal distribution around 0."""
    return (-0.5 * value**2 / variance).exp() / (2 * math.pi * variance).sqrt()


def _typical(evidence: Evidence) -> Grid:
    return evidence.growth * (1.0 if evidence.typical is None else evidence.typical)
