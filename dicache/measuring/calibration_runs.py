"""The runs of a calibration, and what is read off them: every batch once uncached and once within every level. What the
checkpoint holds is not drawn again.

The first batch is begun before the rest is agreed to: its uncached run, and its run within the middle level, say how
long all of it will take (`dicache.measuring.calibration_plan`).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from dicache.api import enable
from dicache.config import Config
from dicache.controllers.planned import Planned
from dicache.defaults import for_profile
from dicache.errors import ProfileError
from dicache.fanout.worker import Worker
from dicache.fanout.workers import Workers
from dicache.files.checkpoint import Checkpoint, Entry
from dicache.measuring.calibration_plan import seconds_of
from dicache.measuring.prompt_runs import Drawer, Drawn, DrawOrder, Spent, text_of
from dicache.measuring.recording import Recorder
from dicache.models.conditioning import alike
from dicache.planning.gains import Gains
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.facts import LATENT_LOSS, LOSS, NEEDED, Facts
from dicache.promise.keep_budget import FixedLevel, within
from dicache.promise.metrics import Metric, loss, relative_error
from dicache.promise.profile import Profile, gain_arrays
from dicache.runtime.trace import Trace
from dicache.types import RunFacts, Timetable

SHORTEST = 6
"""Steps of a run that can be calibrated."""
NEGATIVE_CONDITIONS = "negative."
SECONDS = "seconds"
"""What a run took, of which nothing but the time that is said beforehand depends."""


class UncachedBatch(NamedTuple):
    """One batch, computing everything."""

    drawn: Drawn
    shown: Entry
    """What the run tells of itself: sigmas and guidance, size, solver, negative prompts."""
    timetable: Timetable


class PromptBatch(NamedTuple):
    indices: tuple[int, ...]
    name: str
    """In the checkpoint."""

    @property
    def uncached(self) -> str:
        return f"uncached-{self.name}"

    def within(self, level: float) -> str:
        return f"test-{self.name}-{float(level)!r}"


@dataclass(frozen=True)
class UncachedCell:
    """A batch to be drawn computing everything."""

    batch: PromptBatch
    order: DrawOrder

    def run(self, worker: Worker) -> tuple[UncachedBatch, Spent]:
        drawer = self.order.drawer(worker.pipe)
        with enable(worker.pipe, config=Config(Planned(0.0))) as enabled:
            drawn = drawer.draw(self.order.indices)
            trace, facts = enabled.trace, Recorder(enabled).facts
        assert trace is not None
        timetable, guidance = _timetable_and_guidance(trace, facts)
        shown = {
            "timetable": np.array([*timetable.sigmas, guidance]),
            "size": np.array(facts.size),
            "controls": np.frombuffer("\n".join(facts.controls).encode(), np.uint8),
            "solver": np.frombuffer(timetable.solver.encode(), np.uint8),
            SECONDS: np.array([drawer.seconds]),
            **{NEGATIVE_CONDITIONS + name: each.numpy() for name, each in facts.negative_conditions.items()},
        }
        return UncachedBatch(drawn, shown, timetable), drawer.spent


@dataclass(frozen=True)
class LevelCell:
    """A batch to be drawn within a level."""

    batch: PromptBatch
    order: DrawOrder
    level: float
    exact: Drawn
    untested: Profile
    metrics: Mapping[str, Metric]
    parts: Config | None = None
    """Of another composition than that of `enable`."""

    def run(self, worker: Worker) -> tuple[Entry, Spent]:
        drawer, exact = self.order.drawer(worker.pipe), self.exact
        demand = FixedLevel(self.level)
        if self.parts is None:
            config = for_profile(ProfileChoice((self.untested,), "named"), demand)
        else:
            config = replace(self.parts, controller=within(self.untested, demand))
        with enable(worker.pipe, config=config) as enabled:
            drawn = drawer.draw(self.order.indices)
        samples, trace = enabled.report().to_dict()["samples"], enabled.trace
        assert trace is not None
        losses = {
            "estimate": np.array([sample["estimated_error"] for sample in samples]),
            "work": (trace.executed / trace.uncached).numpy(),  # the denoiser's, which levels choose
            LATENT_LOSS: relative_error(drawn.latents, exact.latents).numpy(),
            SECONDS: np.array([drawer.seconds]),
        }
        for name, metric in self.metrics.items():
            assert drawn.images is not None and exact.images is not None
            losses[LOSS + name] = loss(name, metric, drawn.images, exact.images).numpy()
        return losses, drawer.spent


class CalibrationRuns:
    """Draws what the checkpoint does not hold yet, on workers."""

    workers: Workers
    drawer: Drawer
    checkpoint: Checkpoint
    levels: Sequence[float]
    metrics: Mapping[str, Metric]

    def __init__(
        self,
        workers: Workers,
        drawer: Drawer,
        checkpoint: Checkpoint,
        levels: Sequence[float],
        metrics: Mapping[str, Metric],
        parts: Config | None = None,
        gains: Gains | None = None,
    ) -> None:
        self.parts, self.gains = parts, gains
        """Of sites below the whole evaluation."""
        self.workers, self.drawer, self.checkpoint = workers, drawer, checkpoint
        self.levels, self.metrics = levels, metrics
        self.tick: Callable[[str], None] = lambda what: None
        self.entries: dict[str, Entry] = {}
        """Those there are, by name."""
        self.exact: dict[str, UncachedBatch] = {}
        """Uncached runs that are needed still, by batch."""

    def seconds(self, indices: Sequence[int], model: str) -> float | None:
        """What all runs of a prompt take, from two runs of the first batch; None where a checkpoint does not say."""
        batch, middle = self.batch(0, indices), len(self.levels) // 2
        if (shown := self._entry(batch.uncached)) is None:
            shown = self._uncached(batch).shown
        if (tested := self._entry(batch.within(self.levels[middle]))) is None:
            self._uncached(batch)
            tested = self._run(self._level_cell(batch, _untested(model, shown, self.gains), self.levels[middle]))
        if SECONDS not in shown or SECONDS not in tested:
            return None
        times = float(shown[SECONDS][0]), float(tested[SECONDS][0])
        timetable = self.exact[batch.name].timetable if batch.name in self.exact else None
        return seconds_of(*times, timetable, self.levels, middle, float(tested["work"].mean())) / len(indices)

    def batch(self, k: int, indices: Sequence[int]) -> PromptBatch:
        return PromptBatch(tuple(indices), f"{k}-{self._digest(indices)}")

    def undrawn(self, batches: Sequence[Sequence[int]]) -> int:
        """Samples that neither the checkpoint nor what was begun holds."""
        missing = 0
        for k, indices in enumerate(batches):
            batch = self.batch(k, indices)
            names = [batch.uncached, *map(batch.within, self.levels)]
            missing += sum(len(indices) for name in names if not (name in self.entries or self.checkpoint.has(name)))
        return missing

    def profile(self, batches: Sequence[Sequence[int]], model: str) -> Profile:
        """The tests must have the steps and the guidance of the first batch."""
        named = [self.batch(k, indices) for k, indices in enumerate(batches)]
        if self._entry(named[0].uncached) is None:
            self._uncached(named[0])
        untested = _untested(model, self.entries[named[0].uncached], self.gains)
        for batch in named:
            self._tick_resumed(batch)
        cells = [cell for batch in named for cell in self._undrawn_cells(batch, untested)]
        for cell, result in self.workers.each(cells):
            self._book(cell, result)
            if isinstance(cell, UncachedCell):
                self.workers.first(self._undrawn_cells(cell.batch, untested))
            self.tick("uncached" if isinstance(cell, UncachedCell) else "tests")
        shown = [self.entries[batch.uncached] for batch in named]
        lost = [self._losses(batch) for batch in named]
        facts = replace(untested.facts, negative_conditions=_shared(shown))
        tested = {key: np.concatenate([each[key] for each in lost]).astype(np.float32) for key in lost[0]}
        tested["levels"] = np.array(self.levels, dtype=np.float32)
        return Profile(facts, {**tested, **gain_arrays(self.gains)})

    def _undrawn_cells(self, batch: PromptBatch, untested: Profile) -> list[UncachedCell | LevelCell]:
        """What can be drawn of a batch: its levels, once it was drawn uncached."""
        missing = self._missing(batch)
        if batch.name in self.exact:
            cells = [self._level_cell(batch, untested, level) for level in missing]
            del self.exact[batch.name]  # the cells have it
            return list(cells)
        there = self._entry(batch.uncached) is not None and not missing
        return [] if there else [UncachedCell(batch, self.drawer.order(batch.indices))]

    def _missing(self, batch: PromptBatch) -> list[float]:
        """The levels that it was not drawn within."""
        return [level for level in self.levels if self._entry(batch.within(level)) is None]

    def _tick_resumed(self, batch: PromptBatch) -> None:
        """For what is not drawn again."""
        missing = self._missing(batch)
        shown = self._entry(batch.uncached) is not None and (not missing or batch.name in self.exact)
        for what in ["uncached"] * shown + ["tests"] * (len(self.levels) - len(missing)):
            self.tick(what)

    def _level_cell(self, batch: PromptBatch, untested: Profile, level: float) -> LevelCell:
        exact = self.exact[batch.name].drawn
        return LevelCell(batch, self.drawer.order(batch.indices), level, exact, untested, self.metrics, self.parts)

    def _uncached(self, batch: PromptBatch) -> UncachedBatch:
        """Of the first batch, drawn when it is first asked for."""
        if batch.name not in self.exact:
            self._run(UncachedCell(batch, self.drawer.order(batch.indices)))
        return self.exact[batch.name]

    def _run(self, cell: UncachedCell | LevelCell) -> Entry:
        return self._book(cell, self.workers.one(cell))

    def _book(self, cell: UncachedCell | LevelCell, result: tuple[Any, Spent]) -> Entry:
        """Keep what was drawn, in the checkpoint too."""
        made, spent = result
        self.drawer.book(spent)
        if isinstance(cell, UncachedCell):
            self.exact[cell.batch.name] = made
            name, entry = cell.batch.uncached, made.shown
        else:
            name, entry = cell.batch.within(cell.level), made
        if name not in self.entries:
            self.entries[name] = self.checkpoint.entry(name, lambda: entry)
        return self.entries[name]

    def _entry(self, name: str) -> Entry | None:
        """What there is of this name."""
        if name not in self.entries and self.checkpoint.has(name):
            self.entries[name] = self.checkpoint.entry(name, dict)
        return self.entries.get(name)

    def _losses(self, batch: PromptBatch) -> Entry:
        """What a batch loses within every level, (B, levels) each."""
        cells = [self.entries[batch.within(level)] for level in self.levels]
        return {key: np.stack([cell[key] for cell in cells], axis=1) for key in cells[0] if key != SECONDS}

    def _digest(self, indices: Sequence[int]) -> str:
        """Of the prompts of a batch, so that it is drawn again where they are others."""
        return hashlib.sha256(repr([text_of(self.drawer.prompts[i]) for i in indices]).encode()).hexdigest()[:12]


def _timetable_and_guidance(trace: Trace, facts: RunFacts) -> tuple[Timetable, float]:
    """Timetable and guidance of a run. Raises ProfileError where they cannot be known."""
    timetable, steps = facts.timetable, len(trace.records)
    if timetable is None or steps != len(timetable.sigmas) or steps < SHORTEST:
        raise ProfileError(
            f"only whole runs of {SHORTEST} steps or more can be calibrated, with a scheduler whose timetable is known."
        )
    if facts.guidance is None or len({frozenset(record.branches) for record in trace.records}) > 1:
        raise ProfileError("the run's guidance changed half-way: it cannot be calibrated.")
    return timetable, max(1.0, facts.guidance)


def _untested(model: str, shown: Entry, gains: Gains | None) -> Profile:
    """Of runs like this one, with no losses."""
    *sigmas, guidance = shown["timetable"].tolist()
    size = tuple(shown.get("size", np.zeros(0, int)).tolist())
    controls = tuple(shown["controls"].tobytes().decode().split()) if "controls" in shown else None
    facts = Facts(model, shown["solver"].tobytes().decode(), tuple(sigmas), guidance, size=size, controls=controls)
    facts = replace(facts, parts="" if gains is None else gains.parts)
    nothing = dict.fromkeys(NEEDED, np.zeros((0, 1), np.float32))
    return Profile(facts, {**nothing, "levels": np.ones(1, np.float32), **gain_arrays(gains)})


def _shared(shown: Sequence[Entry]) -> dict[str, tuple[float, ...]]:
    """What the negative prompts of all runs were, where it was the same for two prompts and more."""
    names = [key for key in shown[0] if key.startswith(NEGATIVE_CONDITIONS) and all(key in entry for entry in shown)]
    rows = {key: torch.from_numpy(np.concatenate([entry[key] for entry in shown])) for key in names}
    same = {key: each[0] for key, each in rows.items() if len(each) > 1 and bool(alike(each, each[0]).all())}
    return {key.removeprefix(NEGATIVE_CONDITIONS): tuple(row.tolist()) for key, row in same.items()}


def batches(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[k : k + size]) for k in range(0, len(indices), size)]
