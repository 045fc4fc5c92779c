"""A greedy order of removal: one search, and schedules for every budget that lie one in another (the idea of layer
pruning on demand, arXiv 2106.09216, where layers are removed one at a time by what their loss costs).

From everything computed on, the cell (step, site) is taken out whose removal adds least to the final error for every
MAC that it saves, measured from end to end on what was taken out before. What a cell added when it was last tried
is nearly a lower bound of what it adds later, so only the most promising ones are tried again.

As in the paper whole layers are removed with `columns=True, fill=Action.ZERO` on `Spans(1)`: a block adds nothing from
the second step on. A head for what is left is `dicache.fit(kind="innovation")`.

An order that follows a few captions for thirty removals fits them. With `prices="law"` steps are taken out by what the
law of errors says (`dicache.planning.law_plan`), all sites at once, and nothing is tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

import numpy as np

from dicache.errors import ScheduleError
from dicache.finders.base import Finder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.planning.law_plan import plan_of
from dicache.schedules.action_table import Table
from dicache.types import Action


@dataclass(frozen=True)
class Nested(Finder):
    name: ClassVar[str] = "nested"
    measures: ClassVar[bool] = True
    width: int = 6
    """How many cells are tried before one is taken out."""
    at_once: int = 1
    """How many are taken out at a time: more is faster, and coarser."""
    least: float = 0.15
    """Share of the work at which the order ends where no cost is asked for; else it ends there."""
    fill: Action = Action.REUSE
    prices: Literal["measured", "law"] = "measured"
    columns: bool = False
    """Whether a site is taken out of all steps but the first at once, as a layer is."""

    def __post_init__(self) -> None:
        if self.prices not in ("measured", "law"):
            raise ScheduleError(f"prices is {self.prices!r}. Expected 'measured' or 'law'.")
        if not 1 <= self.at_once <= self.width or not 0 < self.least < 1:
            raise ScheduleError(f"{self}: expected 1 <= at_once <= width, and least above 0 and below 1.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        """From all computed to least: of every two the later computes where the earlier does, or less."""
        if self.prices == "law":
            return self._by_law(measurements)
        masks = [np.ones(measurements.basis.shape, dtype=bool)]
        saved = np.array(measurements.basis.rows)[:, None] * np.array([c.macs for c in measurements.basis.cells])
        saved[0] = saved[1:].sum(0)  # the first step stays: its place stands for a whole column
        price = np.maximum(saved, 1.0)
        steps = range(1) if self.columns else range(1, len(saved))
        added = self._added(measurements, masks[0], list(product(steps, range(saved.shape[1]))))
        least = self.least if cost is None else cost
        while added and measurements.basis.work(measurements.filled(masks[-1], self.fill)) > least:
            cheapest = sorted(added, key=lambda cell: added[cell] / price[cell])[: self.width]
            added |= self._added(measurements, masks[-1], cheapest)
            mask = masks[-1]
            for cell in sorted(cheapest, key=lambda cell: added[cell] / price[cell])[: self.at_once]:
                mask = _without(mask, cell)
                del added[cell]
            masks.append(mask)
        return [measurements.filled(mask, self.fill) for mask in masks]

    def _by_law(self, measurements: ScheduleMeasurements) -> Sequence[Table]:
        """The first two steps and the last stay: a line needs two, and the output turns fastest at the end."""
        plan, (steps, sites) = plan_of(measurements.timetable, longest=8, last=1), measurements.basis.shape
        ways = [list(range(steps))]
        while len(ways[-1]) > max(3, self.least * steps):
            without = ([i for i in ways[-1] if i != out] for out in ways[-1][2:-1])
            ways.append(min(without, key=plan.left_of))
        masks = np.zeros((len(ways), steps, sites), dtype=bool)
        for mask, way in zip(masks, ways, strict=True):
            mask[way] = True
        return [measurements.filled(mask, self.fill) for mask in masks]

    def _added(
        self, measurements: ScheduleMeasurements, mask: np.ndarray, cells: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], float]:
        """To the error, the mean over the prompts, by taking out each of the cells."""
        tried = [mask, *(_without(mask, cell) for cell in cells)]
        losses = measurements.losses([measurements.filled(m, self.fill) for m in tried]).mean(1)
        return {cell: float(loss - losses[0]) for cell, loss in zip(cells, losses[1:], strict=True)}


def _without(mask: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    """The mask, (T, S), less one cell; less a whole column but for its first step where the cell is of that."""
    step, site = cell
    mask = mask.copy()
    mask[slice(step, step + 1) if step else slice(1, None), site] = False
    return mask
