"""What finders search on: a pipeline, its sites, and calibration prompts whose uncached runs are known. Whatever
several finders need is measured once, when it is first asked for:

    basis, timetable  the model, its sites and their MACs, the steps
    curves            how far every site's value is from what it was k steps before, on uncached runs
    sensitivity       what is left at the end of one stale site at one step
    errors            what given tables lose from end to end, each on every prompt; the same table is never run twice

With a `checkpoint` every batch of errors is kept in a folder as it is drawn. Finders are deterministic: killed, the
same search draws the uncached runs again and then takes from the folder what it had measured. Runs can be handed to
workers; what is in a batch does not depend on how many there are.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from dicache.api import denoisers, enable
from dicache.approximators.fitted.about import described
from dicache.approximators.fitted.coefficients import Fitted
from dicache.config import Config
from dicache.controllers.interval import Interval
from dicache.errors import FittedError, ScheduleError
from dicache.fanout.workers import Executors, Workers, resuming
from dicache.files.checkpoint import Checkpoint, Entry
from dicache.files.content import digest_of
from dicache.measuring.error_curves import Curves, UncachedRuns, record
from dicache.measuring.prompt_runs import Drawer, Prompt, misuse, text_of, without_encoder
from dicache.measuring.recording import Recorder
from dicache.measuring.schedule_cells import Asked, TablesCell
from dicache.measuring.slopes_along_run import FitCell, SlopesAlongRun
from dicache.runtime.evidence import guess_cost
from dicache.schedules.action_table import FILLS, NEEDS, Table, repaired
from dicache.schedules.setting import Basis, config_of
from dicache.sites import Evaluation, Sites
from dicache.types import Action, Timetable


def _silent(what: str, done: int, total: int) -> None: ...


@dataclass(eq=False)
class Calibration:
    """Prompts, and how they are drawn. Finders see nothing else. Measurements of it are kept with it."""

    prompts: Sequence[Prompt]
    steps: int
    seed: int = 0
    """Prompt k has the noise of seed + k."""
    batch: int = 8
    """Samples drawn at once."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the pipeline (guidance scale, negative prompt, size), as they will be given later."""
    longest: int = 8
    """Longest gap, in steps, of the error curves."""
    tick: Callable[[str, int, int], None] = _silent
    """Called with what is being measured, how much of it is done, and how much there is."""
    checkpoint: str | Path | None = None
    """A folder for what is measured of schedules: killed, the same search goes on there."""
    measurements: dict[tuple[int, str], "ScheduleMeasurements"] = field(default_factory=dict, init=False, repr=False)
    """Never handed on to a copy by `dataclasses.replace`, which may have other prompts or steps."""

    def __post_init__(self) -> None:
        if wrong := misuse(self.prompts, self.call):
            raise ScheduleError(wrong)
        if not len(self.prompts):
            raise ScheduleError(f"prompts is {self.prompts!r}. Expected a list of one or more prompts.")
        if self.steps < 2 or self.batch < 1 or self.longest < 1:
            raise ScheduleError(
                f"steps={self.steps}, batch={self.batch}, longest={self.longest}: expected 2, 1 and 1 or more."
            )

    def on(self, pipe: Any, sites: Sites) -> "ScheduleMeasurements":  # noqa: ANN401
        """What is measured of one pipeline and selection of sites; the same object every time."""
        key = (id(pipe), repr(sites))
        if key not in self.measurements:
            self.measurements[key] = ScheduleMeasurements(pipe, sites, self)
        return self.measurements[key]

    @property
    def digest(self) -> str:
        return sha256("\n".join(map(text_of, self.prompts)).encode()).hexdigest()


