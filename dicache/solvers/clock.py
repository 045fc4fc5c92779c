"""Where a run stands, read off the host: the scheduler's own count of its calls. No step count from the user, no
synchronisation. Of a hand-written loop less is known (`dicache.solvers.loop_clock`).
"""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from dicache.solvers.timeline import Reading, Timeline, timeline
from dicache.types import Timetable

_SOLVING = (
    "algorithm_type",
    "clip_sample",
    "final_sigmas_type",
    "lower_order_final",
    "predict_x0",
    "prediction_type",
    "solver_order",
    "solver_type",
    "stochastic_sampling",
    "thresholding",
)


@runtime_checkable
class _Indexed(Protocol):
    """A scheduler that knows its next call; None before the first."""

    step_index: int | None
    begin_index: int | None


@runtime_checkable
class _Counted(Protocol):
    """A scheduler that counts the steps it made."""

    counter: int


class Loop(NamedTuple):
    """What a pipeline's loop is known to do with its scheduler."""

    calls: int | None = None
    """How many it makes; None for all that the scheduler has times for."""
    options: Mapping[str, Any] = {}
    """What it hands to every step beside output, time and latent."""


class SchedulerClock:
    """Reads the scheduler a pipeline has at this moment."""

    scheduler: Callable[[], Any]
    loop: Callable[[], Loop]
    timeline: Timeline
    order: "Order"

    def __init__(self, scheduler: Callable[[], Any], loop: Callable[[], Loop] = Loop) -> None:
        self.scheduler, self.loop = scheduler, loop
        self.run: object = None
        self.timeline = Timeline(Timetable((), (), (), 0), (), (), ())
        self.readings: list[Reading] = []
        """Of every call of the run."""
        self.order = Order(())
        self.kind: type | None = None
        """How the scheduler of the run counts, `_Indexed` or `_Counted`, where it does."""

    @property
    def reason(self) -> str:
        """Why no price is known of this run; empty where they are."""
        return self.timeline.reason

    def read(self, timestep: torch.Tensor | float | None) -> Reading:
        scheduler = self.scheduler()
        if self.run is not scheduler.timesteps:
            trained = scheduler.config.get("num_train_timesteps", 1000)
            self.kind = next((kind for kind in (_Indexed, _Counted) if isinstance(scheduler, kind)), None)
            self.run, self.order = scheduler.timesteps, Order(tuple(scheduler.timesteps.tolist()), trained)
            self.timeline = timeline_of(scheduler, self._begin(scheduler, timestep), self.loop())
            calls = range(len(self.timeline.steps))
            self.readings = [self.timeline.reading(self.run, call) for call in calls]
        return self.readings[min(self._call(scheduler, timestep), len(self.readings) - 1)]

    def _begin(self, scheduler: Any, timestep: torch.Tensor | float | None) -> int:  # noqa: ANN401
        if self.kind is _Indexed and scheduler.step_index is not None:
            return int(scheduler.begin_index or 0)  # another denoiser made the first steps
        return self._call(scheduler, timestep)

    def _call(self, scheduler: Any, timestep: torch.Tensor | float | None) -> int:  # noqa: ANN401
        if self.kind is _Indexed:
            index = scheduler.step_index if scheduler.step_index is not None else scheduler.begin_index
            if index is None and timestep is None:
                return 0  # it has made no step, and who is told no time cannot be at another
            return self.order.next(_number(timestep)) if index is None else int(index)
        if self.kind is _Counted:
            self.order.begin = self.order.first(_number(timestep)) if scheduler.counter == 0 else self.order.begin
            return self.order.begin + scheduler.counter
        return self.order.next(_number(timestep))


@dataclass
class Order:
    """Counting the calls of a scheduler that does not: another time is the next call, or one further on."""

    times: tuple[float, ...]
    trained: int = 1000
    """How many times the model was trained at."""
    last: float = math.nan
    call: int = -1
    begin: int = 0

    def first(self, time: float) -> int:
        """Where a run begins: at `time`, counted as the scheduler does or as models want it, from 0 to 1 or forwards;
        at the first call where it is none of these.
        """
        meant = self._meant(time)
        near = [first for value in meant if (first := self._nearest(value)) is not None]
        if time <= 1:
            return min(near, default=0)  # 1 of 1000 is also all of a time from 0 to 1, and runs begin early
        return near[0] if near else 0

    def _nearest(self, time: float) -> int | None:
        near = [i for i, t in enumerate(self.times) if abs(t - time) < 0.005 * max(abs(t), 1.0)]
        return min(near, key=lambda i: abs(self.times[i] - time), default=None)

    def next(self, time: float) -> int:
        if self.call < 0:
            self.call = self.first(time)
        elif time != self.last:
            self.call = self._after(time)
        self.last = time
        return self.call

    def _after(self, time: float) -> int:
        """The next call at `time`, this one or an earlier one if a run begins anew; the next one if none is."""
        order = [*range(self.call + 1, len(self.times)), *range(self.call + 1)]
        exact = [i for i in order for meant in self._meant(time) if self.times[i] == meant]
        return exact[0] if exact else self.call + 1

    def _meant(self, time: float) -> tuple[float, ...]:
        scaled = time * self.trained if time <= 1 else time
        return time, scaled, self.trained - scaled


def _number(timestep: torch.Tensor | float | None) -> float:
    """The timestep as a host number; this waits for the device, so schedulers with an index never come here."""
    if timestep is None:
        return math.nan
    return float(timestep.flatten()[0]) if isinstance(timestep, torch.Tensor) else float(timestep)


_timelines: dict[Hashable, Timeline] = {}
"""The last timelines, by the numbers that they follow from: each is worked out once, and a second denoiser that takes
over half-way reads the first one's.
"""
_MOST = 16
_one_thread = Lock()


def timeline_of(scheduler: Any, begin: int = 0, loop: Loop | None = None) -> Timeline:  # noqa: ANN401
    loop = loop or Loop()
    end = min(len(scheduler.timesteps), begin + loop.calls) if loop.calls else len(scheduler.timesteps)
    grids = [v.cpu().numpy().tobytes() for v in vars(scheduler).values() if isinstance(v, torch.Tensor) and v.ndim == 1]
    key = (
        type(scheduler),
        repr(sorted(scheduler.config.items(), key=str)),
        tuple(grids),
        begin,
        end,
        repr(loop.options),
    )
    with _one_thread:
        before = _timelines.pop(key, None)
        if before is not None:
            _timelines[key] = before  # what was read last goes last
            return before
    played = timeline(scheduler, begin, end, loop.options)
    played = played._replace(timetable=played.timetable._replace(solver=solver(scheduler)))
    with _one_thread:
        while len(_timelines) >= _MOST:
            del _timelines[next(iter(_timelines))]
        return _timelines.setdefault(key, played)


def solver(scheduler: Any) -> str:  # noqa: ANN401
    """The scheduler's class with the options that change what it does at the same sigmas."""
    options = {name: scheduler.config[name] for name in _SOLVING if scheduler.config.get(name) is not None}
    return f"{type(scheduler).__name__}({', '.join(f'{name}={value}' for name, value in options.items())})"
