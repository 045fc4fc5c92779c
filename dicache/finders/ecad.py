"""ECAD (arXiv 2506.15682): evolve tables, NSGA-II over two objectives, the mean relative error of the final latent and
the share of the work. A genome holds a bit for every site of every step but the first, which always computes.

Unseeded it does not reach the simplest heuristics, so the first generation is made of other finders' schedules. The
published mutation leaves nearly all variation to crossover; here every child has about `flips` bits flipped.

With a `checkpoint` every generation's measurements are kept as they are made, and `front.json` is the front so far.
Killed, the same search replays them and goes on: the algorithm is deterministic, so the front is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dicache.errors import ScheduleError
from dicache.files.checkpoint import Checkpoint, Entry
from dicache.finders.base import Finder
from dicache.finders.block_caching import BlockCaching
from dicache.finders.dynamic_programming import DynamicProgramming
from dicache.finders.fixed import FixedInterval
from dicache.finders.smoothcache import SmoothCache
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.schedules.action_table import Table, computes
from dicache.schedules.pareto import ParetoSet
from dicache.types import Action

WORST = 1e6
"""The error that evolution sees where there is none: it measures distances, and inf has no distance to inf."""


@dataclass(frozen=True)
class Ecad(Finder):
    name: ClassVar[str] = "ecad"
    measures: ClassVar[bool] = True
    generations: int = 30
    population: int = 24
    flips: float = 2.0
    fill: Action = Action.REUSE
    seeded: bool = True
    seeds: tuple[Finder, ...] = (FixedInterval(), SmoothCache(), BlockCaching(), DynamicProgramming())
    """Whose tables make the first generation, spread evenly over their work, after those that no other beats."""
    checkpoint: Path | None = None
    """A folder."""

    def __post_init__(self) -> None:
        if self.generations < 1 or self.population < 4 or not self.flips > 0:
            raise ScheduleError(f"{self}: expected generations of 1, population of 4 or more, and flips above 0.")
        if self.seeded and not self.seeds:
            raise ScheduleError("there are no seeds. Give some finders, or seeded=False.")
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", Path(self.checkpoint))

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        """All that were measured."""
        seeds = self.first(measurements, seed) if self.seeded else None
        algorithm = self._algorithm(measurements, seeds, seed)
        checkpoint = self._checkpoint(measurements, seed)
        seen: dict[bytes, Table] = {}
        for generation in range(self.generations):
            infills = algorithm.ask()
            if infills is None:  # mating gives nothing new: a small table was tried in all its forms
                break
            genomes = infills.get("X").astype(bool)
            tables = [self._table(measurements, genome) for genome in genomes]
            entry = checkpoint.entry(f"generation-{generation}", partial(_entry, measurements, genomes, tables))
            errors = np.minimum(self._errors(entry, genomes).mean(1), WORST)
            measurements.remember(tables, entry["errors"])
            infills.set("F", np.stack([errors, measurements.basis.work(np.stack(tables))], axis=1))
            algorithm.tell(infills=infills)
            seen |= {table.tobytes(): table for table in tables}
            self._show(measurements, list(seen.values()), seed)
            measurements.calibration.tick("generations", generation + 1, self.generations)
        return list(seen.values())

    def _errors(self, entry: Entry, genomes: np.ndarray) -> np.ndarray:
        """Of one generation, (N, P). Raises ScheduleError where the checkpoint's are those of other genomes."""
        if not {"genomes", "errors"} <= set(entry) or not np.array_equal(entry["genomes"], genomes):
            raise ScheduleError(f"{self.checkpoint} holds another search. Delete it, or give another checkpoint.")
        return np.asarray(entry["errors"])

    def first(self, measurements: ScheduleMeasurements, seed: int) -> list[Table]:
        """The first generation, as many as the population; what they skip is filled in as all of this search."""
        proposed = [table for finder in self.seeds for table in finder.tables(measurements, None, seed)]
        tables = [measurements.filled(computes(table), self.fill) for table in proposed]
        distinct = list({table.tobytes(): table for table in tables}.values())
        work = measurements.basis.work(np.stack(distinct))
        spread = [int(np.abs(work - w).argmin()) for w in np.linspace(work.min(), work.max(), 2 * self.population)]
        tried = [distinct[i] for i in dict.fromkeys(spread)]
        schedules = self.schedules(measurements, tried, seed)
        front = [s.table for s in ParetoSet(tuple(schedules)).front().members]
        beaten = [table for table in tried if not any(table is best for best in front)]
        return [*front, *beaten][: self.population]

    def _algorithm(self, measurements: ScheduleMeasurements, seeds: Sequence[Table] | None, seed: int) -> Any:  # noqa: ANN401
        try:
            from pymoo.algorithms.moo.nsga2 import NSGA2
            from pymoo.core.problem import Problem
            from pymoo.core.termination import NoTermination
            from pymoo.operators.crossover.pntx import PointCrossover
            from pymoo.operators.mutation.bitflip import BitflipMutation
            from pymoo.operators.sampling.rnd import BinaryRandomSampling
        except ImportError as error:
            raise ScheduleError("this search needs pymoo: pip install 'dicache[search]'.") from error
        genes = (measurements.basis.shape[0] - 1) * measurements.basis.shape[1]
        genomes = None if seeds is None else np.stack([~computes(table[1:]).ravel() for table in seeds])
        algorithm = NSGA2(
            pop_size=self.population,
            sampling=BinaryRandomSampling() if genomes is None else genomes,
            crossover=PointCrossover(prob=0.9, n_points=min(4, genes - 1)),
            mutation=BitflipMutation(prob=1.0, prob_var=min(0.5, self.flips / genes)),
            eliminate_duplicates=True,
        )
        problem = Problem(n_var=genes, n_obj=2, xl=0, xu=1, vtype=bool)
        return algorithm.setup(problem, termination=NoTermination(), seed=seed, verbose=False)

    def _table(self, measurements: ScheduleMeasurements, genome: np.ndarray) -> Table:
        steps, sites = measurements.basis.shape
        first = np.ones((1, sites), dtype=bool)
        return measurements.filled(np.concatenate([first, ~genome.reshape(steps - 1, sites)]), self.fill)

    def _checkpoint(self, measurements: ScheduleMeasurements, seed: int) -> Checkpoint:
        search = [self.name, seed, self.population, self.flips, int(self.fill), self.seeded, self.seeds]
        basis, calibration = measurements.basis, measurements.calibration
        model = [basis.model, basis.scheduler, list(basis.sigmas), measurements.sites]
        prompts = [calibration.digest, calibration.seed, calibration.call]
        return Checkpoint(self.checkpoint, [*search, *model, *prompts], ScheduleError)

    def _show(self, measurements: ScheduleMeasurements, tables: Sequence[Table], seed: int) -> None:
        """The front so far, on disk."""
        if self.checkpoint is not None:
            ParetoSet(tuple(self.schedules(measurements, tables, seed))).front().save(self.checkpoint / "front.json")


def _entry(measurements: ScheduleMeasurements, genomes: np.ndarray, tables: Sequence[Table]) -> Entry:
    return {"genomes": genomes, "errors": measurements.errors(tables)}
