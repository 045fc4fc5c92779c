"""T-GATE (arXiv 2404.02747): from a gate step on cross-attention is not computed again; self-attention rests before it.

    step s before the gate    cross-attention computes; self-attention after a warm-up computes every p-th step
    step s from the gate on   cross-attention reuses what the last step before gave; self-attention every f-th step

What T-GATE also does at the gate, dropping the unconditional branch and averaging what both gave, is the pipeline's
matter and no part of a schedule.
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


@dataclass(frozen=True)
class TGate(Finder):
    name: ClassVar[str] = "gate"
    warm: int = 2
    """The last step of the start, in which self-attention always computes; steps count from 0."""
    before: int = 3
    """p."""
    after: int = 1
    """f."""

    def __post_init__(self) -> None:
        if self.warm < 0 or self.before < 1 or self.after < 1:
            raise ScheduleError(f"{self}: expected warm of 0 or more, before and after of 1 or more.")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        kinds, steps = [cell.kind for cell in measurements.basis.cells], measurements.basis.shape[0]
        if Kind.CROSS_ATTENTION not in kinds:
            raise ScheduleError("no site is a cross-attention. Use Sublayers(), on a model that has some.")
        return [measurements.filled(self.mask(gate, steps, kinds)) for gate in range(1, steps + 1)]

    def mask(self, gate: int, steps: int, kinds: Sequence[Kind]) -> np.ndarray:
        """(T, S) bool: what computes, with cross-attention computed at steps before `gate` only."""
        at = np.arange(steps)
        attention = np.where(at < gate, (at <= self.warm) | (at % self.before == 0), at % self.after == 0)
        rules = {Kind.CROSS_ATTENTION: at < gate, Kind.ATTENTION: attention}
        return np.stack([rules.get(kind, np.ones(steps, dtype=bool)) for kind in kinds], axis=1)
