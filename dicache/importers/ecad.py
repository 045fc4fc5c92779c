"""ECAD's schedules: {step: {block: {component: bool}}}, components "attn1", "attn2", "ff" or, for FLUX, "full_attn",
"full_ff", "full_ff_context", "single_attn". A component that is true is reused; `true_computes` turns that around,
where a file means it so.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dicache.errors import ScheduleError
from dicache.importers.published import Published, number_of
from dicache.measuring.schedule_measurements import Calibration
from dicache.schedules.schedule import Schedule
from dicache.sites import Sites

_PREFIXES = ("full_", "single_")


def read_ecad(
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
    published = Published(path, pipe, sites, calibration)
    content = published.json()
    published.check_steps(len(content))
    sites_of = {
        (block, cell.path.rpartition(".")[2]): site
        for site, (cell, block) in enumerate(zip(published.cells, published.blocks, strict=True))
    }
    computed = np.ones(published.shape, dtype=bool)
    for t, step in enumerate(_ordered(content, path)):
        blocks = _ordered(step, path)
        if len(blocks) != published.n_blocks:
            raise ScheduleError(f"{path} has {len(blocks)} blocks at step {t}. This model has {published.n_blocks}.")
        for block, components in enumerate(blocks):
            for name, value in _components(components, path).items():
                site = sites_of.get((block, _without_prefix(name)))
                if site is not None:
                    computed[t, site] = value == true_computes
                elif value != true_computes:
                    raise ScheduleError(f"{path} reuses {name!r} of block {block}, which is no site of {sites}.")
    return published.schedule(computed, "ECAD")


def _ordered(content: Any, path: str | Path) -> list[Any]:  # noqa: ANN401
    """Values by their keys' numbers, which leave none out; as they come where keys are no numbers."""
    if not isinstance(content, dict):
        raise ScheduleError(f"{path} is not of the form step, block, component.")
    numbered = {number_of(key): value for key, value in content.items()}
    if None in numbered:
        return list(content.values())
    numbers = sorted(number for number in numbered if number is not None)
    if len(numbers) != len(content) or any(later - number != 1 for number, later in pairwise(numbers)):
        raise ScheduleError(f"{path} numbers its steps or blocks with gaps. Expected all of them, one after another.")
    return [numbered[number] for number in numbers]


def _components(content: Any, path: str | Path) -> dict[str, bool]:  # noqa: ANN401
    if not isinstance(content, dict) or not all(isinstance(value, bool) for value in content.values()):
        raise ScheduleError(f"{path}: a block's components are not all true or false.")
    return content


def _without_prefix(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)
