"""Running one hooked module of the denoiser: for all rows, for some, or for none. Every way is counted."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dicache.tensors.mac_meter import Meter
from dicache.tensors.tree import Tree, scatter, stand_in, take, tensors
from dicache.types import Rows


class RowsToRun(NamedTuple):
    """The rows of a call that compute."""

    rows: int
    """How many the call has."""
    computed: Rows | None = None
    """(R,) bool on the host where some row skips, None while all rows compute."""
    some: Tensor | None = None
    """Their indices, on the device, where some compute and some do not."""
    none: bool = False
    """Whether no row computes."""
    gathered: bool = True
    """Whether parts may run for some rows; else they run for all where some compute."""
    running: "RowsToRun | None" = None
    """Those that really run, where the output of some is known already (`dicache.tensors.recall`)."""

    def of(self, computed: Rows | None, device: torch.device) -> "RowsToRun":
        """The same call with these rows, (R,) bool."""
        everything = RowsToRun(self.rows, gathered=self.gathered)
        if computed is None:
            return everything
        some = computed.nonzero().flatten()
        if len(some) == len(computed):
            return everything
        none = not len(some)
        return RowsToRun(self.rows, computed, None if none else some.to(device), none, self.gathered)

    def sparing(self, rows: Rows, device: torch.device) -> "RowsToRun":
        """The same rows compute, of which these, (R,) bool, need not run."""
        if not rows.any():
            return self
        computed = torch.ones_like(rows) if self.computed is None else self.computed
        return self._replace(running=self.of(computed & ~rows, device))


class ModuleCall(NamedTuple):
    """One call of a hooked module."""

    path: str
    module: nn.Module
    forward: Callable[..., Tree]
    """The module's own, inside what others have put around it."""
    args: tuple[Tree, ...]
    kwargs: Mapping[str, Tree]

    @property
    def names(self) -> tuple[str, ...]:
        """Of what it is called with by position."""
        return _names(type(self.module).forward)[: len(self.args)]

    def run(self) -> Tree:
        return self.forward(*self.args, **self.kwargs)

    def run_for(self, rows_to_run: RowsToRun, meter: Meter, shapes: Tree, *, inside: bool = False) -> Tree:
        """Its output: zeros in rows that skip, something shaped like `shapes` where all do. `inside`: it belongs to
        another part, whose cost holds its own.
        """
        costed = self.path in meter.costs
        if costed and rows_to_run.none:
            meter.ran(self.path, False, inside=inside)
            return stand_in(shapes, self.args, self.kwargs)
        # Without a cost it runs for all rows whatever was decided: that run is the one that is counted.
        if not costed or rows_to_run.some is None or not rows_to_run.gathered or not self.batched(rows_to_run.rows):
            output = meter.counted(self.path, self.run)
            meter.ran(self.path, inside=inside)
            return output
        assert rows_to_run.computed is not None
        meter.ran(self.path, rows_to_run.computed, inside=inside)
        args, kwargs = take(self.args, self.kwargs, rows_to_run.some, rows_to_run.rows, self.names)
        return scatter(self.forward(*args, **kwargs), rows_to_run.some, rows_to_run.rows)

    def spares(self, rows_to_run: RowsToRun, meter: Meter) -> bool:
        """Whether `run_for` leaves out rows that do not run."""
        apart = rows_to_run.gathered and rows_to_run.some is not None and self.batched(rows_to_run.rows)
        return self.path in meter.costs and (rows_to_run.none or apart)

    def batched(self, rows: int) -> bool:
        """Whether its main input has the rows on its first axis. Where a model folds frames into the batch, its blocks
        run for all rows or none.
        """
        return stream((self.args, self.kwargs)).shape[0] == rows


def stream(tree: Tree) -> Tensor:
    """The picture's stream among a block's tensors: the largest."""
    return max(tensors(tree), key=Tensor.numel)


@cache
def _names(forward: Callable[..., Tree]) -> tuple[str, ...]:
    """Of the arguments that a class's forward takes by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = inspect.signature(forward).parameters.values()
    return tuple(parameter.name for parameter in taken if parameter.kind in kinds)[1:]
