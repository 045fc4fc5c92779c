"""Multiply-accumulates, counted where they run.

Every hooked part of the denoiser (its blocks, and the modules around them) is measured once per input shape by running
one row of it under torch's FlopCounterMode; from then on each run of the part adds its cost to the samples it ran for.
What was skipped is what did not run. Matrix products, convolutions and attention count; elementwise work does not,
dicache's own included.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from dicache.rows import Tree, take
from dicache.types import Rows


class Meter:
    def __init__(self) -> None:
        self.shape: Hashable = None
        self.costs: dict[Hashable, dict[Hashable, float]] = defaultdict(dict)
        self.executed = torch.zeros(0, dtype=torch.float64)
        self.uncached = torch.zeros(0, dtype=torch.float64)

    def begin_run(self, rows: int) -> None:
        self.executed, self.uncached = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)

    def measure(
        self,
        part: Hashable,
        forward: Callable[..., Tree],
        args: tuple[Tree, ...],
        kwargs: Mapping[str, Tree],
        batch: int,
    ) -> None:
        """Learn what one row of `part` costs at this input shape, once."""
        if part in self.costs[self.shape]:
            return
        one_args, one_kwargs = take(args, kwargs, torch.zeros(1, dtype=torch.int64), batch)
        with FlopCounterMode(display=False) as counter:
            forward(*one_args, **one_kwargs)
        self.costs[self.shape][part] = counter.get_total_flops() / 2

    def count(self, part: Hashable, computed: Rows) -> None:
        """`part` ran for the rows `computed`, (R,) bool."""
        cost = self.costs[self.shape][part]
        self.uncached += cost
        self.executed += cost * computed
