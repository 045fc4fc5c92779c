"""Simulated annealing, then hill climbing, over tables that execute equally much (BudCache, arXiv 2606.13496): what is
made least is the relative error of the final latent, the mean over the calibration prompts (the paper's is
squared, and then the worst prompt decides alone).

Annealing moves one computed step of one site to a skipped one at a time; a worse table is accepted with a probability
that falls with the logarithm of how much worse, and with time. Hill climbing tries all such moves and takes the best,
until none helps. A table that was tried is not run again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from dicache.errors import ScheduleError
from dicache.finders.base import Finder
from dicache.finders.dynamic_programming import DynamicProgramming
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.schedules.action_table import Table, affordable, computes
from dicache.types import Action

Masks = np.ndarray
"""(B, T) or (B, T, S) bool: what computes."""
WORKS = (0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the work that are searched where none is asked for."""


@dataclass(frozen=True)
class Annealing(Finder):
    name: ClassVar[str] = "annealing"
    trials: int = 200
    rounds: int = 20
    """Most rounds of hill climbing."""
    hot: float = 0.05
    cold: float = 1e-5
    fill: Action = Action.REUSE

    def __post_init__(self) -> None:
        if self.trials < 1 or self.rounds < 0 or not 0 < self.cold <= self.hot:
            raise ScheduleError(f"{self}: expected trials of 1 or more, rounds of 0 or more, and 0 < cold <= hot.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        family = DynamicProgramming(fill=self.fill).tables(measurements, cost, seed)
        work = measurements.basis.work(np.stack(family))
        starts = {}
        shares = WORKS if cost is None else (cost,)
        for share in shares:
            fitting = np.flatnonzero(affordable(work, share))
            if len(fitting):
                best = fitting[work[fitting].argmax()]
                starts[float(work[best])] = family[best]
        if not starts:
            least = f"{self.name} has nothing to begin from at {max(shares):g} of the work: {work.min():.3f} is least."
            raise ScheduleError(f"{least} Ask for a larger cost.")
        return [self._searched(measurements, computes(start), seed) for start in starts.values()]

    def _searched(self, measurements: ScheduleMeasurements, start: np.ndarray, seed: int) -> Table:
        def loss(masks: Masks) -> np.ndarray:
            tables = [measurements.filled(mask, self.fill) for mask in masks]
            return np.asarray(measurements.losses(tables).mean(1))

        heats = np.geomspace(self.hot, self.cold, self.trials)
        mask = anneal(start[None], loss, heats=heats, seed=seed, shared=True, first=1)[0]
        for _ in range(self.rounds):
            moved = list(swaps(mask))
            losses = loss(np.stack([mask, *moved]))
            if losses.argmin() == 0:
                break
            mask = moved[int(losses.argmin()) - 1]
        return measurements.filled(mask, self.fill)


def anneal(
    start: Masks,
    cost: Callable[[Masks], np.ndarray],
    *,
    heats: Sequence[float] | np.ndarray,
    seed: int,
    shared: bool,
    first: int,
) -> Masks:
    """The best masks found, row by row, or one for all rows if `shared` (then the mean cost counts), in one trial per
    heat. Every column computes as often as at the start, and the `first` steps always.
    """
    rng = np.random.default_rng(seed)
    best, best_cost = start.copy(), _joined(cost(start), shared)
    here, here_cost = best.copy(), best_cost.copy()
    for heat in heats:
        proposal = _moved(here, rng, shared, first)
        proposed = _joined(cost(proposal), shared)
        chance = -np.log(rng.uniform(size=1 if shared else len(start)))
        tiny = np.finfo(float).tiny
        accept = np.log(np.maximum(proposed, tiny) / np.maximum(here_cost, tiny)) < heat * chance
        here = np.where(_like(accept, here), proposal, here)
        here_cost = np.where(accept, proposed, here_cost)
        better = here_cost < best_cost
        best, best_cost = np.where(_like(better, here), here, best), np.where(better, here_cost, best_cost)
    return best


def _like(rows: np.ndarray, masks: Masks) -> np.ndarray:
    return rows.reshape(-1, *[1] * (masks.ndim - 1))


def _joined(cost: np.ndarray, shared: bool) -> np.ndarray:
    return np.full_like(cost, cost.mean()) if shared else cost


def _moved(masks: Masks, rng: np.random.Generator, shared: bool, first: int) -> Masks:
    """Every row (or all alike) with one computed step moved to a skipped place."""
    moved = masks.copy()
    for row in moved[:1] if shared else moved:
        columns = row.reshape(len(row), -1)
        free = np.flatnonzero(columns[first:].any(0) & ~columns.all(0))
        if len(free):
            column = columns[:, free[0] if len(free) == 1 else rng.choice(free)]
            off = rng.choice(np.flatnonzero(column[first:])) + first
            on = rng.choice(np.flatnonzero(~column))
            column[off], column[on] = False, True
    return np.broadcast_to(moved[:1], moved.shape).copy() if shared else moved


def swaps(mask: np.ndarray) -> Iterator[np.ndarray]:
    """All masks that differ from this one, (T, S), by one move within a site; the first step stays."""
    for site in range(mask.shape[1]):
        column = mask[:, site]
        for off, on in product(np.flatnonzero(column[1:]) + 1, np.flatnonzero(~column)):
            moved = mask.copy()
            moved[off, site], moved[on, site] = False, True
            yield moved
