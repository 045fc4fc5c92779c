"""What a finder is: it proposes tables, and coefficients where cells are corrected. Which table is the answer is
decided here, for all finders alike, by work known to the MAC and by errors measured from end to end on the calibration
prompts.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np

from dicache._version import __version__
from dicache.approximators.fitted.coefficients import Fitted
from dicache.errors import DicacheWarning, ScheduleError
from dicache.fanout.workers import Executors, is_factory
from dicache.finders.asked import check_asked
from dicache.measuring.schedule_measurements import Calibration, ScheduleMeasurements
from dicache.schedules.action_table import Table, affordable, computes, repaired
from dicache.schedules.objective import as_objective
from dicache.schedules.pareto import ParetoSet
from dicache.schedules.schedule import Schedule
from dicache.schedules.setting import Origin
from dicache.sites import Sites
from dicache.types import Action

MOST = 32
"""Tables that are measured only to choose from them; more are thinned, evenly by their work."""


class Finder(ABC):
    name: ClassVar[str]
    measures: ClassVar[bool] = False
    """Whether the tables it proposes were measured on the way, so that all of them are chosen from."""
    fits: ClassVar[bool] = False
    """Whether its coefficients belong to one table each, so that no file can hold its front."""

    @abstractmethod
    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        """Candidates, (T, S) each. `cost` is the share of the work that is wanted; None for the whole range. Raises
        ScheduleError for sites that it cannot be asked for, before anything is measured.
        """

    @property
    def fitted(self) -> Fitted | None:
        """What cells of all tables are corrected with, and what is executed for it."""
        return None

    def coefficients(self, measurements: ScheduleMeasurements, table: Table) -> Fitted | None:
        """What cells of this table are corrected with."""
        return self.fitted

    def prepare(self, measurements: ScheduleMeasurements, tables: Sequence[Table]) -> None:  # noqa: B027
        """Hand out at once what the coefficients of these tables need, where there are workers."""

    @final
    def find(
        self,
        pipe: Any,  # noqa: ANN401
        sites: Sites,
        calibration: Calibration,
        *,
        budget: float | None = None,
        cost: float | None = None,
        seed: int = 0,
        executor: Executors | None = None,
    ) -> Schedule | ParetoSet:
        """With `cost`, the schedule that executes as much as it may and no more than this share of the uncached MACs:
        half of the steps are half of it, and a little more where sites lie inside the denoiser, whose other parts run
        at every step.
        With `budget`, the cheapest one whose relative L2 error of the final latent, the mean over the calibration
        prompts, is no more. With neither, those of the whole range that no other beats in both.
        Where the calibration has an objective, scores stand for errors: a budget is then how much the mean score may be
        below that of computing everything.

        Warns where nothing can be saved within the budget: the answer then computes everything. Raises ScheduleError
        where both are given or none can be had.

        `executor` is a `concurrent.futures.Executor` (or makes one) that runs are handed to, those that uncached runs
        and errors of tables are measured with, and slopes fitted along; the answer is the same to the bit. Then `pipe`
        may be a function that makes the pipeline. Raises WorkerError where workers are lost, or cannot be sent it.
        """
        check_asked(self.name, budget, cost, needs_aim=self.fits)
        measurements = calibration.on(pipe() if is_factory(pipe) else pipe, sites)
        with measurements.handing_out(pipe, executor):
            tables = self.candidates(measurements, cost, seed)
            answer = choose(self.schedules(measurements, tables, seed), _bound(measurements, budget), cost)
        if budget is not None and isinstance(answer, Schedule) and computes(answer.table).all():
            nothing = f"{self.name} found nothing that can be skipped within a budget of {budget:g}"
            warnings.warn(f"{nothing}: this schedule computes everything.", DicacheWarning, stacklevel=2)
        return answer

    @final
    def candidates(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> list[Table]:
        """The tables whose errors are measured to choose from. Raises ScheduleError where none executes so little."""
        tables = _different(self.tables(measurements, cost, seed))
        work = measurements.priced(self.fitted).work(np.stack(tables))
        if cost is not None:
            return self._dearest(tables, work, cost)
        return tables if self.measures else _thinned(tables, work)

    def _dearest(self, tables: Sequence[Table], work: np.ndarray, cost: float) -> list[Table]:
        """Those that execute most of what they may."""
        fitting = work[affordable(work, cost)]
        if not len(fitting):
            raise ScheduleError(
                f"{self.name} found nothing that executes {cost:g} of the work: {work.min():.3f} is least."
            )
        most = fitting.max()
        return [table for table, each in zip(tables, work, strict=True) if math.isclose(each, most, rel_tol=1e-12)]

    @final
    def schedules(self, measurements: ScheduleMeasurements, tables: Sequence[Table], seed: int) -> list[Schedule]:
        """Tables with all that a file needs, and what they lose; without those that lose everything. Raises
        ScheduleError where that is all of them.
        """
        self.prepare(measurements, tables)
        fitted = [self.coefficients(measurements, table) for table in tables]
        errors, scores = _means(measurements, tables, fitted).T
        if not np.isfinite(errors).any():
            raise ScheduleError(f"no schedule of {self.name} leaves the latent finite. Ask for more work.")
        origin = _origin(self, measurements.calibration, seed)
        return [
            Schedule(
                measurements.priced(each), table, origin, float(error), fitted=each, score=_number(measurements, score)
            )
            for each, table, error, score in zip(fitted, tables, errors, scores, strict=True)
            if np.isfinite(error)
        ]


def choose(schedules: Sequence[Schedule], budget: float | None, cost: float | None) -> Schedule | ParetoSet:
    """The answer among the candidates: of equal cost the most exact; within a budget the cheapest; else the front."""
    if cost is not None:
        return min(schedules, key=lambda schedule: schedule.loss)
    front = ParetoSet(tuple(schedules)).front()
    if budget is None:
        return front
    everything = [schedule for schedule in schedules if computes(schedule.table).all()]
    fitting = [schedule for schedule in front.members if schedule.loss <= budget]
    if everything and not fitting:
        return everything[0]  # what it lost is rounding: batches differ in their last bits
    if not fitting:
        raise ScheduleError("no schedule kept to the budget on the calibration prompts. Search at more work.")
    return min(fitting, key=lambda schedule: schedule.work)


def _bound(measurements: ScheduleMeasurements, budget: float | None) -> float | None:
    """What a schedule may lose within this budget."""
    if budget is None or measurements.objective is None:
        return budget
    everything = measurements.filled(np.ones(measurements.basis.shape, dtype=bool))
    return float(measurements.losses([everything]).mean()) + budget


def _means(measurements: ScheduleMeasurements, tables: Sequence[Table], fitted: Sequence[Fitted | None]) -> np.ndarray:
    """Errors and scores, the mean over the prompts, (N, 2). Tables with the same coefficients share their runs."""
    means = np.zeros((len(tables), 2))
    for shared in dict.fromkeys(fitted):
        rows = [i for i, each in enumerate(fitted) if each is shared]
        some = [tables[i] for i in rows]
        means[rows, 0] = measurements.errors(some, shared).mean(1)
        means[rows, 1] = measurements.scores(some, shared).mean(1)
    return means


def _number(measurements: ScheduleMeasurements, score: float) -> float | None:
    return None if measurements.objective is None else float(score)


def _origin(finder: Finder, calibration: Calibration, seed: int) -> Origin:
    arguments = {
        name: value.name.lower() if isinstance(value, Action) else value
        for name, value in vars(finder).items()
        if isinstance(value, str | int | float)
    }
    objective = as_objective(calibration.objective)
    arguments |= {} if objective is None else {"objective": objective.called}
    return Origin(finder.name, arguments, seed, len(calibration.prompts), calibration.digest, __version__)


def _different(tables: Sequence[Table]) -> list[Table]:
    """Without those that do the same."""
    return list({repaired(table).tobytes(): table for table in tables}.values())


def _thinned(tables: Sequence[Table], work: np.ndarray) -> list[Table]:
    """At most MOST, evenly by their work."""
    nearest = {int(np.abs(work - w).argmin()) for w in np.linspace(work.min(), work.max(), MOST)}
    return list(tables) if len(tables) <= MOST else [tables[i] for i in sorted(nearest)]
