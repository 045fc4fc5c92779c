"""Multiply-accumulates, counted where they run.

Every hooked part of the denoiser (its blocks, and the modules around them) is counted the first time it runs with
inputs of a shape, when it runs for all rows. That costs nothing: it is the run that was due. From then on each run of
the part adds what that one did, shared evenly, to the rows it ran for. What was skipped is what did not run; what a
probe or a guess multiplies comes on top. Matrix products, convolutions and attention count; elementwise work does not,
dicache's own included.

Products of 8-bit integers (torch._int_mm, which quantised layers call) count as others do, and are told apart as well:
what they cost depends on the device.
"""

import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from dicache.types import Rows, Site

T = TypeVar("T")
Costs = dict[Hashable, float]
"""What one row of each part costs."""
NOTHING = 0.0, 0.0, 0.0
_INT8 = torch.ops.aten._int_mm
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class MacCounter(TorchDispatchMode):
    """Counts the MACs of what runs inside it, with torch's formulas and one for the CPU's attention, which torch lacks.

    FlopCounterMode would do but for that kernel and for its module tracker, which recurses forever on models that other
    caches have wrapped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total: float = 0.0
        self.int8: float = 0.0
        """Of these, products of 8-bit integers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        count = _counts.get(func) if func in _counts else _counts.setdefault(func, _count_of(func._overloadpacket))
        if count is None and torch.is_inference_mode_enabled():
            with self:  # without autograd nothing has taken a linear layer apart into what is counted
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        out = func(*args, **(kwargs or {}))
        if count is not None:
            products = count(out, *args, **(kwargs or {}))
            self.total += products
            self.int8 += products if func._overloadpacket is _INT8 else 0.0
        return out


Count = Callable[..., float]
"""Products of an operation, by what it gave and was called with."""
_counts: dict[Any, Count | None] = {}
"""Of operations as they come; None for those that multiply nothing."""


def _count_of(packet: Any) -> Count | None:  # noqa: ANN401
    if packet is _CPU_ATTENTION:
        return lambda out, q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape) / 2
    if packet is _INT8:
        return lambda out, a, b, *_, **__: float(a.shape[0] * a.shape[1] * b.shape[1])
    formula = flop_registry.get(packet)
    if formula is None:
        return None
    of_shapes = inspect.unwrap(formula)  # torch's wrapper looks for shapes in trees: three times the work of a layer
    if of_shapes is formula:
        return lambda out, *args, **kwargs: formula(*args, **kwargs, out_val=out) / 2

    def count(out: Any, *args: Any, **kwargs: Any) -> float:  # noqa: ANN401
        options = {name: _shape(value) for name, value in kwargs.items()}
        return float(of_shapes(*map(_shape, args), out_shape=_shape(out), **options)) / 2

    return count


def _shape(value: Any) -> Any:  # noqa: ANN401
    """In the places of tensors, also in lists and tuples of them."""
    if isinstance(value, torch.Tensor):
        return value.shape
    return type(value)(map(_shape, value)) if type(value) in (list, tuple) else value


