"""What an arm costs beside its work: wall time, memory, waits of the host, and the controller's own time.

One value per arm, the one whose work is nearest one half, on one batch of captions. Nothing is counted while time is
taken: the MAC counter taxes small operations. The arm and the uncached pipeline draw in turns, and the least seconds of
each count, so that both saw the machine at its best. Searched schedules are no method a user could run and are left
out.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxPipeline

from dicache.bench.arms.arm import Arm
from dicache.bench.harness import host_waits, live_bytes
from dicache.bench.harness.measure import Point
from dicache.bench.models.reference import Setting, draw_batch, fresh
from dicache.cache import Cache

TURNS = 2
NEAR = 0.5


@dataclass(frozen=True)
class Cost:
    """At one value of one arm's knob; `failure` says why there is nothing."""

    arm: str
    kind: str
    knob: str
    value: Any
    work: float
    """Executed MACs over those of the uncached run, from the sweep."""
    time: float | None = None
    """Seconds over those of the uncached run."""
    own_time: float | None = None
    """Seconds dicache spent outside the denoiser's modules, over the arm's seconds; None for arms without dicache."""
    cache_bytes: int | None = None
    waits: float | None = None
    """Times per step that the host would wait for a device, beyond those of the uncached run."""
    failure: str | None = None

    @property
    def unexplained(self) -> float | None:
        """Time that executed work does not explain, over the seconds of the uncached run."""
        return None if self.time is None else self.time - self.work


@dataclass(frozen=True)
class Drawing:
    """A pipeline, ready to draw in one way, and its memory before anything was prepared."""

    pipe: FluxPipeline
    setting: Setting
    captions: Sequence[str]
    bytes_before: int
    cache: Cache | None = None

    def seconds(self) -> float:
        started = time.perf_counter()
        self.draw()
        return time.perf_counter() - started

    def draw(self) -> None:
        draw_batch(self.pipe, list(self.captions), 0, self.setting)

    def own_seconds(self) -> float | None:
        """Of the last run."""
        trace = None if self.cache is None else self.cache.trace
        return None if trace is None else trace.overhead_seconds

    def bytes(self) -> int:
        with live_bytes.at_last_call(self.pipe, self.setting.steps * self.setting.calls_per_step) as readings:
            self.draw()
        return readings[0] - self.bytes_before

    def waits(self) -> float:
        """Per step."""
        with host_waits.counted(self.pipe) as counter:
            self.draw()
        return counter.waits / self.setting.steps


class Meter:
    """Holds arms against the uncached pipeline, on the setting's first batch of captions."""

    setting: Setting
    captions: list[str]
    bytes: int
    waits: float

    def __init__(self, captions: Sequence[str], setting: Setting) -> None:
        self.setting, self.captions = setting, list(captions[: setting.batch])
        pipe = fresh(setting)
        self.uncached: Drawing = Drawing(pipe, setting, self.captions, live_bytes.live_bytes())
        with torch.no_grad():
            self.bytes, self.waits = self.uncached.bytes(), self.uncached.waits()

    def cost(self, arm: Arm, point: Point) -> Cost:
        """Whatever the arm raises becomes the failure, with its reason."""
        assert point.work is not None
        named = (arm.name, arm.kind, arm.knob, point.value, point.work)
        try:
            with torch.no_grad(), self._prepared(arm, point.value) as drawing:
                cache_bytes, waits = drawing.bytes() - self.bytes, drawing.waits() - self.waits
                times, own = self._in_turns(drawing)
        except Exception as error:  # as in `Comparison.point`
            return Cost(*named, failure=f"{type(error).__name__}: {error}")
        return Cost(*named, time=times, own_time=own, cache_bytes=cache_bytes, waits=waits)

    @contextmanager
    def _prepared(self, arm: Arm, value: Any) -> Iterator[Drawing]:  # noqa: ANN401
        pipe = fresh(self.setting)
        before = live_bytes.live_bytes()
        if arm.cache is None:
            with arm.enter(pipe, value, self.setting) as setting:
                yield Drawing(pipe, setting, self.captions, before)
        else:
            with arm.cache(pipe, value, self.setting) as cache:
                yield Drawing(pipe, self.setting, self.captions, before, cache)

    def _in_turns(self, drawing: Drawing) -> tuple[float, float | None]:
        """The arm's least seconds over the uncached pipeline's, and dicache's share of the arm's."""
        turns = [(self.uncached.seconds(), drawing.seconds(), drawing.own_seconds()) for _ in range(TURNS)]
        _, seconds, own = min(turns, key=lambda turn: turn[1])
        return seconds / min(turn[0] for turn in turns), None if own is None else own / seconds


def at_half_work(points: Sequence[Point]) -> Point | None:
    """The point whose work is nearest one half; None if none ran."""
    ran = [point for point in points if point.work is not None]
    return min(ran, key=lambda point: abs(point.work - NEAR), default=None)  # type: ignore[operator]
