"""How much the output moves with the latent and with time, from a table made once (SenCache, arXiv 2602.24208).

    e = (J_x |x - x_a| + J_t |t - t_a|) / sqrt(numel x)        L2, a the last computed step, J read at a

To first order this is the root mean square error of reusing v_a. It is not relative: thresholds carry the output's
unit. J_x and J_t are secants along a run (`measure_sensitivities`), which are no bounds.

The run that the table is made on also tells e of every pair of its steps, and so what any threshold would compute
there: `threshold_for` bisects for the one that computes a wanted share. The latents of a cached run are a little other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dicache.errors import ModeError
from dicache.estimators.base import Estimator, Evidence
from dicache.estimators.relative_change import finite, updated
from dicache.extension import residual_sums
from dicache.presets.parts.magcache import nearest
from dicache.tensors.norms import root_mean_square
from dicache.tensors.tree import tensors
from dicache.types import Grid, Rows

Pairs = tuple[tuple[float, ...], ...]
"""A number for every two steps."""


class SensitivityTable(NamedTuple):
    latent: tuple[float, ...]
    """J_x per step."""
    time: tuple[float, ...]
    """J_t per step, for the root mean square of the output, in units of `Step.sigma`."""
    errors: Pairs = ()
    """e of reusing step a's output at step i, [a][i], along the run that the table was made on."""

    def computed(self, threshold: float, early: float, longest: int) -> list[int]:
        """The steps that `sencache` would compute on that run."""
        steps, path = len(self.errors), [0]
        for i in range(1, steps):
            bound = early if i < round(EARLY * steps) else threshold
            if not self.errors[path[-1]][i] < bound or i - path[-1] > longest:
                path.append(i)
        return path


EARLY = 0.2
"""Share of the steps at the start that have a threshold of their own."""


def threshold_for(table: SensitivityTable, work: float, ratio: float, longest: int) -> float:
    """The least threshold with which no more than this share of the steps computes on the table's own run, to a
    thousandth; early steps have one `ratio` times as large. Raises ModeError for a table that was not measured, or a
    share that cannot be had.
    """
    steps = len(table.errors)
    if not steps:
        raise ModeError("this table has no run of its own. Make it with dicache.presets.measure_sensitivities.")
    low, high = 0.0, 2 * max(map(max, table.errors)) / min(1.0, ratio)
    least = len(table.computed(high, ratio * high, longest))
    if not least <= work * steps + 1e-9 <= steps + 1e-6:
        raise ModeError(f"work is {work!r}. Expected a share of the {steps} steps from {least / steps:.3f} to 1.")
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        fits = len(table.computed(middle, ratio * middle, longest)) <= work * steps + 1e-9
        low, high = (low, middle) if fits else (middle, high)
    return high


class Anchor(NamedTuple):
    n_approximators: int
    latent: Tensor | None
    """x_a, (B, ...)."""
    sigma: Rows
    by_latent: Rows
    by_time: Rows
    """t_a, J_x and J_t there, (B,)."""


@dataclass(frozen=True)
class Sensitivities(Estimator[Anchor]):
    table: SensitivityTable

    def own_bytes(self, feature: int, output: int, latent: int) -> int:
        return latent

    def init(self, samples: int, n_approximators: int) -> Anchor:
        unknown = torch.full((samples,), torch.nan, dtype=torch.float64)
        return Anchor(n_approximators, None, unknown, unknown.clone(), unknown.clone())

    def predict(self, evidence: Evidence, state: Anchor) -> Grid:
        if evidence.latent is None or evidence.step is None or state.latent is None:
            return torch.full((len(state.sigma), state.n_approximators), torch.inf, dtype=torch.float64)
        squares = residual_sums(evidence.latent, state.latent)[:, 2].double().cpu()
        moved = (squares / evidence.latent[0].numel()).sqrt()
        return finite(
            state.by_latent * moved + state.by_time * (evidence.step.sigma - state.sigma).abs(), state.n_approximators
        )

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Anchor) -> Anchor:
        latent, step = evidence.latent, evidence.step
        if latent is None or step is None or not bool(computed.any()):
            return state
        here = (nearest(column, step.index, step.total) for column in self.table[:2])
        numbers = zip((step.sigma, *here), state[2:], strict=True)
        sigma, by_latent, by_time = (torch.where(computed, new, old) for new, old in numbers)
        return Anchor(
            state.n_approximators,
            updated(state.latent, latent, None if bool(computed.all()) else computed),
            sigma,
            by_latent,
            by_time,
        )


def measure_sensitivities(
    denoiser: nn.Module, draw: Callable[[], Any], sigmas: Sequence[float], *, latent: str = "hidden_states"
) -> SensitivityTable:
    """The table of a denoiser that is called by keyword, with `latent` and `timestep`, as diffusers' pipelines do.

    `draw()` runs its pipeline once, uncached, with `Step.sigma` as given; at each step but the last two more
    evaluations are made, f(x', t) and f(x, t') with x', t' those of the next step. Where guidance calls the denoiser
    several times per step, the first call counts. `errors` are the mean over the run's samples, in squares.
    """
    calls: list[tuple[dict[str, Any], Tensor]] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:  # noqa: ANN401
        calls.append((kwargs, tensors(output)[0].detach().clone()))

    handle = denoiser.register_forward_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            draw()
    finally:
        handle.remove()
    if not calls or len(calls) % len(sigmas):
        raise ModeError(f"the denoiser was called {len(calls)} times, which is not a multiple of {len(sigmas)} steps.")
    first = calls[:: len(calls) // len(sigmas)]
    by_latent, by_time = [], []
    with torch.no_grad():
        for i, ((arguments, output), (after, _)) in enumerate(pairwise(first)):
            moved = tensors(denoiser(**arguments | {latent: after[latent]}))[0] - output
            aged = tensors(denoiser(**arguments | {"timestep": after["timestep"]}))[0] - output
            by_latent.append(_size(moved) / _size(after[latent] - arguments[latent]))
            by_time.append(_size(aged) / abs(sigmas[i + 1] - sigmas[i]))
    table = SensitivityTable((*by_latent, by_latent[-1]), (*by_time, by_time[-1]))
    return table._replace(errors=_errors(table, [arguments[latent] for arguments, _ in first], sigmas))


def _errors(table: SensitivityTable, latents: Sequence[Tensor], sigmas: Sequence[float]) -> Pairs:
    """e of every pair of steps, [a][i]."""
    return tuple(
        tuple(
            table.latent[a] * _size(later - anchor) + table.time[a] * abs(sigmas[i] - sigmas[a])
            for i, later in enumerate(latents)
        )
        for a, anchor in enumerate(latents)
    )


def _size(x: Tensor) -> float:
    """Root mean square over the whole batch."""
    return float(root_mean_square(x[None]))
