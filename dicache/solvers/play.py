"""Know a solver by playing it: a copy of the user's scheduler runs over its own steps on a few numbers.

Most schedulers are linear in latents, outputs and noise, so their responses to impulses say all that they do. One pass
over the run, one row of the batch per impulse:

    starts    a unit latent before the first call
    outputs   a unit output of call q
    latents   a unit added to the latent that is given back with call q's output
    noises    a unit in whatever is drawn at random after call q
    check     all of them at once, as large as in a run: how far that is from the sum of the others shows whether the
              map is linear at all (with clipping and thresholding it is not)

A call is one entry of the scheduler's timesteps: solvers that evaluate several times a step have as many per step.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dicache.solvers.exact import Exact

IMPULSE = 2.0**-10
"""Small, for schedulers that clip."""
LINEAR = 1e-4
"""Bend up to which a map counts as linear."""
ASKED = 8
"""How many calls' levels are asked for: enough to know the others by."""
_UNPLAYABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class NotPlayedError(Exception):
    """A scheduler cannot be played, and why."""


class Responses(NamedTuple):
    """What a scheduler does with Q calls, float64. A latent's response has Q + 1 entries: before each call, and after
    the last.
    """

    times: np.ndarray
    """Of each call, as the scheduler counts it, (Q,)."""
    scales: np.ndarray
    """By what a latent is multiplied before the denoiser sees it, (Q,)."""
    levels: np.ndarray
    """Signal and noise in a call's latent as the scheduler mixes them itself, and in the final one of a loop that ends
    early, (Q + 1, 2); nan where it was not asked.
    """
    starts: np.ndarray
    """(Q + 1,)."""
    outputs: np.ndarray
    """(Q + 1, Q)."""
    latents: np.ndarray
    """(Q + 1, Q)."""
    noises: np.ndarray
    """(Q + 1, Q)."""
    bend: float
    """How far the map is from a linear one, relative."""

    @property
    def random(self) -> bool:
        """Whether noise is added."""
        return bool((np.abs(self.noises) > LINEAR).any())


def play(
    scheduler: Any,  # noqa: ANN401
    begin: int = 0,
    end: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Responses:
    """Of a scheduler whose `set_timesteps` was called and that has made no step yet, over the calls `begin` to `end`;
    `options` are what each `step` is given beside output, time and latent.

    Raises NotPlayedError where a step needs something else, draws other numbers, or gives nothing of a latent's shape.
    """
    try:
        with torch.no_grad(), Exact() as exact:
            return _played(_copied(scheduler), slice(begin, end), dict(options or {}), exact)
    except _UNPLAYABLE as error:
        raise NotPlayedError(f"{type(scheduler).__name__} cannot be played on numbers: {error}") from error


def _played(scheduler: Any, calls: slice, options: Mapping[str, Any], exact: Exact) -> Responses:  # noqa: ANN401
    times = scheduler.timesteps[calls]
    n, scales, levels = len(times), [], []
    starts, check = 3 * n, 3 * n + 1
    sizes = torch.cos(torch.arange(2 * n, dtype=torch.float64) ** 2).tolist()  # of the check's outputs and noises
    latent = torch.zeros(3 * n + 2, 1, 1, 1, dtype=torch.float64)
    latent[starts], passed = IMPULSE, list[Tensor]()
    for q, time in enumerate(times):
        levels.append(_levels(scheduler, time) if q % math.ceil(n / ASKED) == 0 else (math.nan, math.nan))
        if q == 0:
            latent[check] = size = float(np.nan_to_num(np.linalg.norm(levels[0]), nan=1.0))
        scales.append(_scale(scheduler, time, latent))
        passed.append(latent.flatten())
        output, noise = torch.zeros_like(latent), torch.zeros_like(latent)
        output[q], output[check], noise[2 * n + q], noise[check] = IMPULSE, sizes[q], IMPULSE, sizes[n + q]
        exact.noise = noise
        nudged = latent.clone()
        nudged[n + q] += IMPULSE
        latent = scheduler.step(output, time, nudged, return_dict=False, **options)[0].reshape(latent.shape)
    following = None if calls.stop is None else next(iter(scheduler.timesteps[calls.stop :]), None)
    levels.append((math.nan, math.nan) if following is None else _levels(scheduler, following))
    rows = torch.stack([*passed, latent.flatten()]).numpy()
    units = rows[:, : 3 * n + 1] / IMPULSE
    outputs, latents, noises = units[:, :n], units[:, n : 2 * n], units[:, 2 * n : 3 * n]
    straight = size * units[:, starts] + outputs @ sizes[:n] + noises @ sizes[n:]
    bend = float(np.abs(rows[:, check] - straight).max() / np.abs(straight).max())
    return Responses(
        times.double().numpy(), np.array(scales), np.array(levels), units[:, starts], outputs, latents, noises, bend
    )


def own_copy(scheduler: Any) -> Any:  # noqa: ANN401
    """A deep copy that steps itself: methods that were wrapped on the instance, which would step the user's own, are
    those of its class. One that was replaced by something else stays.
    """
    fresh = copy(scheduler)
    for name, wraps in _methods_of_its_own(scheduler).items():
        if wraps:
            delattr(fresh, name)
    return deepcopy(fresh)


def _methods_of_its_own(scheduler: Any) -> dict[str, bool]:  # noqa: ANN401
    """Those that the instance has in the place of its class's, and whether each wraps that."""
    methods = {
        name: (value, getattr(type(scheduler), name, None))
        for name, value in vars(scheduler).items()
        if inspect.isroutine(value)
    }
    return {
        name: getattr(inspect.unwrap(value), "__func__", None) is method
        for name, (value, method) in methods.items()
        if method is not None
    }


def _copied(scheduler: Any) -> Any:  # noqa: ANN401
    """With all its tensors on the host. Raises NotPlayedError where a method was replaced by what does not wrap it."""
    own = _methods_of_its_own(scheduler)
    if replaced := [name for name, wraps in own.items() if not wraps]:
        raise NotPlayedError(f"{replaced[0]} of this {type(scheduler).__name__} was replaced")
    fresh = copy(scheduler)
    for name, value in vars(scheduler).items():
        if name in own:
            delattr(fresh, name)
        else:
            setattr(fresh, name, value.detach().cpu() if isinstance(value, Tensor) else deepcopy(value))
    return fresh


@runtime_checkable
class _Scales(Protocol):
    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor: ...


@runtime_checkable
class _AddsNoise(Protocol):
    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...


@runtime_checkable
class _ScalesNoise(Protocol):
    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor: ...


def _scale(scheduler: object, time: Tensor, latent: Tensor) -> float:
    """It is asked at every call, as pipelines do: some schedulers look up here where they are."""
    if not isinstance(scheduler, _Scales):
        return 1.0
    return float(scheduler.scale_model_input(torch.ones_like(latent), time)[0])


def _levels(scheduler: object, time: Tensor) -> Sequence[float]:
    """Signal and noise of `time`."""
    signal, noise = torch.eye(2, dtype=torch.float64).view(2, 2, 1, 1, 1)
    if isinstance(scheduler, _ScalesNoise):
        return tuple(scheduler.scale_noise(signal, time[None], noise).flatten().tolist())
    if isinstance(scheduler, _AddsNoise):
        return tuple(scheduler.add_noise(signal, noise, time[None]).flatten().tolist())
    return (math.nan, math.nan)
