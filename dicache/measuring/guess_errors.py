"""How far off every guess would have been, read off exact trajectories: no run is needed but the uncached one.

With outputs v_t of the mixed branches (guesses are linear in them) and exact latents x_t, approximator a guesses step
t + G from the computed steps t and t - D, as if nothing between had been computed:

    turning[a, t, D, G] = ||v_hat - v_{t+G}|| / ||v_{t+G}||            per prompt

A gap of G steps then moves the latent by about the sum over them of turning times scale, and the final latent by that
times the weight of its end (`dicache.measuring.gap_weights`). The approximator of each place is the one with the least
median.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.noise import noise_of
from dicache.errors import ProfileError
from dicache.estimators.base import Evidence
from dicache.tensors.history import History
from dicache.tensors.norms import length
from dicache.types import Step, Timetable

TINY = 1e-12


@dataclass(frozen=True)
class Trajectory:
    """One uncached run of B samples. The first step's output is not known: its branches had not been told apart yet."""

    steps: tuple[Step, ...]
    latents: tuple[Tensor, ...]
    """T of (B, ...)."""
    outputs: tuple[Tensor | None, ...]
    final: Tensor
    """(B, ...)."""
    guidance: float

    @property
    def timetable(self) -> Timetable:
        timetable = self.steps[0].timetable
        assert timetable is not None
        return timetable

    def scale(self) -> np.ndarray:
        """What a unit of relative error of each step's output adds to the final latent, relative to it, (B, T)."""
        final = _norm(self.final)
        rows = [
            np.full_like(final, np.nan) if v is None else step.coefficient * _norm(v) / final
            for step, v in zip(self.steps, self.outputs, strict=True)
        ]
        return np.stack([rows[1], *rows[1:]], axis=1)

    def price_of(self) -> np.ndarray:
        """The same as a session knows it one step ahead, before the final latent is there, (B, T)."""
        rows = []
        for target, ahead, x, v in zip(self.steps, self.steps[1:], self.latents, self.outputs, strict=False):
            clean = x if v is None or v.shape != x.shape else target.clean[0] * x + target.clean[1] * v
            rows.append(np.full(len(x), np.nan) if v is None else ahead.coefficient * _norm(v) / _norm(clean))
        return np.stack([rows[1], rows[1], *rows[1:]], axis=1)


def trajectory(seen: Sequence[Evidence], final: Tensor) -> Trajectory:
    """Of what a `Recorder` heard. Raises ProfileError where the run's course or guidance cannot be known."""
    steps = tuple(evidence.step for evidence in seen if evidence.step is not None)
    if not steps or steps[0].timetable is None or len(steps) != len(steps[0].timetable.sigmas) or len(steps) < 6:
        raise ProfileError(
            "only whole runs of 6 steps or more, with a scheduler whose course is known, can be calibrated."
        )
    outputs = tuple(evidence.output for evidence in seen)
    guidance = [evidence.guidance for evidence in seen if evidence.guidance is not None]
    if not guidance or any(output is None for output in outputs[1:]):
        raise ProfileError("the run's guidance changed half-way: it cannot be calibrated.")
    latents = tuple(evidence.latent for evidence in seen if evidence.latent is not None)
    return Trajectory(steps, latents, outputs, final, max(1.0, float(torch.stack(guidance).median())))


def reach_of(steps: int) -> int:
    """The longest distance that is measured: one more than the longest gap."""
    return max(8, round(0.3 * steps)) + 1


def guess_errors(run: Trajectory, approximators: Sequence[Approximator]) -> np.ndarray:
    """(B, A, T, D, G); nan where there is no such step."""
    steps, reach = len(run.steps), reach_of(len(run.steps))
    found = np.full((len(run.final), len(approximators), steps, reach, reach), np.nan, dtype=np.float32)
    noises = [
        None if v is None else noise_of(x, v, s.noise)
        for x, v, s in zip(run.latents, run.outputs, run.steps, strict=True)
    ]
    norms = [None if v is None else _norm(v) for v in run.outputs]
    for t, back in product(range(2, steps - 1), range(1, reach + 1)):
        if t - back < 1:
            continue
        histories = _past(run, noises, t, t - back)
        for ahead in range(1, min(reach, steps - 1 - t) + 1):
            step, truth = run.steps[t + ahead], run.outputs[t + ahead]
            assert truth is not None
            target = Target(step.sigma, None, run.latents[t + ahead], step.noise, run.timetable)
            for a, approximator in enumerate(approximators):
                miss = _norm(approximator.guess(histories, target) - truth)
                found[:, a, t, back - 1, ahead - 1] = np.maximum(miss / norms[t + ahead], TINY)
    return found


def local_of(turning: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What a gap alone moves the latent by, with the approximators that are least wrong for the median prompt,
    (B, T, D, G); nan where there is no such gap.
    """
    best = np.nan_to_num(median(turning), nan=np.inf).argmin(0)
    chosen = np.take_along_axis(turning, best[None, None], axis=1)[:, 0]
    steps, longest = chosen.shape[1], chosen.shape[3]
    ahead = np.minimum(np.arange(steps)[:, None] + np.arange(1, longest + 1), steps - 1)
    found: np.ndarray = (chosen * scale[:, ahead][:, :, None, :]).cumsum(-1)
    return found


def cost_of(local: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Final relative error of every gap for the median prompt, (T, D, G), by the weight of where it ends."""
    steps, longest = local.shape[1], local.shape[3]
    end = np.minimum(np.arange(steps)[:, None] + np.arange(2, longest + 2), steps)
    by_end = weight[end, :, np.arange(longest)].transpose(0, 2, 1)
    return median(local) * by_end


def median(values: np.ndarray) -> np.ndarray:
    """Over prompts, (B, ...) -> (...); nan stays."""
    known = ~np.isnan(values).any(0)
    return np.where(known, np.median(np.nan_to_num(values), axis=0), np.nan)


def _past(run: Trajectory, noises: Sequence[Tensor | None], newest: int, before: int) -> Histories:
    pair = (newest, before)
    sigmas = torch.tensor([[run.steps[i].sigma] * len(run.final) for i in pair], dtype=torch.float64)
    values, held = ([list_[i] for i in pair] for list_ in (run.outputs, noises))
    return Histories(History(sigmas, tuple(values)), History(sigmas, ()), History(sigmas, tuple(held)))  # type: ignore[arg-type]


def _norm(x: Tensor) -> np.ndarray:
    return np.asarray(length(x.float()).double().cpu())
