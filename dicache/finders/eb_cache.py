"""EB-Cache (arXiv 2503.07120): a level for every step, not for every block.

    level 0  everything computes          level 1  attention is reused          level 2  attention and feed-forward are

What is public is the form and an example, not the search: of 50 steps 16 of level 2, all among steps 1 to 27, and the
last 22 computed. So the family here is of that form: n steps of level 2, evenly in a window at the start, the others of
the window at level 0 or 1. The scaling of outputs that goes with it acts on the sampler, and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dicache.errors import ScheduleError
from dicache.finders.base import Finder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.schedules.action_table import Table
from dicache.types import Kind

ATTENTIONS = (Kind.ATTENTION, Kind.CROSS_ATTENTION)


@dataclass(frozen=True)
class EBCache(Finder):
    name: ClassVar[str] = "eb_cache"
    window: float = 0.56
    """Share of the steps, from the second on, in which anything is reused."""
    between: int = 0
    """Level of the window's other steps: 0 or 1."""

    def __post_init__(self) -> None:
        if not 0 < self.window <= 1 or self.between not in (0, 1):
            raise ScheduleError(f"{self}: expected a window above 0 and at most 1, and between of 0 or 1.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        kinds, steps = [cell.kind for cell in measurements.basis.cells], measurements.basis.shape[0]
        if not set(kinds) & set(ATTENTIONS) or Kind.FEED_FORWARD not in kinds:
            raise ScheduleError("EB-Cache tells attention from feed-forward. Use sites=Sublayers().")
        inside = range(1, max(2, round(self.window * steps)))
        return [measurements.filled(mask_of(self.levels(n, inside, steps), kinds)) for n in range(len(inside) + 1)]

    def levels(self, count: int, inside: range, steps: int) -> np.ndarray:
        """(T,): `count` steps of level 2, evenly inside."""
        levels = np.zeros(steps, dtype=int)
        levels[inside.start : inside.stop] = self.between if count else 0
        levels[[inside[int((k + 0.5) * len(inside) / count)] for k in range(count)]] = 2
        return levels


def mask_of(levels: np.ndarray, kinds: Sequence[Kind]) -> np.ndarray:
    """(T, S) bool: what computes."""
    reused = [1 if kind in ATTENTIONS else 2 for kind in kinds]
    return np.array(levels[:, None] < np.array(reused))
