"""Routers of Learning-to-Cache (arXiv 2406.01733) for DiT: a vector of scores for every step, index 2b the attention of
block b and 2b + 1 its feed-forward. Rows run from low noise to high; steps come in pairs, a full one and then one that
may reuse, and of row 2k is made

    step T - 1 - 2k computes a module    if and only if    sigmoid(score) > theta

Every other step computes everything. The published .pt files are read without running anything that they hold.
"""

import re
import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from scipy.special import expit
from torch import Tensor

from dicache.errors import ScheduleError
from dicache.files.checked import FileFault, plain_bytes
from dicache.importers.published import Published
from dicache.measuring.schedule_measurements import Calibration
from dicache.schedules.schedule import Schedule
from dicache.sites import Sites
from dicache.types import Kind

LARGEST = 1 << 20
"""Bytes of a router; the published ones have 50 thousand at most."""
_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, EOFError, SafetensorError, UnpicklingError, BadZipFile, FileFault),
    *(AttributeError, TypeError, LookupError, AssertionError, ArithmeticError, struct.error),
)
"""What torch raises for files that are damaged, or made to be."""


def read_l2c(
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
    published = Published(path, pipe, sites, calibration)
    computed = decoded(scores(published.path), theta)
    published.check_steps(len(computed))
    if computed.shape[1] != 2 * published.n_blocks:
        raise ScheduleError(f"{path} is for {computed.shape[1] // 2} blocks. This model has {published.n_blocks}.")
    modules = [
        2 * block + (cell.kind is Kind.FEED_FORWARD)
        for block, cell in zip(published.blocks, published.cells, strict=True)
    ]
    return published.schedule(computed[:, modules], "L2C")


def decoded(rows: np.ndarray, theta: float) -> np.ndarray:
    """What computes, (T, 2B) bool in order of execution, of scores before the sigmoid, (T, 2B) from low noise on."""
    steps = len(rows)
    computed = np.ones(rows.shape, dtype=bool)
    for row in range(0, steps - 1, 2):
        computed[steps - 1 - row] = expit(rows[row].astype(float)) > theta
    return computed


def scores(path: Path) -> np.ndarray:
    """(T, 2B). Raises ScheduleError for a file that does not hold finite vectors of one length, in names with a number
    each.
    """
    try:
        data = plain_bytes(path, LARGEST)
        content = load(data) if path.suffix == ".safetensors" else _unpickled(data)
    except _UNREADABLE as error:
        reason = str(error).split("\n")[0]
        raise ScheduleError(f"{path} cannot be read as a router: {reason}") from error
    rows = _rows(content, len(data)) if isinstance(content, dict) else []
    shapes = {row.shape for row in rows}
    if len(shapes) != 1 or rows[0].ndim != 1 or not np.isfinite(rows).all():
        raise ScheduleError(f"{path} is no router. Expected a vector of two finite scores per block for every step.")
    return np.stack(rows)


def _unpickled(data: bytes) -> Any:  # noqa: ANN401
    """By torch, which runs nothing; not of an archive that unpacks to more than it is."""
    if data.startswith(b"PK"):
        unpacked = sum(member.file_size for member in ZipFile(BytesIO(data)).infolist())
        if unpacked > len(data):
            raise FileFault(f"it unpacks to {unpacked} bytes")
    return torch.load(BytesIO(data), "cpu", weights_only=True)


def _rows(content: Mapping[Any, Any], size: int) -> list[np.ndarray]:
    """Of one table, or in the order of the names' numbers; none where names or values are of another kind, or repeat
    more than a file of so many bytes can hold.
    """
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor) and _real(value)}
    if sum(tensor.nbytes for tensor in tensors.values()) > size:
        return []
    arrays = {name: np.asarray(tensor.float()) for name, tensor in tensors.items()}
    if len(arrays) == 1 and (table := next(iter(arrays.values()))).ndim == 2:
        return list(table)
    numbers = [int(match.group()) for name in arrays if (match := re.search(r"\d{1,9}", str(name)))]
    if len(arrays) != len(content) or len(set(numbers)) != len(content):
        return []
    return [row for _, row in sorted(zip(numbers, arrays.values(), strict=True), key=lambda numbered: numbered[0])]


def _real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta
