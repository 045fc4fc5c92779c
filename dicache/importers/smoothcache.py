"""SmoothCache's schedules: {"attn": [1, 0, ..], "mlp": [..]}, 1 for a step that computes, an entry per kind of module
or, as "attn-12", per block. L2C routers have been published in this form too.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dicache.errors import ScheduleError
from dicache.importers.common import NAMES, blocks_of, json_of, schedule
from dicache.measuring.schedule_measurements import Calibration
from dicache.schedules.schedule import Schedule
from dicache.sites import Sites
from dicache.types import Kind


def read(path: str | Path, pipe: Any, sites: Sites, calibration: Calibration) -> Schedule:  # noqa: ANN401
    """Sites that the file does not name compute. Raises ScheduleError for a file of another form, another number of
    steps, blocks that are not there, or one that names none of the sites.
    """
    content, measurements = json_of(Path(path)), calibration.on(pipe, sites)
    cells, steps = measurements.basis.cells, calibration.steps
    for key, row in content.items():
        if not isinstance(row, list) or any(v not in (0, 1) for v in row):
            raise ScheduleError(f"{path}: {key!r} is no list of 0 and 1.")
        if len(row) != steps:
            raise ScheduleError(f"{path} is for {len(row)} steps. Expected {steps}: search or import at its own.")
    blocks = blocks_of(cells)
    if beyond := sorted(key for key in content if _block(key) > max(blocks)):
        raise ScheduleError(f"{path} is for more blocks: it has {beyond[0]!r}. This model has {max(blocks) + 1}.")
    mask, named = np.ones(measurements.basis.shape, dtype=bool), False
    for site, (cell, block) in enumerate(zip(cells, blocks, strict=True)):
        row = _row(content, cell.kind, block)
        if row is not None:
            mask[:, site], named = np.array(row, dtype=bool), True
    if not named:
        raise ScheduleError(f"{path} names none of this model's modules: it has {', '.join(sorted(content)[:5])}.")
    return schedule(measurements, mask, "SmoothCache")


def _block(key: str) -> int:
    """Which block a key is of; -1 for all of a kind."""
    kind, _, number = key.rpartition("-")
    return int(number) if number.isdecimal() and any(kind in names for names in NAMES.values()) else -1


def _row(content: dict[str, Any], kind: Kind, block: int) -> list[int] | None:
    """That of the block, else that of its kind."""
    keys = [f"{name}-{block}" for name in NAMES[kind]] + list(NAMES[kind])
    return next((content[key] for key in keys if key in content), None)
