"""ECAD's schedules: {step: {block: {component: bool}}}, components "attn1", "attn2", "ff" or, for FLUX, "full_attn",
"full_ff", "full_ff_context", "single_attn". A component that is true is reused; `true_computes` turns that around,
where a file means it so.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dicache.errors import ScheduleError
from dicache.importers.common import blocks_of, json_of, schedule
from dicache.measuring.schedule_measurements import Calibration
from dicache.schedules.schedule import Schedule
from dicache.sites import Sites

_PREFIXES = ("full_", "single_")


def read(
    path: str | Path,
    pipe: Any,  # noqa: ANN401
    sites: Sites,
    calibration: Calibration,
    *,
    true_computes: bool = False,
) -> Schedule:
    """Raises ScheduleError for a file of another form, with other numbers of steps or blocks, or that reuses a
    component which is no site here.
    """
    content, measurements = json_of(Path(path)), calibration.on(pipe, sites)
    cells, (steps, _) = measurements.basis.cells, measurements.basis.shape
    numbers = blocks_of(cells)
    positions = {
        (block, cell.path.rpartition(".")[2]): site
        for site, (cell, block) in enumerate(zip(cells, numbers, strict=True))
    }
    if len(content) != steps:
        raise ScheduleError(f"{path} is for {len(content)} steps. Expected {steps}: search or import at its own.")
    mask = np.ones(measurements.basis.shape, dtype=bool)
    for t, step in enumerate(_ordered(content, path)):
        blocks = _ordered(step, path)
        if len(blocks) != max(numbers) + 1:
            raise ScheduleError(f"{path} has {len(blocks)} blocks at step {t}. This model has {max(numbers) + 1}.")
        for block, components in enumerate(blocks):
            for name, value in _components(components, path).items():
                position = positions.get((block, _plain(name)))
                if position is None and value != true_computes:
                    raise ScheduleError(f"{path} reuses {name!r} of block {block}, which is no site of {sites}.")
                if position is not None:
                    mask[t, position] = value == true_computes
    return schedule(measurements, mask, "ECAD")


def _ordered(content: Any, path: str | Path) -> list[Any]:  # noqa: ANN401
    """Values by their keys' numbers, which leave none out; as they come where keys are no numbers."""
    if not isinstance(content, dict):
        raise ScheduleError(f"{path} is not of the form step, block, component.")
    if not all(key.isdecimal() for key in content):
        return list(content.values())
    numbered = {int(key): value for key, value in content.items()}
    if len(numbered) != len(content) or max(numbered, default=0) - min(numbered, default=0) >= max(1, len(numbered)):
        raise ScheduleError(f"{path} numbers its steps or blocks with gaps. Expected all of them, one after another.")
    return [numbered[number] for number in sorted(numbered)]


def _components(content: Any, path: str | Path) -> dict[str, bool]:  # noqa: ANN401
    if not isinstance(content, dict) or not all(isinstance(value, bool) for value in content.values()):
        raise ScheduleError(f"{path}: a block's components are not all true or false.")
    return content


def _plain(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)
