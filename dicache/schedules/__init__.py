"""Tables of actions that were found before a run: their types, their file, the rule that follows them."""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.schedules.pareto import ParetoSet as ParetoSet
    from dicache.schedules.schedule import Schedule as Schedule

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.schedules.pareto": ("ParetoSet",),
        "dicache.schedules.schedule": ("Schedule",),
    },
)
