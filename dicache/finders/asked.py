"""What a search can be asked for: a cost, a budget, or the whole front. Checked before anything heavy is imported."""

import math

from dicache.errors import ScheduleError


def check_asked(finder: str, budget: float | None, cost: float | None, *, needs_aim: bool) -> None:
    """Raises ScheduleError for what no search can keep to; `needs_aim` is of a finder that has no front."""
    if budget is not None and cost is not None:
        raise ScheduleError("budget and cost were both given. Give one of them, or none for the whole front.")
    if cost is not None and not 0 < cost <= 1:
        raise ScheduleError(f"cost is {cost!r}. Expected a share of the uncached work above 0 and at most 1.")
    if budget is not None and not 0 <= budget < math.inf:
        raise ScheduleError(f"budget is {budget!r}. Expected a relative error of the final latent from 0 on.")
    if needs_aim and budget is None and cost is None:
        raise ScheduleError(f"{finder} fits one schedule, not a front. Give a cost or a budget.")