class Meter:
    def __init__(self) -> None:
        self.costs_by_key: dict[Hashable, Costs] = {}
        """The costs of every key's parts."""
        self.costs: Costs = {}
        """Those of the call that is going on."""
        self.rows: int = 0
        self.alike: tuple[float, float, float] = NOTHING
        """What all rows of this call have alike, per row, and is not in the sums yet: executed, uncached, 8-bit."""
        self.own: float = 0.0
        """What dicache multiplied itself, in all rows together; a part that is being counted may hold some of it."""
        self._executed = self._uncached = self._int8 = torch.zeros(0, dtype=torch.float64)
        self._before: tuple[Rows, float] = self._uncached, 0.0
        """The uncached sums when the call began, (R,), and what had been alike."""
        self.int8_by_key: dict[Hashable, Costs] = {}
        self.int8_costs: Costs = {}
        """Of the costs, those of 8-bit integers; empty where no part has any."""

    @property
    def executed(self) -> Rows:
        """MACs per row, (R,) float64; rows of calls of one run lie upon each other."""
        return self._with_alike(self._executed, self.alike[0])

    @property
    def uncached(self) -> Rows:
        """The same if nothing had been skipped."""
        return self._with_alike(self._uncached, self.alike[1])

    @property
    def executed_int8(self) -> Rows:
        """Of what was executed, products of 8-bit integers, (R,) float64."""
        return self._with_alike(self._int8, self.alike[2])

    @property
    def totals(self) -> tuple[Rows, Rows, Rows]:
        """Executed, uncached, and products of 8-bit integers."""
        return self.executed, self.uncached, self.executed_int8

    def of_sites(self, sites: Sequence[Site]) -> list[float]:
        """What computing each of them once costs one row."""
        return [sum(self.costs.get(path, 0.0) for path in site.modules) for site in sites]

    def _with_alike(self, sums: Rows, alike: float) -> Rows:
        """Asking changes nothing: another thread may, while a run goes on."""
        total = sums.clone()
        total[: self.rows] += alike
        return total

    def _add_up(self) -> None:
        if self.alike != NOTHING:
            self._executed, self._uncached, self._int8 = self.totals
            self.alike = NOTHING

    def forget(self) -> None:
        """Parts may cost something else from now on."""
        self.costs_by_key, self.int8_by_key = {}, {}

    def begin_run(self) -> None:
        self._executed = self._uncached = self._int8 = torch.zeros(0, dtype=torch.float64)
        self.alike = NOTHING

    def begin_call(self, key: Hashable, rows: int) -> None:
        """A denoiser call begins; those of one key cost the same. A sample's rows are a batch apart in every call."""
        if rows != self.rows:
            self._add_up()
        more = rows - len(self._executed)
        if more > 0:
            sums = (self._executed, self._uncached, self._int8)
            self._executed, self._uncached, self._int8 = (nn.functional.pad(t, (0, more)) for t in sums)
        self.costs, self.rows = self.costs_by_key.setdefault(key, {}), rows
        self.int8_costs = self.int8_by_key.setdefault(key, {})
        self._before = self._uncached, self.alike[1]

    def counted(self, part: Hashable, run: Callable[[], T], rows: int | None = None) -> T:
        """What `run` gives: `part` for so many rows, else for all of the call, counted if it never was."""
        if part in self.costs:
            return run()
        own = self.own
        with MacCounter() as counter:
            output = run()
        self.costs[part] = (counter.total - (self.own - own)) / (rows or self.rows)
        if counter.int8:
            self.int8_costs[part] = counter.int8 / (rows or self.rows)
        return output

    def ran(self, part: Hashable, rows: Rows | bool = True, *, inside: bool = False) -> None:
        """A part whose cost is known ran for all rows, for none, or for some, (R,) bool; `inside` another that was
        booked for all rows.
        """
        cost, int8 = self.costs[part], self.int8_costs.get(part, 0.0)
        if isinstance(rows, bool):
            self._book(cost * (rows - inside), cost * (not inside), int8 * (rows - inside))
            return
        # Both sums of a row take the same numbers in the same order: where it computes everything they are equal.
        with torch.inference_mode():  # sums that an earlier call began in there are written to in there alone
            self._executed[: self.rows] += cost * rows - cost * inside
            self._int8[: self.rows] += int8 * rows - int8 * inside
            self._uncached = self._uncached.clone()  # what the call began with stays
            self._uncached[: self.rows] += cost * (not inside)

    def ran_beside(self, part: Hashable, rows: Rows) -> None:
        """A part ran for some rows, (R,) bool, that would not have run uncached."""
        with torch.inference_mode():
            self._executed[: self.rows] += self.costs[part] * rows
            self._int8[: self.rows] += self.int8_costs.get(part, 0.0) * rows

    @property
    def of_call(self) -> float:
        """What the parts of this call cost one row uncached, so far."""
        sums, alike = self._before
        return float(self._uncached[0] - sums[0]) + self.alike[1] - alike

    def left_out(self, cost: float) -> None:
        """The call did not run at all; uncached it costs this for each row."""
        self._book(0.0, cost, 0.0)

    def added(self, part: Hashable, run: Callable[[], T]) -> T:
        """What `run` gives: something that a probe or an approximator computes of its own, for all rows."""
        output = self.counted(part, run)
        self._book(self.costs[part], 0.0, self.int8_costs.get(part, 0.0))
        self.own += self.costs[part] * self.rows
        return output

    def again(self) -> None:
        """The call that was just booked runs again: what it executes comes on top of what it would have cost."""
        self._uncached, uncached = self._before
        self.alike = self.alike[0], uncached, self.alike[2]

    def _book(self, executed: float, uncached: float, int8: float) -> None:
        """For every row of the call: numbers, which is nearly all that is booked."""
        before = self.alike
        self.alike = before[0] + executed, before[1] + uncached, before[2] + int8
