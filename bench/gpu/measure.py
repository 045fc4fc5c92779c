"""One arm against the plain pipeline, in turns on one device.

Two runs of each arm that are not the same: the first is counted (executed MACs of the denoiser, waits of the host) and
warms up; the others are timed, in turns with the plain pipeline, from one synchronisation to the next, and the least of
each is kept. Nothing is counted while time is taken.

Waits on a GPU are what `torch.cuda.set_sync_debug_mode` reports: calls in which the host stood until the device was
done. On the CPU, where nothing waits, they are the places that would (`dicache.bench.harness.host_waits`). Both are per
run, beyond those of the plain run.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dicache.bench.gpu.arms import Arm, Plan, first_block_changes
from dicache.bench.gpu.pipelines import Shape, draw, twin
from dicache.bench.harness import host_waits
from dicache.bench.models.reference import counted_macs
from dicache.promise.metrics import relative_error

Install = Callable[[Any, str, bool], None]
"""Does something to a pipeline for a device, as offloading does, and is told whether it is the plain one."""


@dataclass(frozen=True)
class Row:
    """What the command writes of an arm; ratios are to the plain pipeline's run of the same batch."""

    arm: str
    batch: int
    steps: int
    seconds: float | None = None
    wall: float | None = None
    """Seconds over the plain seconds of the same turns."""
    work: float | None = None
    """Executed MACs over those of the plain run."""
    waits: int | None = None
    own: float | None = None
    """Seconds of the host inside dicache, over the plain seconds. On a device most of it runs beside the kernels."""
    peak_bytes: int | None = None
    """Most memory in use beyond the weights."""
    error: float | None = None
    """Relative L2 of the final latents."""
    failure: str | None = None


class Bench:
    """Every arm gets a twin of the pipeline that nobody has touched, and so does the plain run, which is measured when
    this is made. Without `counts` executed work is what dicache says of itself: nothing counts inside compiled code.
    """

    base: Any
    device: str
    turns: int
    install: Install | None
    counts: bool
    batch: int
    steps: int
    latents: Tensor
    macs: float
    waits: int
    seconds: float
    peak: int

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401
        shape: Shape,
        batch: int,
        steps: int,
        device: str,
        turns: int,
        install: Install | None = None,
        counts: bool = True,
    ) -> None:
        self.base, self.device, self.turns, self.install, self.counts = pipe, device, turns, install, counts
        self.arguments: dict[str, Any] = shape.arguments(batch, device, pipe.transformer.dtype)
        self.batch, self.steps = batch, steps
        self.plain: Any = self._made()
        with first_block_changes(self.plain.transformer) as changes:
            self.latents, self.macs, self.waits = self._counted(self.plain)
        self.plan: Plan = Plan(steps, tuple(changes))
        self.seconds, self.peak = self._timed(self.plain)

    def _made(self, *, plain: bool = True) -> Any:  # noqa: ANN401
        pipe = twin(self.base)
        if self.install is not None:
            self.install(pipe, self.device, plain)
        return pipe

    def row(self) -> Row:
        return Row("plain", self.batch, self.steps, self.seconds, 1.0, 1.0, 0, None, self.peak, 0.0)

    def expected(self) -> float:
        """Seconds that an arm may take."""
        return self.seconds * (2 + 2 * self.turns)

    def measure(self, arm: Arm) -> Row:
        """Whatever the arm raises becomes the row's failure."""
        try:
            return self._compared(arm)
        except Exception as error:  # a rival may fail in any way, and the others still count
            return Row(arm.name, self.batch, self.steps, failure=f"{type(error).__name__}: {error}"[:400])

    def _compared(self, arm: Arm) -> Row:
        pipe = self._made(plain=False)
        with arm.enter(pipe, self.plan) as cache:
            latents, macs, waits = self._counted(pipe)
            turns = [(self._timed(self.plain)[0], *self._timed(pipe)) for _ in range(self.turns)]
            plain, seconds, peak = (min(column) for column in zip(*turns, strict=True))
            trace = None if cache is None else cache.trace
        work = float(trace.executed.sum() / trace.uncached.sum()) if trace is not None and not self.counts else None
        return Row(
            arm.name,
            self.batch,
            self.steps,
            seconds,
            seconds / plain,
            macs / self.macs if self.counts else work,
            waits - self.waits if self.counts else None,
            None if trace is None else trace.overhead_seconds / plain,
            int(peak),
            float(relative_error(latents.float(), self.latents.float()).max()),
        )

    def _counted(self, pipe: Any) -> tuple[Tensor, float, int]:  # noqa: ANN401
        if not self.counts:
            return draw(pipe, self.arguments, self.steps), 0.0, 0
        with counted_macs(pipe) as macs, self._waits(pipe) as waits:
            latents = draw(pipe, self.arguments, self.steps)
        return latents, macs[0], waits[0]

    @contextmanager
    def _waits(self, pipe: Any) -> Iterator[list[int]]:  # noqa: ANN401
        waits = [0]
        if self.device == "cpu":
            with host_waits.counted(pipe) as syncs:
                yield waits
            waits[0] = syncs.waits
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits[0] = sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)

    def _timed(self, pipe: Any) -> tuple[float, int]:  # noqa: ANN401
        """Seconds, and the most bytes in use beyond what was there."""
        cuda = self.device != "cpu"
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else 0
        started = time.perf_counter()
        draw(pipe, self.arguments, self.steps)
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started, (torch.cuda.max_memory_allocated() - before if cuda else 0)
