"""Whether a run takes the steps that something was measured or found on."""

from collections.abc import Sequence

import numpy as np

from dicache.types import Timetable

CLOSE = 1e-4
"""How far sigmas may differ, relative to their largest."""


def differs(timetable: Timetable, sigmas: Sequence[float], solver: str, made: str = "made") -> str | None:
    """In what a run's steps are others, in words; None if they are the same. `made` says how the others came about."""
    if len(timetable.sigmas) != len(sigmas):
        return f"steps: it was {made} at {len(sigmas)}, this run has {len(timetable.sigmas)}"
    if timetable.begin:
        return f"steps: it was {made} on whole runs, this one begins at step {timetable.begin}"
    if timetable.solver != solver:
        return f"scheduler: it was {made} with {solver}, this run has {timetable.solver or 'none'}"
    apart = np.abs(np.subtract(timetable.sigmas, sigmas)).max()
    if apart > CLOSE * np.abs(sigmas).max():
        return f"scheduler: its time grid is another one, they are up to {apart:.3g} apart"
    return None
