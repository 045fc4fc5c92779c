"""Routers of Learning-to-Cache (arXiv 2406.01733) for DiT: a vector of scores for every step, index 2b the attention of
block b and 2b + 1 its feed-forward. Rows run from low noise to high; steps come in pairs, a full one and then one that
may reuse, and of row 2k is made

    step T - 1 - 2k computes a module    if and only if    sigmoid(score) > theta

Every other step computes everything. The published .pt files are read without running anything that they hold.
"""

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dicache.errors import ScheduleError
from dicache.finders.ground import Calibration
from dicache.importers.common import blocks_of, schedule
from dicache.schedule import Schedule
from dicache.sites import Sites
from dicache.types import Kind


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
    ground, rows = calibration.on(pipe, sites), scores(Path(path))
    cells, steps = ground.basis.cells, calibration.steps
    blocks, computed = blocks_of(cells), decoded(rows, theta)
    if len(computed) != steps:
        raise ScheduleError(f"{path} is for {len(computed)} steps. Expected {steps}: import at its own.")
    if computed.shape[1] != 2 * (max(blocks) + 1):
        raise ScheduleError(f"{path} is for {computed.shape[1] // 2} blocks. This model has {max(blocks) + 1}.")
    index = [2 * b + (cell.kind is Kind.FEED_FORWARD) for b, cell in zip(blocks, cells, strict=True)]
    return schedule(ground, computed[:, index], "L2C")


def decoded(rows: np.ndarray, theta: float) -> np.ndarray:
    """What computes, (T, 2B) bool in order of execution, of scores before the sigmoid, (T, 2B) from low noise on."""
    steps = len(rows)
    mask = np.ones(rows.shape, dtype=bool)
    for row in range(0, steps - 1, 2):
        mask[steps - 1 - row] = 1 / (1 + np.exp(-rows[row].astype(float))) > theta
    return mask


def scores(path: Path) -> np.ndarray:
    """(T, 2B). Raises ScheduleError for a file that does not hold vectors of one length, in numbered names."""
    try:
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, UnpicklingError) as error:
        what = str(error).split("\n")[0]
        raise ScheduleError(f"{path} cannot be read as a router: {what}") from error
    vectors = [value for value in held.values() if isinstance(value, Tensor)] if isinstance(held, dict) else []
    if len(vectors) == 1 and vectors[0].ndim == 2:
        return np.asarray(vectors[0].float())
    named = {name: re.search(r"\d+", str(name)) for name in held} if vectors else {}
    shapes = {tuple(value.shape) for value in vectors}
    if not vectors or len(vectors) != len(held) or len(shapes) != 1 or vectors[0].ndim != 1 or None in named.values():
        raise ScheduleError(f"{path} is no router. Expected a vector of two scores per block for every step.")
    order = sorted(held, key=lambda name: int(named[name].group()))  # type: ignore[union-attr]  # none is None
    return np.stack([np.asarray(held[name].float()) for name in order])
