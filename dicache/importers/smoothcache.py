"""SmoothCache's schedules: {"attn": [1, 0, ..], "mlp": [..]}, 1 for a step that computes, an entry per kind of module
or, as "attn-12", per block. L2C routers have been published in this form too.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dicache.errors import ScheduleError
from dicache.importers.published import NAMES, Published, number_of
from dicache.measuring.schedule_measurements import Calibration
from dicache.schedules.schedule import Schedule
from dicache.sites import Sites
from dicache.types import Kind


def read_smoothcache(path: str | Path, pipe: Any, sites: Sites, calibration: Calibration) -> Schedule:  # noqa: ANN401
    """Sites that the file does not name compute. Raises ScheduleError for a file of another form, another number of
    steps, blocks that are not there, or one that names none of the sites.
    """
    published = Published(path, pipe, sites, calibration)
    content = published.json()
    for key, steps in content.items():
        if not isinstance(steps, list) or any(value not in (0, 1) for value in steps):
            raise ScheduleError(f"{path}: {key!r} is no list of 0 and 1.")
        published.check_steps(len(steps))
    if beyond := sorted(key for key in content if _block(key) >= published.n_blocks):
        raise ScheduleError(f"{path} is for more blocks: it has {beyond[0]!r}. This model has {published.n_blocks}.")
    columns = [_column(content, cell.kind, n) for cell, n in zip(published.cells, published.blocks, strict=True)]
    if all(column is None for column in columns):
        raise ScheduleError(f"{path} names none of this model's modules: it has {', '.join(sorted(content)[:5])}.")
    everything = [1] * published.shape[0]
    computed = [everything if column is None else column for column in columns]
    return published.schedule(np.array(computed, dtype=bool).T, "SmoothCache")


def _block(key: str) -> int:
    """Which block a key is of; -1 for all of a kind."""
    kind, _, digits = key.rpartition("-")
    number = number_of(digits)
    return number if number is not None and any(kind in names for names in NAMES.values()) else -1


def _column(content: dict[str, Any], kind: Kind, block: int) -> list[int] | None:
    """That of the block, else that of its kind."""
    keys = [f"{name}-{block}" for name in NAMES[kind]] + list(NAMES[kind])
    return next((content[key] for key in keys if key in content), None)
