"""Routers of Learning-to-Cache (arXiv 2406.01733) for DiT: a vector of scores for every step, index 2b the attention of
block b and 2b + 1 its feed-forward. Rows run from low noise to high; steps come in pairs, a full one and then one that
may reuse, and of row 2k is made

    step T - 1 - 2k computes a module    if and only if    sigmoid(score) > theta

Every other step computes everything. The published .pt files are read without running anything that they hold.
"""

import re
import struct
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.special import expit
from torch import Tensor

from dicache.errors import ScheduleError
from dicache.files.checked import FileFault
from dicache.importers.common import LARGEST, blocks_of, schedule
from dicache.measuring.schedule_measurements import Calibration
from dicache.schedules.schedule import Schedule
from dicache.sites import Sites
from dicache.types import Kind

_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, EOFError, SafetensorError, UnpicklingError, FileFault),
    *(AttributeError, TypeError, LookupError, AssertionError, ArithmeticError, struct.error),
)
"""What torch raises for files that are damaged, or made to be."""


def read(
    path: str | Path,
    pipe: Any,  # noqa: ANN401
    sites: Sites,
    calibration: Calibration,
    *,
    theta: float = 0.1,
) -> Schedule:
    """`theta` was 0.1 at 256 pixels, 0.9 at 512. Raises ScheduleError for a file of another form, or with other numbers
    of steps or blocks.
    """
    measurements, rows = calibration.on(pipe, sites), scores(Path(path))
    cells, steps = measurements.basis.cells, calibration.steps
    blocks, computed = blocks_of(cells), decoded(rows, theta)
    if len(computed) != steps:
        raise ScheduleError(f"{path} is for {len(computed)} steps. Expected {steps}: import at its own.")
    if computed.shape[1] != 2 * (max(blocks) + 1):
        raise ScheduleError(f"{path} is for {computed.shape[1] // 2} blocks. This model has {max(blocks) + 1}.")
    index = [2 * b + (cell.kind is Kind.FEED_FORWARD) for b, cell in zip(blocks, cells, strict=True)]
    return schedule(measurements, computed[:, index], "L2C")


def decoded(rows: np.ndarray, theta: float) -> np.ndarray:
    """What computes, (T, 2B) bool in order of execution, of scores before the sigmoid, (T, 2B) from low noise on."""
    steps = len(rows)
    mask = np.ones(rows.shape, dtype=bool)
    for row in range(0, steps - 1, 2):
        mask[steps - 1 - row] = expit(rows[row].astype(float)) > theta
    return mask


def scores(path: Path) -> np.ndarray:
    """(T, 2B). Raises ScheduleError for a file that does not hold finite vectors of one length, in names with a number
    each.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise FileFault(f"it has more than {LARGEST} bytes")
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except _UNREADABLE as error:
        what = str(error).split("\n")[0]
        raise ScheduleError(f"{path} cannot be read as a router: {what}") from error
    rows = _rows(held) if isinstance(held, dict) else []
    shapes = {row.shape for row in rows}
    if len(shapes) != 1 or rows[0].ndim != 1 or not np.isfinite(rows).all():
        raise ScheduleError(f"{path} is no router. Expected a vector of two finite scores per block for every step.")
    return np.stack(rows)


def _rows(held: dict[Any, Any]) -> list[np.ndarray]:
    """Of one table, or in the order of the names' numbers; none where names or values are of another kind."""
    plain = {name: _plain(value) for name, value in held.items() if isinstance(value, Tensor) and _real(value)}
    if len(plain) == 1 and (table := next(iter(plain.values()))).ndim == 2:
        return list(table)
    numbers = [int(found.group()) for name in plain if (found := re.search(r"\d+", str(name)))]
    if len(plain) != len(held) or len(set(numbers)) != len(held):
        return []
    return [row for _, row in sorted(zip(numbers, plain.values(), strict=True), key=lambda numbered: numbered[0])]


def _real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta


def _plain(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().float())
