"""How fast the output follows the latent, measured at computed steps, times how far the latent moved since (EasyCache,
arXiv 2507.02860).

    k = |v_a - v_b|_1 / |x_a - x_b|_1,        e_i = k |x_i - x_{i-1}|_1 / |v_a|_1

a and b are the last two computed steps; k stands still while skipping. To be added up
(`dicache.estimators.accumulated`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.estimators.base import Estimator, Evidence
from dicache.estimators.relative_change import finite, updated
from dicache.extension import residual_sums
from dicache.types import Grid, Rows


class Rate(NamedTuple):
    n_approximators: int
    output: Tensor | None
    """v_a, (B, ...)."""
    latent: Tensor | None
    """x_a."""
    before: Tensor | None
    """x_{i-1}."""
    rate: Rows
    """k / |v_a|_1, (B,), inf until there are two computed steps."""


@dataclass(frozen=True)
class OnlineRate(Estimator[Rate]):
    def held(self, feature: int, output: int, latent: int) -> int:
        return output + 2 * latent

    def init(self, samples: int, n_approximators: int) -> Rate:
        return Rate(n_approximators, None, None, None, torch.full((samples,), torch.inf, dtype=torch.float64))

    def predict(self, evidence: Evidence, state: Rate) -> Grid:
        if evidence.latent is None or state.before is None:
            return finite(state.rate * torch.inf, state.n_approximators)
        moved = residual_sums(evidence.latent, state.before)[:, 0].double().cpu()
        return finite(state.rate * moved, state.n_approximators)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Rate) -> Rate:
        now = evidence.latent
        if now is None:
            return state
        state = state._replace(before=now.detach().clone())
        if evidence.output is None:
            return state
        rate, rows = state.rate, None if bool(computed.all()) else computed
        if state.output is not None and state.latent is not None:
            outputs, latents = residual_sums(state.output, evidence.output), residual_sums(now, state.latent)
            new = (outputs[:, 0] / latents[:, 0] / outputs[:, 1]).double().cpu()
            rate = torch.where(computed, new, rate)
        return state._replace(
            output=updated(state.output, evidence.output, rows), latent=updated(state.latent, now, rows), rate=rate
        )
