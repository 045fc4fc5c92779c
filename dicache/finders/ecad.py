"""ECAD (arXiv 2506.15682): evolve tables, NSGA-II over two objectives, the mean relative error of the final latent and
the share of the work. In the paper the first is a score of pictures: `Calibration(..., objective=score)`.

A genome holds a bit for every site of every step but the first, which always computes.

Unseeded it does not reach the simplest heuristics, so the first generation is made of other finders' schedules. The
published mutation leaves nearly all variation to crossover; here every child has about `flips` bits flipped.

Where the calibration has a `checkpoint`, `front.json` in it is the front so far. Killed, the same search goes on there:
the algorithm is deterministic, so the front is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dicache.errors import ScheduleError
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
"""The loss that evolution sees where there is none: it measures distances, and inf has no distance to inf."""


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

    def __post_init__(self) -> None:
        if self.generations < 1 or self.population < 4 or not self.flips > 0:
            raise ScheduleError(f"{self}: expected generations of 1, population of 4 or more, and flips above 0.")
        if self.seeded and not self.seeds:
            raise ScheduleError("there are no seeds. Give some finders, or seeded=False.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        """All that were measured."""
        seeds = self.first(measurements, seed) if self.seeded else None
        algorithm = self._algorithm(measurements, seeds, seed)
        seen: dict[bytes, Table] = {}
        for generation in range(self.generations):
            infills = algorithm.ask()
            if infills is None:  # mating gives nothing new: a small table was tried in all its forms
                break
            genomes = infills.get("X").astype(bool)
            tables = [self._table(measurements, genome) for genome in genomes]
            losses = np.minimum(measurements.losses(tables).mean(1), WORST)
            infills.set("F", np.stack([losses, measurements.basis.work(np.stack(tables))], axis=1))
            algorithm.tell(infills=infills)
            seen |= {table.tobytes(): table for table in tables}
            self._show(measurements, list(seen.values()), seed)
            measurements.calibration.tick("generations", generation + 1, self.generations)
        return list(seen.values())

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

    def _show(self, measurements: ScheduleMeasurements, tables: Sequence[Table], seed: int) -> None:
        """The front so far, on disk."""
        folder = measurements.checkpoint.folder
        if folder is not None:
            ParetoSet(tuple(self.schedules(measurements, tables, seed))).front().save(folder / "front.json")
