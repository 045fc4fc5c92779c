"""A schedule that somebody wrote down, letter by letter: what a run of its steps must tell (the model, the time grid,
MACs) is read off uncached runs of some prompts, and what it loses is measured on them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dicache._version import __version__
from dicache.errors import ScheduleError
from dicache.measuring.schedule_measurements import Calibration
from dicache.schedules.action_table import computes, table_of
from dicache.schedules.schedule import Schedule
from dicache.schedules.setting import Origin
from dicache.sites import Evaluation, Sites

NAME = "hand"


def by_hand(
    pipe: Any,  # noqa: ANN401
    letters: str | Sequence[str],
    prompts: Sequence[str],
    *,
    steps: int | None,
    sites: Sites | None,
    seed: int,
    batch: int,
    call: Mapping[str, Any],
) -> Schedule:
    """As `Schedule.from_letters` says."""
    lines = list(letters)
    if steps is not None and len(lines) != steps:
        raise ScheduleError(f"there are {len(lines)} letters for {steps} steps. Expected one each.")
    try:
        table = table_of(lines)
    except (ValueError, IndexError) as why:
        raise ScheduleError(
            f"{letters!r} is no schedule: {why}. Expected such as '##=#=#=#', a letter a step."
        ) from why
    if not computes(table[0]).all():
        raise ScheduleError(f"{letters!r} does not compute its first step: nothing is stored before it. Begin with #.")
    calibration = Calibration(prompts, len(lines), seed=seed, batch=batch, call=call)
    measurements = calibration.on(pipe, sites or Evaluation())
    origin = Origin(NAME, {}, seed, len(prompts), calibration.digest, __version__)
    schedule = Schedule(measurements.basis, table, origin)
    error = float(measurements.errors([table]).mean())
    return replace(schedule, error=error if np.isfinite(error) else None)
