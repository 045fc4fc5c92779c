"""How the magnitude of a model's output changes from step to step, as a table made once (MagCache, arXiv 2506.09045).

    g_i = mean over tokens of |v_i| / |v_{i-1}|
    rho = product of g since the last computed step,        E_i = E_{i-1} + |1 - rho|,        E = 0 after it

Nothing of the run is looked at: all samples share one schedule. A table of another number of steps is read at the
nearest place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dicache.errors import ModeError
from dicache.estimators.base import Estimator, Evidence
from dicache.tensors.norms import length
from dicache.tensors.tree import tensors
from dicache.types import Grid, Rows


class MagnitudeDrift(NamedTuple):
    n_approximators: int
    product: Rows
    """rho, (B,)."""
    error: Rows
    """E, (B,)."""


@dataclass(frozen=True)
class MagnitudeRatios(Estimator[MagnitudeDrift]):
    ratios: Sequence[float]
    """g_i of every step of a run; that of the first is not read."""

    def __post_init__(self) -> None:
        if not len(self.ratios):
            raise ModeError("MagnitudeRatios(ratios=()): expected one ratio per step, from measure_ratios().")

    def init(self, samples: int, n_approximators: int) -> MagnitudeDrift:
        one = torch.ones(samples, dtype=torch.float64)
        return MagnitudeDrift(n_approximators, one, torch.zeros_like(one))

    def predict(self, evidence: Evidence, state: MagnitudeDrift) -> Grid:
        error = self._ahead(evidence, state).error
        return torch.where(error.isfinite(), error, torch.inf)[:, None].repeat(1, state.n_approximators)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: MagnitudeDrift) -> MagnitudeDrift:
        ahead = self._ahead(evidence, state)
        return MagnitudeDrift(
            state.n_approximators, torch.where(computed, 1.0, ahead.product), torch.where(computed, 0.0, ahead.error)
        )

    def _ahead(self, evidence: Evidence, state: MagnitudeDrift) -> MagnitudeDrift:
        if evidence.step is None:
            return state._replace(error=torch.full_like(state.error, torch.inf))
        product = state.product * nearest(self.ratios, evidence.step.index, evidence.step.total)
        return MagnitudeDrift(state.n_approximators, product, state.error + (1 - product).abs())


def nearest(table: Sequence[float], index: int, total: int) -> float:
    """A table's entry for step `index` of `total`."""
    return table[round(index * (len(table) - 1) / max(1, total - 1))]


def measure_ratios(denoiser: nn.Module, draw: Callable[[], Any], steps: int) -> tuple[float, ...]:
    """The table of a model: `draw()` runs its pipeline once, uncached, over `steps` steps. Where guidance calls the
    denoiser several times per step, the first call counts, as in the paper.
    """
    lengths: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        tensor = tensors(output)[0]
        vectors = tensor.detach() if tensor.ndim == 3 else tensor.detach().movedim(1, -1)
        lengths.append(length(vectors.flatten(0, -2)).view(vectors.shape[:-1]).cpu())

    handle = denoiser.register_forward_hook(note)
    try:
        with torch.no_grad():
            draw()
    finally:
        handle.remove()
    if not lengths or len(lengths) % steps:
        raise ModeError(f"the denoiser was called {len(lengths)} times, which is not a multiple of {steps} steps.")
    first = lengths[:: len(lengths) // steps]
    return (1.0, *(float((after / before).mean()) for before, after in pairwise(first)))
