"""Multiply-accumulates, counted where they run.

Every hooked part of the denoiser (its blocks, and the modules around them) is measured once per input shape by running
one row of it under torch's FlopCounterMode; from then on each run of the part adds its cost to the rows it ran for.
What was skipped is what did not run. Matrix products, convolutions and attention count; elementwise work does not,
dicache's own included.
"""

from collections.abc import Callable, Hashable, Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from dicache.rows import Tree, take
from dicache.types import Rows

Costs = dict[str, float]


class Meter:
    def __init__(self) -> None:
        self.known: dict[Hashable, Costs] = {}
        self.costs: Costs = {}
        self.everywhere = self.chosen = self.skipped = 0.0
        self.executed = self.uncached = torch.zeros(0, dtype=torch.float64)

    def begin_run(self, rows: int) -> None:
        self.executed = torch.zeros(rows, dtype=torch.float64)
        self.uncached = torch.zeros(rows, dtype=torch.float64)

    def begin_call(self, shapes: Hashable) -> None:
        """A denoiser call begins, with inputs of these shapes."""
        self.costs = self.known.setdefault(shapes, {})
        self.everywhere = self.chosen = self.skipped = 0.0

    def measure(
        self, part: str, forward: Callable[..., Tree], args: tuple[Tree, ...], kwargs: Mapping[str, Tree], batch: int
    ) -> float:
        """What one row of `part` costs; it is run for that once per input shape."""
        if part not in self.costs:
            one_args, one_kwargs = take(args, kwargs, torch.zeros(1, dtype=torch.int64), batch)
            with FlopCounterMode(display=False) as counter:
                forward(*one_args, **one_kwargs)
            self.costs[part] = counter.get_total_flops() / 2
        return self.costs[part]

    def end_call(self, computed: Rows | None) -> None:
        """Book the call: parts that ran everywhere, and those that ran for `computed`, (R,) bool, only."""
        self.uncached += self.everywhere + self.chosen + self.skipped
        self.executed += self.everywhere
        if computed is not None:
            self.executed += self.chosen * computed
