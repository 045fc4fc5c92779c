"""Without a cache: fewer steps, by several solvers and on a grid fitted to the model. The honest baselines.

SharpEuler (https://arxiv.org/abs/2605.11547) is Euler on a grid whose steps are short where the velocity turns fast.
The error of an Euler step of length h is h^2 / 2 |dv / dsigma|, so steps of equal error stand as densely as

    density(sigma) ~ |dv / dsigma|^(1/2)

with the derivative by finite differences along dense runs, its norm averaged over captions, the density smoothed by a
Gaussian of one dense step, and the grid at its quantiles. Profiled on calibration captions, once per setting.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from diffusers import FluxPipeline
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from dicache.bench.arms.arm import Arm
from dicache.bench.models.reference import Setting, arguments, fresh, scheduler
from dicache.reference.scenes import prompts

FRACTIONS = (0.7, 0.6, 0.5, 0.4, 0.3)
ONWARD = (0.25, 0.2, 0.15, 0.1, 0.07)
"""Of 28 steps: 7, 6, 4, 3 and 2."""
PROFILED_ON = 8
DENSE = 4
"""Times as many steps in the runs that the profile is read off."""


def steps_of(share: float, setting: Setting) -> int:
    return max(2, round(share * setting.steps))


@contextmanager
def _fewer(pipe: FluxPipeline, value: float, setting: Setting) -> Iterator[Setting]:
    yield dataclasses.replace(setting, steps=steps_of(value, setting))


@contextmanager
def _solved(
    pipe: FluxPipeline, value: float, setting: Setting, *, solver: Literal["euler", "ab2", "dpm++", "unipc"]
) -> Iterator[Setting]:
    changed = dataclasses.replace(setting, steps=steps_of(value, setting), solver=solver)
    pipe.scheduler = scheduler(changed)
    yield changed


@contextmanager
def _sharp(pipe: FluxPipeline, value: float, setting: Setting) -> Iterator[Setting]:
    count = steps_of(value, setting)
    grid = sharp_grid(*_profile(dataclasses.replace(setting, solver="euler")), count)
    with _solved(pipe, value, setting, solver="euler") as changed:
        yield dataclasses.replace(changed, sigmas=grid)


@lru_cache(maxsize=2)
def _profile(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Of the setting: sigmas, falling, and the sharpness between them."""
    captions, dense = (
        prompts("calibration", PROFILED_ON, seed=13),
        dataclasses.replace(setting, steps=DENSE * setting.steps),
    )
    pipe, latents = fresh(dense), []

    def watch(pipe: Any, i: int, time: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: ANN401
        latents.append(values["latents"].double())
        return values

    with torch.no_grad():
        pipe(captions, callback_on_step_end=watch, **arguments(captions, 13_000, dense))
    return sharpness(torch.stack(latents), pipe.scheduler.sigmas[1:].double())


def sharpness(latents: Tensor, sigmas: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Along a run, x_j at sigma_j, (S, B, ...) and (S,): where the velocity was looked at, (S - 2,), and the mean over
    samples of |dv / dsigma| there. v between two steps is what Euler went by, so it is the velocity at the first.
    """
    steps = sigmas.diff().view(-1, *[1] * (latents.dim() - 1))
    velocities = latents.diff(dim=0) / steps  # at sigma_0 to sigma_(S-2)
    change = velocities.diff(dim=0) / steps[:-1]
    norms = change.flatten(2).norm(dim=2).mean(1)
    return ((sigmas[:-2] + sigmas[1:-1]) / 2).numpy(), norms.numpy()


def sharp_grid(sigmas: np.ndarray, norms: np.ndarray, count: int) -> tuple[float, ...]:
    """Where `count` steps begin: 1 first, as much of the density between each and the next, and the last ends at 0."""
    density = gaussian_filter1d(np.sqrt(norms), 1.0, mode="nearest")
    x = np.concatenate([[1.0], sigmas, [0.0]])
    y = np.concatenate([density[:1], density, density[-1:]])
    share = np.concatenate([[0.0], np.cumsum((y[1:] + y[:-1]) / 2 * -np.diff(x))])
    return tuple(np.interp(np.arange(count) / count * share[-1], share, x).tolist())


def _arm(name: str, prepare: Any, note: str = "", mild: tuple[float, ...] = ()) -> Arm:  # noqa: ANN401
    """`mild` shares come before the others."""
    return Arm(name, "baseline", "share of the steps", (*mild, *FRACTIONS), prepare, note, onward=ONWARD)


EULER = _arm("fewer steps, Euler", partial(_solved, solver="euler"))
"""For settings whose own solver is another."""
SOLVERS = (
    _arm("fewer steps", _fewer, mild=(0.9, 0.8)),
    _arm("fewer steps, DPM-Solver++", partial(_solved, solver="dpm++"), mild=(0.9, 0.8)),
    _arm("fewer steps, UniPC", partial(_solved, solver="unipc")),
    _arm("fewer steps, AB2", partial(_solved, solver="ab2")),
    _arm("fewer steps, SharpEuler", _sharp, f"its grid is profiled on {PROFILED_ON} calibration captions"),
)
