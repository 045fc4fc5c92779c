"""ECAD's schedules: {step: {block: {component: bool}}}, components "attn1", "attn2", "ff" or, for FLUX, "full_attn",
"full_ff", "full_ff_context", "single_attn". A component that is true is reused; `true_computes` turns that around,
where a file means it so.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dicache.errors import ScheduleError
from dicache.finders.ground import Calibration
from dicache.importers.common import blocks_of, json_of, schedule
from dicache.schedule import Schedule
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
    content, ground = json_of(Path(path)), calibration.on(pipe, sites)
    cells, (steps, _) = ground.basis.cells, ground.basis.shape
    places = {
        (block, cell.path.rpartition(".")[2]): site
        for site, (cell, block) in enumerate(zip(cells, blocks_of(cells), strict=True))
    }
    if len(content) != steps:
        raise ScheduleError(f"{path} is for {len(content)} steps. Expected {steps}: search or import at its own.")
    mask = np.ones(ground.basis.shape, dtype=bool)
    for t, blocks in enumerate(_ordered(content, path)):
        for block, components in enumerate(_ordered(blocks, path)):
            for name, value in _components(components, path).items():
                place = places.get((block, _plain(name)))
                if place is None and value != true_computes:
                    raise ScheduleError(f"{path} reuses {name!r} of block {block}, which is no site of {sites}.")
                if place is not None:
                    mask[t, place] = value == true_computes
    return schedule(ground, mask, "ECAD")


def _ordered(content: Any, path: str | Path) -> list[Any]:  # noqa: ANN401
    """Values by their keys' numbers; as they come where those are none."""
    if not isinstance(content, dict):
        raise ScheduleError(f"{path} is not of the form step, block, component.")
    keys = list(content)
    return [content[key] for key in (sorted(keys, key=int) if all(k.isdecimal() for k in keys) else keys)]


def _components(content: Any, path: str | Path) -> dict[str, bool]:  # noqa: ANN401
    if not isinstance(content, dict) or not all(isinstance(value, bool) for value in content.values()):
        raise ScheduleError(f"{path}: a block's components are not all true or false.")
    return content


def _plain(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)
