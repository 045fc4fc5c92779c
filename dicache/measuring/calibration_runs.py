"""The runs of a calibration, and what is read off them: every batch once uncached and once within every level, of which
steps that several of these runs have in common are computed once. What the checkpoint holds is not drawn again.

The first batch is begun before the rest is agreed to: its uncached run, and its run within the middle level, say how
long all of it will take (`dicache.measuring.calibration_plan`).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from dicache.config import Config
from dicache.fanout.workers import Workers
from dicache.files.checkpoint import Checkpoint, Entry
from dicache.measuring.calibration_cells import (
    NEGATIVE_CONDITIONS,
    RAN,
    SECONDS,
    BatchCell,
    Begun,
    CellDrawn,
    PromptBatch,
    untested_profile,
)
from dicache.measuring.calibration_plan import TimedRun, seconds_of
from dicache.measuring.prompt_runs import Drawer, text_of
from dicache.models.conditioning import alike
from dicache.planning.gains import Gains
from dicache.promise.metrics import Metric
from dicache.promise.profile import Profile, gain_arrays


class CalibrationRuns:
    """Draws what the checkpoint does not hold yet, on workers."""

    workers: Workers
    drawer: Drawer
    checkpoint: Checkpoint
    levels: Sequence[float]
    metrics: Mapping[str, Metric]
    parts: Config | None
    gains: Gains | None

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
        self.begun: dict[str, Begun] = {}
        """The first batch, where it was begun here, by name."""

    def seconds(self, indices: Sequence[int], model: str) -> float | None:
        """What all runs of a prompt take, from two runs of the first batch; None where a checkpoint does not say."""
        batch, middle = self.batch(0, indices), len(self.levels) // 2
        level, timetable = self.levels[middle], None
        if self._entry(batch.uncached) is None or self._entry(batch.within(level)) is None:
            drawn = self.workers.one(self._cell(batch, model, None, [level]))
            self._book(batch, drawn)
            self.begun, timetable = {batch.name: drawn.begun}, drawn.begun.timetable
        shown, tested = self.entries[batch.uncached], self.entries[batch.within(level)]
        if SECONDS not in shown or RAN not in tested:
            return None
        uncached = TimedRun(float(shown[SECONDS][0]), 1.0, 1.0)
        within = TimedRun(float(tested[SECONDS][0]), float(tested["work"].mean()), float(tested[RAN][0]))
        return seconds_of(uncached, within, timetable, self.levels, middle) / len(indices)

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
        all_of_them = [self.batch(k, indices) for k, indices in enumerate(batches)]
        first = all_of_them[0]
        for batch in all_of_them:
            self._tick_resumed(batch)
        if self._entry(first.uncached) is None:
            self._draw([first], model, None)
        untested = untested_profile(model, self.entries[first.uncached], self.gains)
        self._draw(all_of_them, model, untested)
        shown = [self.entries[batch.uncached] for batch in all_of_them]
        lost = [self._losses(batch) for batch in all_of_them]
        facts = replace(untested.facts, negative_conditions=_shared(shown))
        tested = {key: np.concatenate([each[key] for each in lost]).astype(np.float32) for key in lost[0]}
        tested["levels"] = np.array(self.levels, dtype=np.float32)
        return Profile(facts, {**tested, **gain_arrays(self.gains)})

    def _draw(self, batches: Sequence[PromptBatch], model: str, untested: Profile | None) -> None:
        """What is missing of these batches, a cell each."""

        def cells() -> Iterator[BatchCell]:
            for batch in batches:
                levels = self._missing(batch)
                if levels or self._entry(batch.uncached) is None:
                    yield self._cell(batch, model, untested, levels)

        for cell, drawn in self.workers.each(cells(), self.tick):
            self._book(cell.batch, drawn)
            if not self.workers.alone:  # there, nobody heard of its runs
                for what in ["uncached"] * (cell.begun is None) + ["tests"] * len(cell.levels):
                    self.tick(what)

    def _cell(self, batch: PromptBatch, model: str, untested: Profile | None, levels: Sequence[float]) -> BatchCell:
        begun = self.begun.pop(batch.name, None)
        return BatchCell(
            batch,
            self.drawer.order(batch.indices),
            tuple(levels),
            self.metrics,
            untested,
            model,
            self.parts,
            self.gains,
            None if begun is None else (begun, self.entries[batch.uncached]),
            first=untested is None,
        )

    def _missing(self, batch: PromptBatch) -> list[float]:
        """The levels that it was not drawn within."""
        return [level for level in self.levels if self._entry(batch.within(level)) is None]

    def _tick_resumed(self, batch: PromptBatch) -> None:
        """For what is not drawn again."""
        missing = self._missing(batch)
        shown = self._entry(batch.uncached) is not None and (not missing or batch.name in self.begun)
        for what in ["uncached"] * shown + ["tests"] * (len(self.levels) - len(missing)):
            self.tick(what)

    def _book(self, batch: PromptBatch, drawn: CellDrawn) -> None:
        """Keep what was drawn, in the checkpoint too."""
        self.drawer.book(drawn.spent)
        named = {batch.uncached: drawn.uncached, **{batch.within(k): entry for k, entry in drawn.tested.items()}}
        for name, entry in named.items():
            if self._entry(name) is None:
                self.entries[name] = self.checkpoint.entry(name, partial(dict, entry))

    def _entry(self, name: str) -> Entry | None:
        """What there is of this name."""
        if name not in self.entries and self.checkpoint.has(name):
            self.entries[name] = self.checkpoint.entry(name, dict)
        return self.entries.get(name)

    def _losses(self, batch: PromptBatch) -> Entry:
        """What a batch loses within every level, (B, levels) each."""
        cells = [self.entries[batch.within(level)] for level in self.levels]
        named = [key for key in cells[0] if key not in (SECONDS, RAN)]
        return {key: np.stack([cell[key] for cell in cells], axis=1) for key in named}

    def _digest(self, indices: Sequence[int]) -> str:
        """Of the prompts of a batch, so that it is drawn again where they are others."""
        return hashlib.sha256(repr([text_of(self.drawer.prompts[i]) for i in indices]).encode()).hexdigest()[:12]


def _shared(shown: Sequence[Entry]) -> dict[str, tuple[float, ...]]:
    """What the negative prompts of all runs were, where it was the same for two prompts and more."""
    names = [key for key in shown[0] if key.startswith(NEGATIVE_CONDITIONS) and all(key in entry for entry in shown)]
    rows = {key: torch.from_numpy(np.concatenate([entry[key] for entry in shown])) for key in names}
    same = {key: each[0] for key, each in rows.items() if len(each) > 1 and bool(alike(each, each[0]).all())}
    return {key.removeprefix(NEGATIVE_CONDITIONS): tuple(row.tolist()) for key, row in same.items()}


def batches(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[k : k + size]) for k in range(0, len(indices), size)]
