"""What the importers share: reading JSON of unknown origin, naming sites as papers do, making a schedule."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dicache._version import __version__
from dicache.errors import ScheduleError
from dicache.files.checked import FileFault, plain_bytes
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.schedules.schedule import Origin, Schedule
from dicache.schedules.setting import Cell
from dicache.types import Action, Kind

LARGEST = 64 << 20
NAMES = {
    Kind.ATTENTION: ("attn", "attn1", "attention", "self_attn"),
    Kind.CROSS_ATTENTION: ("attn2", "xattn", "cross_attn"),
    Kind.FEED_FORWARD: ("mlp", "ff", "ffn", "feed_forward"),
}
"""What papers call the sublayers."""


def json_of(path: Path) -> dict[str, Any]:
    """Raises ScheduleError for anything but a JSON object."""
    try:
        content = json.loads(plain_bytes(path, LARGEST).decode())
    except (FileFault, OSError, ValueError, RecursionError) as error:
        raise ScheduleError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict) or not content:
        raise ScheduleError(f"{path} holds no JSON object with entries.")
    return content


def blocks_of(cells: Sequence[Cell]) -> list[int]:
    """The number of the block that every sublayer lies in, in order of execution. Raises ScheduleError for other
    sites.
    """
    if any(cell.kind not in NAMES for cell in cells):
        raise ScheduleError("published schedules are of attention and feed-forward modules. Use sites=Sublayers().")
    paths = [cell.path.rpartition(".")[0] for cell in cells]
    order = {path: i for i, path in enumerate(dict.fromkeys(paths))}
    return [order[path] for path in paths]


def schedule(measurements: ScheduleMeasurements, mask: np.ndarray, source: str) -> Schedule:
    """From what computes, (T, S) bool, with what it loses on the calibration prompts. The first step computes."""
    table, drawn = measurements.filled(mask, Action.REUSE), measurements.calibration
    origin = Origin(f"imported from {source}", {}, drawn.seed, measurements.prompts, drawn.digest, __version__)
    return Schedule(measurements.basis, table, origin, float(measurements.errors([table]).mean()))
