"""Error curves: how far a site's value of step s is from that of step s + k, read off uncached runs.

    l1[s, k - 1, site] = |o_s - o_{s+k}|_1 / |o_{s+k}|_1          the mean over rows, branches and prompts
    l2[s, k - 1, site] = ||o_s - o_{s+k}|| / ||o_{s+k}||

Values are what a site remembers: a sublayer's output, what a block adds to its streams, a denoiser's output per branch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dicache.api import denoisers, enable
from dicache.config import Config
from dicache.controllers.interval import Interval
from dicache.errors import ScheduleError
from dicache.extension import residual_sums
from dicache.fanout.worker import Worker
from dicache.fanout.workers import Workers
from dicache.measuring.prompt_runs import Drawer, DrawOrder, Spent
from dicache.measuring.recording import CallRecord, LongHistory, Recorder
from dicache.models.identity import identity
from dicache.schedules.setting import Basis, Cell
from dicache.sites import Sites
from dicache.types import Site, Timetable


class Curves(NamedTuple):
    """(T, K, S) each, nan where step s + k is beyond the run's end."""

    l1: np.ndarray
    l2: np.ndarray
    size: np.ndarray
    """|o_s|_1, the mean over rows, branches and prompts, (T, S)."""


class UncachedRuns(NamedTuple):
    """What one uncached run of every prompt tells."""

    basis: Basis
    timetable: Timetable
    curves: Curves
    latents: Tensor
    """The final ones, (P, ...)."""


@dataclass(frozen=True)
class UncachedRun:
    """One batch of prompts to be drawn uncached, and watched. `run` raises ScheduleError where it does not tell its
    steps, or is not as many as asked for.
    """

    number: int
    order: DrawOrder
    sites: Sites
    selector: Mapping[str, Any]
    longest: int

    def run(self, worker: Worker) -> tuple["BatchSums", Spent]:
        drawer = self.order.drawer(worker.pipe)
        (denoiser,) = denoisers(worker.pipe).values()
        config = Config(Interval(1), approximators=(LongHistory(self.longest + 1),), sites=self.sites)
        with enable(worker.pipe, config=config) as cache, torch.no_grad():
            recorder = Recorder(cache)
            sums = _Sums(recorder, drawer.steps, self.longest, len(self.order.indices))
            with recorder.calls(denoiser, sums.add):
                latents = drawer.draw(self.order.indices).latents
            trace = cache.trace
        assert trace is not None
        uncached = float(trace.uncached.sum()) / sums.samples
        basis = sums.basis(identity(denoiser), dict(self.selector), uncached)
        curves = np.stack([*sums.sums, sums.count]), np.stack([sums.size, sums.seen])
        return BatchSums(basis, sums.timetable, *curves, latents), drawer.spent


class BatchSums(NamedTuple):
    """What one batch tells, to be added up over batches in their order."""

    basis: Basis
    timetable: Timetable
    gaps: np.ndarray
    """Sums of relative changes in L1 and in L2, and how many they are, (3, T, K, S)."""
    sizes: np.ndarray
    """Sum of what values are large, and how many they are, (2, T, S)."""
    latents: Tensor


def record(
    workers: Workers,
    drawer: Drawer,
    sites: Sites,
    selector: dict[str, Any],
    *,
    longest: int,
    batch: int,
    tick: Callable[[str, int, int], None],
) -> UncachedRuns:
    """Every prompt drawn uncached. Raises ScheduleError as `UncachedRun` does."""
    prompts, longest = len(drawer.prompts), min(longest, drawer.steps - 1)
    orders = [drawer.order(range(prompts)[start : start + batch]) for start in range(0, prompts, batch)]
    cells = [UncachedRun(number, order, sites, selector, longest) for number, order in enumerate(orders)]
    batches: list[BatchSums | None] = [None] * len(cells)
    done = 0
    for cell, (sums, spent) in workers.each(cells):
        batches[cell.number] = sums
        drawer.book(spent)
        done += len(cell.order.indices)
        tick("uncached runs", done, prompts)
    drawn = [sums for sums in batches if sums is not None]
    with np.errstate(invalid="ignore"):
        l1, l2, count = np.sum([sums.gaps for sums in drawn], axis=0)
        curves = Curves(l1 / count, l2 / count, _mean(*np.sum([sums.sizes for sums in drawn], axis=0)))
    return UncachedRuns(drawn[-1].basis, drawn[-1].timetable, curves, torch.cat([sums.latents for sums in drawn]))


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.array(total / np.maximum(count, 1))


class _Sums:
    """Over all calls of one run of so many samples."""

    def __init__(self, recorder: Recorder, steps: int, longest: int, samples: int) -> None:
        self.recorder, self.steps, self.longest, self.samples = recorder, steps, longest, samples
        self.sites: Sequence[Site] = recorder.sites
        shape = (steps, longest, len(self.sites))
        self.sums, self.count = np.zeros((2, *shape)), np.zeros(shape)
        self.size, self.seen = np.zeros((steps, shape[2])), np.zeros((steps, shape[2]))
        self.rows, self.macs = np.zeros(self.steps), np.zeros((self.steps, len(self.sites)))
        self.sigmas: dict[int, float] = {}

    def add(self, call: CallRecord) -> None:
        timetable, step = call.step.timetable, call.step
        if timetable is None:
            raise ScheduleError(
                f"the steps of this run cannot be read off its scheduler, so no schedule can be made for it: "
                f"{self.recorder.unread or 'nothing here steps one'}. Use other steps, or another scheduler."
            )
        if step.total != self.steps:
            raise ScheduleError(
                f"the scheduler makes {step.total} steps of the {self.steps}. Ask for as many as it makes."
            )
        self.timetable, self.sigmas[step.index] = timetable, step.sigma
        share = call.rows / self.samples
        self.rows[step.index] += share
        self.macs[step.index] += share * np.array(call.site_macs)
        for record in call.sites:
            for gap, value in enumerate(record.values[: self.longest + 1]):
                if value.steps_ago != gap:
                    break
                sums = residual_sums(value.output, record.values[0].output).double().cpu().numpy()
                self._add(step.index, record.site.index, gap, sums)

    def _add(self, step: int, site: int, gap: int, sums: np.ndarray) -> None:
        """`sums`, (R, 6), of the value `gap` steps before against that of this step."""
        if gap == 0:
            self.size[step, site] += sums[:, 1].sum()
            self.seen[step, site] += len(sums)
            return
        tiny = np.finfo(np.float64).tiny
        at = (step - gap, gap - 1, site)
        self.sums[0][at] += (sums[:, 0] / np.maximum(sums[:, 1], tiny)).sum()
        self.sums[1][at] += np.sqrt(sums[:, 2] / np.maximum(sums[:, 3], tiny)).sum()
        self.count[at] += len(sums)

    def basis(self, model: str, selector: dict[str, Any], uncached: float) -> Basis:
        """Rows of a site's calls cost alike at every step and in every branch, or count with their mean."""
        if set(self.sigmas) != set(range(self.steps)):
            raise ScheduleError(f"only {len(self.sigmas)} of {self.steps} steps ran. Search on whole runs.")
        costs = self.macs.sum(0) / self.rows.sum()
        cells = tuple(Cell(s.path, s.kind, float(c)) for s, c in zip(self.sites, costs, strict=True))
        sigmas = tuple(self.sigmas[i] for i in range(self.steps))
        rows = tuple(round(n) for n in self.rows)
        return Basis(model, self.timetable.solver, sigmas, selector, cells, rows, uncached)
