"""Where a hand-written loop stands. There is no scheduler to ask: the module is called with times, and what its loop
does is seen in the latents (`dicache.solvers.watch`).

Times move one way; which one the second call shows, and one that moves back begins a new run. Nothing has a price until
two steps agree on a path. From then on the level of each latent is known, and of the step that it is about to make only
how far it may go: as far as the one before did, or further by as much as that one went further than the one before it,

    way_i = min(share_i, max(w, w^2 / w'))        w, w' the ways of the last two steps, in shares of noise

so there is no plan of the rest of the run, and the rule is that of `dicache.controllers.budgeted`.

Where the user says what is known, `Family(noise_schedule=..., prediction=..., times=...)`, all of the run is known
before it begins, and the loop is taken for one of first order along these levels for as long as it looks like one.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dicache.solvers.timeline import DECIDING, Reading, Timeline, estimates, first_order, half_log_snr
from dicache.solvers.watch import LoopPath, Seen, path_of_loop, seen, unseen
from dicache.types import Step

ROWS_APART = "the rows of one call are at times of their own, and what their loop does cannot be watched"
NEAR = 2e-2
"""How far signal and noise may be from adding up to 1 on a straight path that is watched."""
BARELY = 1e-9
"""Progress of a step of which nothing is known."""
OFF = 0.05
"""Share of a step that may be other than was declared."""
ROUNDED = 1e-3
"""A step that goes less far than this share of the latent may be all rounding."""


class LoopClock:
    """For a bare module. `reason` is why nothing has a price; empty while that is not decided, or where it has one."""

    reason: str
    forced: str
    time: float
    index: int
    times: list[float]

    def __init__(self, forced: str = "") -> None:
        """`forced` is a reason that holds for every run."""
        self.reason = self.forced = forced
        self._begin(math.nan)

    @property
    def ends_unseen(self) -> bool:
        """Whether the last call of a run looks like any other."""
        return True

    def _begin(self, time: float) -> None:
        self.time, self.index, self.reason = time, 0, self.forced
        self.rises: bool | None = None
        self.steps: list[Seen] = []
        self.path: LoopPath | None = None
        self.times = [time]

    def read(self, timestep: Tensor | float | None) -> Reading:
        """Times alone; `watched` adds what the latents show."""
        time = time_of(timestep)
        if not self._goes_on(time):
            self._begin(time)
        elif time != self.time:
            self.rises, self.index, self.time = time > self.time, self.index + 1, time
            self.times.append(time)
        if math.isnan(time):
            self.reason = ROWS_APART
        step = self._step()
        return Reading(None, step, step.progress)  # a run begins where its loop does

    def _goes_on(self, time: float) -> bool:
        return (
            time == self.time
            or (time > self.time and self.rises is not False)
            or (time < self.time and self.rises is not True)
        )

    def watched(self, latent: Tensor, output: Tensor | None, following: Tensor) -> Step:
        """The step that has begun, after one that made `following` of `latent` and `output`, (B, ...) each; None where
        it is not known how the step mixed its outputs.
        """
        if not self.reason and latent.shape == following.shape and (output is None or output.shape == latent.shape):
            times = (self.times[self.index - 1], self.time)
            self.steps.append(unseen(times) if output is None else seen(latent, output, following, times))
            path = path_of_loop(self.steps)
            self.path = path if isinstance(path, LoopPath) else None
            self.reason = path if isinstance(path, str) else ""
        elif not self.reason:
            self.reason = "outputs have not the shape of the latents, and what the loop makes of them cannot be watched"
        return self._step()

    @property
    def axis(self) -> dict[float, tuple[float, float]]:
        """Where each time so far lies along which outputs are extrapolated and errors grow; empty while unknown."""
        if self.path is None:
            return {}
        levels, own = self.path.levels, len(self.steps) + 1  # a step may have begun of which nothing was seen yet
        return {
            time: self._position(level) for time, level in zip(self.times[own - len(levels) : own], levels, strict=True)
        }

    def _position(self, level: tuple[float, float]) -> tuple[float, float]:
        time = half_log_snr(*level)
        return (level[1] if self._straight(level) else time), time

    def _time_left(self) -> tuple[float, float]:
        """Share of the time that is to come, and how much of it the last step took: for rules that count no errors.
        Times that rise end at 1, or at 1000.
        """
        end = 0.0 if not self.rises else 1.0 if max(self.times) <= 1 else 1000.0
        total = abs(self.times[0] - end) or 1.0
        stride = abs(self.times[-1] - self.times[-2]) / total if len(self.times) > 1 else 0.0
        return min(1.0, abs(self.time - end) / total), stride

    @staticmethod
    def _straight(level: tuple[float, float]) -> bool:
        return abs(sum(level) - 1) < NEAR

    def _step(self) -> Step:
        """Of unknown price while the path is not known. How many steps there are is a guess, for rules that count."""
        left, stride = self._time_left()
        total = self.index + max(1, round(left / stride)) if stride > 0 else self.index + 2
        if self.path is None:
            progress = max(BARELY, 1 - max(left - stride, 0.0))
            return Step(self.index, total, self.time, math.inf, progress, (1.0, 0.0), time_left=left)
        levels = np.array(self.path.levels)
        shares = levels[:, 1] / levels.sum(1)
        ways = np.abs(np.diff(shares))
        way = ways[-1] if len(ways) < 2 else max(ways[-1], ways[-1] ** 2 / max(ways[-2], BARELY))
        way = float(min(way, shares[-1]))
        signal, noise = level = self.path.levels[-1]
        data, eps = mixture = self.path.mixture(level)
        gain = abs(data * noise - eps * signal) / (signal + noise)
        further = 1 + DECIDING * (0.5 if self._straight(level) else 1.0) * float(shares[-1]) ** 4
        clean, given_noise = estimates(np.array([level]), np.array([mixture]), np.ones(1))
        sigma, time = self._position(level)
        progress = min(1.0, max(BARELY, 1 - (float(shares[-1]) - way) / float(shares[0])))
        return Step(
            self.index,
            total,
            sigma,
            way * further / gain,
            progress,
            tuple(clean[0].tolist()),
            tuple(given_noise[0].tolist()),
            half_log_snr=time,
            gain=gain,
        )


class DeclaredClock(LoopClock):
    """For a bare module whose user says all `times` that it is called at, and the signal and noise of each. What is
    said is held against what is seen: calls at other times, and steps that make something else of their outputs, as
    solvers of higher order do, are told, and what follows computes.
    """

    timeline: Timeline
    prediction: str
    run: object
    call: int
    reason: str

    def __init__(
        self, noise_schedule: Callable[[float], tuple[float, float]], prediction: str, times: Sequence[float]
    ) -> None:
        super().__init__()
        self.declared: tuple[float, ...] = tuple(map(float, times))
        self.timeline = first_order(self.declared, [noise_schedule(time) for time in self.declared], prediction)
        self.prediction, self.run, self.call = prediction, object(), -1
        self.astray: LoopClock | None = None
        """Reads what follows a call at a time of which nothing was said."""

    @property
    def ends_unseen(self) -> bool:
        return self.astray is not None

    @property
    def axis(self) -> dict[float, tuple[float, float]]:
        """None of the positions that a run goes by is a guess from its times."""
        return {}

    def read(self, timestep: Tensor | float | None) -> Reading:
        time = time_of(timestep)
        following = self.call + 1
        if following > 0 and self.astray is None and _same(time, self.declared[self.call]):
            return self.timeline.reading(self.run, self.call)
        if self.astray is None and following < len(self.declared) and _same(time, self.declared[following]):
            return self._at(following)
        if _same(time, self.declared[0]):
            return self._at(0)
        if self.astray is None:
            self.astray = LoopClock(self._unexpected(time))
        self.reason = self.astray.forced
        return self.astray.read(timestep)

    def _at(self, call: int) -> Reading:
        if call == 0:
            self.run, self.reason, self.astray = object(), self.timeline.reason, None
        self.call = call
        return self.timeline.reading(self.run, call)

    def _unexpected(self, time: float) -> str:
        over = not 0 <= self.call < len(self.declared) - 1
        due = self.declared[0 if over else self.call + 1]
        self.call = -1
        return f"the denoiser was called at {time:.6g} where the declared times have {due:.6g}"

    def watched(self, latent: Tensor, output: Tensor | None, following: Tensor) -> Step:
        """The step that has begun, as it was declared; `reason` says where the one before was another. Arguments as in
        `LoopClock.watched`. The host waits for the device here.
        """
        if self.astray is not None:
            return self.astray.watched(latent, output, following)
        step = self.timeline.reading(self.run, self.call).step
        if not self.reason and output is not None and latent.shape == output.shape == following.shape:
            self._check(latent, output, following)
        return step._replace(coefficient=math.inf, timetable=None) if self.reason else step

    def _check(self, latent: Tensor, output: Tensor, following: Tensor) -> None:
        from_latent, from_output = self.timeline.solved[self.call - 1]
        moved = (latent != following).any(-1, keepdim=True)  # pictures to go by stand beside the latent
        x, v, y = (torch.where(moved, t, 0).double().flatten() for t in (latent, output, following))
        went, miss = y - x, y - from_latent * x - from_output * v
        squares = torch.stack([miss @ miss, went @ went, x @ x]).tolist()
        left = math.sqrt(squares[0] / max(squares[1], ROUNDED**2 * squares[2], 1e-300))
        if not left < OFF:
            self.reason = (
                f"a step of the loop is not what noise_schedule, prediction={self.prediction!r} and a solver of "
                f"first order make of it: {left:.2g} of it is left over"
            )


def _same(time: float, other: float) -> bool:
    return abs(time - other) <= 1e-4 * max(abs(time), abs(other)) + BARELY


def time_of(timestep: Tensor | float | None) -> float:
    """As a host number; nan where there is none, or rows are at different ones. Of a time per token, the latest: tokens
    of pictures to go by are at none. The host waits for the device here.
    """
    if timestep is None:
        return math.nan
    if not isinstance(timestep, Tensor):
        return float(timestep)
    rows = timestep.reshape(len(timestep), -1).amax(1) if timestep.ndim > 1 else timestep.reshape(-1)
    low, high = rows.min(), rows.max()
    return float(high) if timestep.ndim < 2 or low == high else math.nan
