"""EasyCache (arXiv 2507.02860): how fast the output follows the latent, and what it adds to it.

The estimate is that rate, measured at computed steps, times how far the latent moved since:

    k = |v_a - v_b|_1 / |x_a - x_b|_1,        e_i = k |x_i - x_{i-1}|_1 / |v_a|_1

a and b are the last two computed steps; k stands still while skipping. To be added up
(`dicache.estimators.accumulated`).

What is held is what the denoiser adds to its input, not its output: where the probe shows that the input moved, the
guess moves along.

    v(sigma) ~ v_0 + (p - p_0),        error ~ |tau|

p is the probe's feature, which must have the output's shape: `RawLatent()` gives x + (v_0 - x_0).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.hold import Reuse
from dicache.errors import UnsupportedModelError
from dicache.estimators.base import Estimator, Evidence
from dicache.estimators.relative_change import finite, updated
from dicache.extension import residual_sums
from dicache.types import Action, Grid, Rows


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
    """e."""

    def own_bytes(self, feature: int, output: int, latent: int) -> int:
        return output + 2 * latent

    def init(self, samples: int, n_approximators: int) -> Rate:
        return Rate(n_approximators, None, None, None, torch.full((samples,), torch.inf, dtype=torch.float64))

    def predict(self, evidence: Evidence, state: Rate) -> Grid:
        if evidence.latent is None or state.before is None:
            return finite(state.rate * torch.inf, state.n_approximators)
        moved = residual_sums(evidence.latent, state.before)[:, 0].double().cpu()
        return finite(state.rate * moved, state.n_approximators)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Rate) -> Rate:
        latent = evidence.latent
        if latent is None:
            return state
        state = state._replace(before=latent.detach().clone())
        if evidence.output is None:
            return state
        rate, rows = state.rate, None if bool(computed.all()) else computed
        if state.output is not None and state.latent is not None:
            outputs, latents = residual_sums(state.output, evidence.output), residual_sums(latent, state.latent)
            new = (outputs[:, 0] / latents[:, 0] / outputs[:, 1]).double().cpu()
            rate = torch.where(computed, new, rate)
        return state._replace(
            output=updated(state.output, evidence.output, rows), latent=updated(state.latent, latent, rows), rate=rate
        )


class ReuseResidual(Approximator):
    """Raises UnsupportedModelError where the feature has not the output's shape."""

    action = Action.REUSE
    needs = 1
    reads_feature = True

    def guess(self, histories: Histories, target: Target) -> Tensor:
        output = histories.outputs.values[0]
        if target.feature is None or target.feature.shape != output.shape:
            shape = None if target.feature is None else tuple(target.feature.shape)
            raise UnsupportedModelError(
                f"ReuseResidual needs a feature shaped like the output, {tuple(output.shape)}, and got {shape}. "
                "Use probe=RawLatent() with a denoiser whose output has its input's shape, or Reuse()."
            )
        return output + (target.feature - histories.features.values[0])

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return Reuse().growth(sigmas, sigma)
