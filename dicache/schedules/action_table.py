"""A table of actions: what happens at every step and site, (T, S), or (.., T, S) for several tables.

A row of letters per step, a letter per site:

    #  compute and remember          =  the last value again         *  the last value, corrected by fitted coefficients
    ^  compute, remember nothing     /  a line through the last two  0  nothing in its place
    ?  decided in the run

What a table asks for is not always what can be done: an action that needs more values than are stored by then computes,
and remembers. `repaired` is the table of what is done, and that is what is counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dicache.errors import ScheduleError
from dicache.types import MARKS, Action

Table = np.ndarray
"""(T, S) uint8, values of Action."""
LETTERS = {MARKS[action]: int(action) for action in Action if action is not Action.ALIGN}
NEEDS = np.zeros(len(Action), dtype=np.int64)
"""How many exact values each action needs."""
NEEDS[[Action.REUSE, Action.CORRECT, Action.ZERO, Action.DYNAMIC]], NEEDS[Action.EXTRAPOLATE] = 1, 2
FILLS = (Action.REUSE, Action.EXTRAPOLATE, Action.CORRECT, Action.ZERO)
"""What can take the place of a value that is not computed."""
_COMPUTED = (Action.COMPUTE, Action.UNSTORED)


class Costs(NamedTuple):
    """Of one sample, in MACs."""

    uncached: float
    """A whole run."""
    rows: tuple[int, ...]
    """Rows of denoiser calls at every step: the branches of its guidance, (T,)."""
    sites: tuple[float, ...]
    """Computing a site for one row, (S,)."""
    guesses: tuple[float, ...]
    """What a site's fitted coefficients multiply for one row, (S,)."""


def computes(table: Table) -> np.ndarray:
    """Which cells compute, bool of the same shape."""
    return np.isin(table, _COMPUTED)


def filled(mask: np.ndarray, fill: Action = Action.REUSE) -> Table:
    """A table from what computes, (T, S) bool: cells that skip get `fill`, or reuse where it needs more values. Raises
    ScheduleError for a `fill` that puts nothing in the place of a value.
    """
    if fill not in FILLS:
        raise ScheduleError(f"fill is {fill!r}. Expected one of {', '.join(f.name for f in FILLS)}.")
    mask = mask.copy()
    mask[0] = True
    stored = mask.cumsum(0) - mask
    skipped = np.where(stored >= NEEDS[fill], fill, Action.REUSE)
    return np.where(mask, Action.COMPUTE, skipped).astype(np.uint8)


def repaired(table: Table) -> Table:
    """What is really done, (.., T, S): the first step computes, and so does what asks for values that are not stored.
    A cell that is decided in the run stores nothing that others may count on.
    """
    done = table.copy()
    stored = np.zeros_like(table[..., 0, :], dtype=np.int64)
    for t in range(table.shape[-2]):
        row = done[..., t, :]
        row[(stored < NEEDS[row]) | (t == 0)] = Action.COMPUTE
        stored += row == Action.COMPUTE
    return done


def macs(table: Table, costs: Costs, *, least: bool = False) -> np.ndarray:
    """What one sample executes, (.., T, S) -> (..); of cells that are decided in the run the most, or the `least`."""
    done = repaired(table)
    rows = np.array(costs.rows, dtype=float)[:, None]
    skipped = ~computes(done) & (least | (done != Action.DYNAMIC))
    saved = (skipped * rows * np.array(costs.sites)).sum((-2, -1))
    later = np.arange(done.shape[-2])[:, None] > 0
    guessed = later & (computes(done) | (done == Action.CORRECT) | (done == Action.DYNAMIC))
    return np.asarray(costs.uncached - saved + (guessed * rows * np.array(costs.guesses)).sum((-2, -1)))


def affordable(work: np.ndarray | float, cost: float) -> np.ndarray:
    """Which shares of the work are no more than `cost`, but for rounding."""
    return np.asarray(work) <= cost + 1e-9


def lines_of(table: Table) -> list[str]:
    """A string per step."""
    marks = {value: letter for letter, value in LETTERS.items()}
    return ["".join(marks[int(action)] for action in row) for row in table]


def table_of(lines: Sequence[str]) -> Table:
    """The other way round. Raises ValueError for a letter that is none, or lines of unequal length."""
    unknown = sorted({letter for line in lines for letter in line} - set(LETTERS))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no action; those are {' '.join(LETTERS)}")
    if len({len(line) for line in lines}) != 1 or not lines[0]:
        raise ValueError("its steps have not all one action per site")
    return np.array([[LETTERS[letter] for letter in line] for line in lines], dtype=np.uint8)