class ScheduleMeasurements:
    """Raises ScheduleError for sites that no schedule can name, or a pipeline with several denoisers."""

    pipe: Any
    sites: Sites
    calibration: Calibration
    denoiser: nn.Module
    workers: Workers

    def __init__(self, pipe: Any, sites: Sites, calibration: Calibration) -> None:  # noqa: ANN401
        self.pipe, self.sites, self.calibration = pipe, sites, calibration
        modules = denoisers(pipe)
        if len(modules) != 1 or isinstance(pipe, nn.Module):
            raise ScheduleError(f"a schedule needs a pipeline with one denoiser; this {type(pipe).__name__} is none.")
        (self.denoiser,) = modules.values()
        try:
            self.selector: dict[str, Any] = described(sites)
        except FittedError as error:
            raise ScheduleError(
                f"{sites} cannot be scheduled. Use Evaluation(), Spans(), Tail(), Sublayers() or Skips()."
            ) from error
        if wrong := without_encoder(pipe, calibration.prompts):
            raise ScheduleError(wrong)
        drawn = (pipe, list(calibration.prompts), calibration.steps, calibration.seed, calibration.call)
        self.drawer: Drawer = Drawer(*drawn, images=False)
        self.workers = Workers(pipe, None, resuming(calibration.checkpoint))
        """What is measured is handed to them; here, until `handing_out`."""
        self.losses: dict[Asked, float] = {}
        self.slopes: dict[tuple[bytes, float], SlopesAlongRun] = {}
        """What was fitted along runs, by table and ridge."""
        self.coefficients: dict[tuple[Hashable, bytes], tuple[Fitted, np.ndarray]] = {}
        """And what a finder made of it, with the errors of those runs: by finder and table."""
        self.prices: dict[Fitted, Basis] = {}

    @property
    def prompts(self) -> int:
        return len(self.calibration.prompts)

    @cached_property
    def _uncached(self) -> UncachedRuns:
        options = {"longest": self.calibration.longest, "batch": self.calibration.batch}
        return record(self.workers, self.drawer, self.sites, self.selector, tick=self.calibration.tick, **options)

    @contextmanager
    def handing_out(self, pipe: Any, executor: Executors | None) -> Iterator[None]:  # noqa: ANN401
        """While it lasts, runs are handed to the executor's workers; `pipe` is the pipeline, or makes it."""
        before = self.workers
        with Workers(self.pipe if executor is None else pipe, executor, before.resume) as self.workers:
            try:
                yield
            finally:
                self.workers = before

    @property
    def basis(self) -> Basis:
        return self._uncached.basis

    @property
    def timetable(self) -> Timetable:
        return self._uncached.timetable

    @property
    def curves(self) -> Curves:
        return self._uncached.curves

    @property
    def reference(self) -> Tensor:
        """The uncached final latents, (P, ...)."""
        return self._uncached.latents

    def fit(self, tables: Sequence[Table], ridge: float) -> list[SlopesAlongRun]:
        """Slopes along the runs of these tables, on the prompts that are drawn at once."""
        order = self.drawer.order(range(min(self.prompts, self.calibration.batch)))
        missing = [table for table in tables if (table.tobytes(), ridge) not in self.slopes]
        for cell, (run, spent) in self.workers.each([FitCell(order, self.basis, table, ridge) for table in missing]):
            self.drawer.book(spent)
            self.slopes[cell.table.tobytes(), ridge] = run
        return [self.slopes[table.tobytes(), ridge] for table in tables]

    @property
    def inside_denoiser(self) -> bool:
        """Whether the sites are parts of an evaluation."""
        return type(self.sites) is not Evaluation

    def priced(self, fitted: Fitted | None) -> Basis:
        """The basis with what these coefficients multiply, which counts as work too."""
        if fitted is None or not fitted.approximator().multiplies:
            return self.basis
        if fitted not in self.prices:
            self.prices[fitted] = self._priced(fitted)
        return self.prices[fitted]

    def _priced(self, fitted: Fitted) -> Basis:
        approximator = fitted.approximator()
        config = Config(Interval(1), approximators=(approximator,), probe=fitted.probe, sites=self.sites)
        with enable(self.pipe, config=config) as cache:
            self.drawer.draw([0])
            booked = Recorder(cache).booked_macs
        cells = [cell._replace(guess=booked[guess_cost(approximator, cell.path)]) for cell in self.basis.cells]
        return replace(self.basis, cells=tuple(cells))

    def errors(
        self, tables: Sequence[Table], fitted: Fitted | None = None, *, prompts: int | None = None
    ) -> np.ndarray:
        """||x - x_ref|| / ||x_ref|| of every table on every prompt (or the first so many), (N, P); inf where x is not
        finite.
        """
        self.prepare([(tables, fitted)], prompts)
        named = [repaired(table).tobytes() for table in tables]
        return np.array([[self.losses[fitted, name, p] for p in range(prompts or self.prompts)] for name in named])

    def prepare(self, asked: Sequence[tuple[Sequence[Table], Fitted | None]], prompts: int | None = None) -> None:
        """Measure what `errors` will be asked for, all of it handed out at once."""
        every = prompts or self.prompts
        total = sum(len(self._missing(tables, fitted, every)) for tables, fitted in asked)
        cells = (cell for tables, fitted in asked for cell in self._cells(tables, fitted, every))
        drawn = self._drawn_here(cells) if self.workers.alone else self._handed_out(cells)
        for done in accumulate(len(cell.keys) for cell in drawn):
            self.calibration.tick("schedules", done, total)

    def _missing(self, tables: Sequence[Table], fitted: Fitted | None, prompts: int) -> dict[Asked, Table]:
        named = [(done.tobytes(), done) for done in map(repaired, tables)]
        runs = {(fitted, name, p): done for name, done in named for p in range(prompts)}
        return {key: done for key, done in runs.items() if key not in self.losses}

    def _cells(self, tables: Sequence[Table], fitted: Fitted | None, prompts: int) -> Iterator[TablesCell]:
        """Batches of what was not measured: a table and a prompt a sample."""
        missing, size = list(self._missing(tables, fitted, prompts).items()), self.calibration.batch
        for start in range(0, len(missing), size):
            keys, some = zip(*missing[start : start + size], strict=True)
            order = self.drawer.order([p for *_, p in keys])
            config = config_of(self.basis, np.stack(some), fitted=fitted)
            yield TablesCell(f"errors-{self._named(keys)}", keys, order, config, self.reference[list(order.indices)])

    def _drawn_here(self, cells: Iterable[TablesCell]) -> Iterator[TablesCell]:
        for cell in cells:
            self._take(cell, partial(self._played, cell))
            yield cell

    def _handed_out(self, cells: Iterable[TablesCell]) -> Iterator[TablesCell]:
        resumed = []

        def waiting() -> Iterator[TablesCell]:
            for cell in cells:
                if self.checkpoint.has(cell.name):
                    self._take(cell, dict)
                    resumed.append(cell)
                else:
                    yield cell

        for cell, (entry, spent) in self.workers.each(waiting()):
            self.drawer.book(spent)
            self._take(cell, partial(dict, entry))
            yield cell
        yield from resumed

    def _take(self, cell: TablesCell, make: Callable[[], Entry]) -> None:
        errors = self.checkpoint.entry(cell.name, make)["errors"]
        self.losses |= dict(zip(cell.keys, errors.tolist(), strict=True))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Of this model, its steps and sites, and these prompts, whatever is searched. Raises ScheduleError for a
        folder of others, or one that cannot be used.
        """
        calibration, basis = self.calibration, self.basis
        model = [basis.model, basis.scheduler, list(basis.sigmas), self.sites]
        folder = None if calibration.checkpoint is None else Path(calibration.checkpoint)
        return Checkpoint(folder, [*model, calibration.digest, calibration.seed, calibration.call], ScheduleError)

    def _named(self, batch: Sequence[Asked]) -> str:
        """By what is in it; nothing where nothing is kept."""
        if self.checkpoint.folder is None:
            return ""
        fitted = None if batch[0][0] is None else [batch[0][0].about, batch[0][0].coefficients]
        return digest_of([fitted, [[name, prompt] for _, name, prompt in batch]])

    def _played(self, cell: TablesCell) -> Entry:
        """One batch, drawn here."""
        entry, spent = self.workers.one(cell)
        self.drawer.book(spent)
        return dict(entry)

    @cached_property
    def sensitivity(self) -> np.ndarray:
        """(T, S): squared final relative error that one step's stale value leaves, over its own squared relative change
        (`curves.l2`); 0 for the first step, which cannot be stale. The mean over at most 4 prompts.
        """
        steps, sites = self.basis.shape
        tables = np.zeros((steps - 1, sites, steps, sites), dtype=np.uint8)
        for t in range(1, steps):
            tables[t - 1, np.arange(sites), t, np.arange(sites)] = Action.REUSE
        left = self.errors(list(tables.reshape(-1, steps, sites)), prompts=min(4, self.prompts))
        change = self.curves.l2[:-1, 0]
        weight = (left**2).mean(1).reshape(steps - 1, sites) / np.maximum(change**2, 1e-24)
        return np.concatenate([np.zeros((1, sites)), weight])

    def filled(self, mask: np.ndarray, fill: Action = Action.REUSE) -> Table:
        """A table from what computes, (T, S) bool: cells that skip get `fill`, or reuse where it needs more values.
        Raises ScheduleError for a `fill` that puts nothing in the place of a value.
        """
        if fill not in FILLS:
            raise ScheduleError(f"fill is {fill!r}. Expected one of {', '.join(f.name for f in FILLS)}.")
        mask = mask.copy()
        mask[0] = True
        stored = mask.cumsum(0) - mask
        skipped = np.where(stored >= NEEDS[fill], fill, Action.REUSE)
        return np.where(mask, Action.COMPUTE, skipped).astype(np.uint8)
