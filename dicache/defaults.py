"""What `enable` uses where it is given a number: the parts that did best on the bench (bench/README.md). Nothing else
says it, and nothing that runs a configuration imports it.

    error_budget             the law's prices (`dicache.planning.error_law`), a margin below the budget
    error_budget, profile    the same parts, with the internal budget of a profile where one fits the run
    speedup                  the law's plan of so many computed steps
    evaluations              the same, of a number in place of a ratio
"""

from collections.abc import Sequence

from dicache.config import Config
from dicache.controllers.counted import Counted, Evaluations
from dicache.controllers.planned import cautious
from dicache.planning.budget import Budget, validate
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.keep_budget import Demand, Promised


def for_budget(error_budget: float | Sequence[float]) -> Config:
    """Raises BudgetError unless it is a finite number of 0 or more, or several."""
    return Config(cautious(validate(error_budget)))


def for_profile(choice: ProfileChoice, demand: Demand) -> Config:
    """Where none of the profiles fits a run, as `for_budget`."""
    return Config(Promised(choice, demand))


def for_speedup(speedup: Budget) -> Config:
    return Config(Counted(speedup))


def for_evaluations(evaluations: Budget) -> Config:
    return Config(Evaluations(evaluations))
