"""The rows that compute, run together: those of one kind of call (the same shapes and switches), each at its own time.

Whether a denoiser treats every row as it would alone is tried at the first joint call of a kind: one of its parts runs
again by itself. Whether it takes a time for each row is tried where they first differ: that part runs at its own time
and at the first row's, and what the joint call gave must be the former. Where it is not, calls run one by one. What
fails together is tried one by one too, so that a request that cannot be run harms no other.

In a `group` exactly so many run together, with copies of the last one where there are fewer: kernels then meet the same
shapes whatever else there is, and an output has the same bits in any company. Which rows may run together is tried
before anything else then, on the first part and a copy of it at half its time.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import nn

from dicache.slots.joint_calls import CallRows, alike, at_half_its_time, at_time_of, cut, joined, times_of
from dicache.slots.slot import SlotCall
from dicache.tensors.mac_meter import MacCounter
from dicache.tensors.norms import length
from dicache.tensors.tree import Tree, plain, tensors

CLOSE = 0.1
"""How near the joint call must come to the part's own, in shares of what another time makes."""
LEAST, ROUNDED = 1e-3, 8.0
"""How far it may be off by rounding: relative, and in steps of the precision."""


class RowKind(NamedTuple):
    """What parts have alike that may run together."""

    inputs: Hashable
    """That of their calls (`dicache.slots.joint_calls.kind_of`)."""
    rows: int
    computed: int


class JointRuns:
    """Of one denoiser; `together`: whether its rows may be gathered at all."""

    together: bool
    rows: int
    padding: int
    denoiser: nn.Module

    def __init__(self, denoiser: nn.Module, *, together: bool) -> None:
        self.denoiser, self.together = denoiser, together
        self.rows = self.padding = 0
        """That were computed so far, and how many more to fill groups."""
        self.forget()

    def forget(self) -> None:
        """The model is another."""
        self.costs: dict[Hashable, float] = {}
        """What one row of a kind of call costs."""
        self.takes_rows: dict[RowKind, bool] = {}
        """Of a kind, whether parts may run together; as far as that was tried."""
        self.takes_times: dict[RowKind, bool] = {}
        """The same of parts at other times."""

    def run(self, calls: Mapping[int, SlotCall], group: int | None = None) -> dict[int, Any]:
        """What each call's rows give, an Exception where that failed; None where none computes."""
        outputs = dict.fromkeys(calls)
        parts = {i: call.part for i, call in calls.items() if call.part is not None}
        for kind, indices in self._groups(calls, parts):
            some = [parts[i] for i in indices]
            results = self._outputs(kind, some) if group is None else self._grouped(kind, some, group)
            outputs.update(zip(indices, results, strict=True))
        return outputs

    def _groups(self, calls: Mapping[int, SlotCall], parts: Mapping[int, CallRows]) -> list[tuple[RowKind, list[int]]]:
        """Which of them may run together: of one kind, sharing what is shared."""
        groups: list[tuple[RowKind, list[int]]] = []
        for i, part in parts.items():
            kind = RowKind(calls[i].kind, part.layout.rows, part.computed)
            fitting = (g for k, g in groups if self.together and k == kind and alike(parts[g[0]], part))
            group = next(fitting, None)
            if group is None:
                groups.append((kind, [i]))
            else:
                group.append(i)
        return groups

    def _outputs(self, kind: RowKind, parts: Sequence[CallRows]) -> list[Any]:
        """Of each part, of one kind and alike; an Exception where it cannot be run."""
        times = times_of(parts)
        at_one = all(bool((time == times[0].flatten()[0]).all()) for time in times if len(time))
        apart = not self.takes_rows.get(kind, True) or not (at_one or self.takes_times.get(kind, True))
        if len(parts) == 1 or apart:
            return [self._alone(kind, part) for part in parts]
        try:
            outputs = self._joint(kind, parts)
            tried = self._as_alone(kind, parts, times, outputs, at_one=at_one)
        except Exception:
            tried = False
        return outputs if tried else [self._alone(kind, part) for part in parts]

    def _alone(self, kind: RowKind, part: CallRows, group: int = 1) -> Any:  # noqa: ANN401
        try:
            return self._filled(kind, [part], group)[0]
        except Exception as error:
            return error

    def _grouped(self, kind: RowKind, parts: Sequence[CallRows], group: int) -> list[Any]:
        """The same, of groups of always as many."""
        if not self.together or not self._takes_groups(kind, parts[0]):
            return [self._alone(kind, part) for part in parts]
        outputs: list[Any] = []
        for k in range(0, len(parts), group):
            some = parts[k : k + group]
            try:
                outputs += self._filled(kind, some, group)
            except Exception:
                outputs += [self._alone(kind, part, group) for part in some]
        return outputs

    def _filled(self, kind: RowKind, parts: Sequence[CallRows], group: int) -> list[Tree]:
        missing = group - len(parts)
        self.padding += missing * parts[0].computed
        return self._joint(kind, [*parts, *[parts[-1]] * missing])[: len(parts)]

    def _takes_groups(self, kind: RowKind, part: CallRows) -> bool:
        if kind not in self.takes_times:
            parts = [part, at_half_its_time(part)]
            try:
                self._as_alone(kind, parts, times_of(parts), self._joint(kind, parts), at_one=False)
            except Exception:
                return False
        return self.takes_times.get(kind, False)

    def _joint(self, kind: RowKind, parts: Sequence[CallRows]) -> list[Tree]:
        self.rows += sum(part.computed for part in parts)
        run = partial(self.denoiser, **joined(parts))
        if kind.inputs in self.costs:
            return cut(run(), parts)
        with MacCounter() as counter:
            output = run()
        self.costs[kind.inputs] = counter.total / sum(part.computed for part in parts)
        return cut(output, parts)

    def _as_alone(
        self,
        kind: RowKind,
        parts: Sequence[CallRows],
        times: Sequence[torch.Tensor],
        outputs: Sequence[Tree],
        *,
        at_one: bool,
    ) -> bool:
        """Whether outputs are what the parts give by themselves; tried once for a kind where its parts are at one time,
        and once where they are not: of that part whose time is furthest from the first one's.
        """
        if kind in (self.takes_rows if at_one else self.takes_times):
            return True
        far = [float((time.double().mean() - times[0].double().mean()).abs()) for time in times]
        i = len(parts) - 1 if at_one else max(range(len(parts)), key=far.__getitem__)
        own = self.denoiser(**joined([parts[i]]))
        missed, size = _apart(outputs[i], own), _length(own)
        if not isfinite(size):  # of what is no number nothing can be told
            return True
        if at_one:
            rounding = max(torch.finfo(t.dtype).eps for t in tensors(plain(own)) if t.is_floating_point())
            self.takes_rows[kind] = missed <= max(LEAST, ROUNDED * rounding) * size
            return self.takes_rows[kind]
        other = self.denoiser(**joined([at_time_of(parts[i], parts[0])]))
        self.takes_times[kind] = missed <= CLOSE * _apart(other, own) or not far[i]
        return self.takes_times[kind]


def _apart(one: Tree, other: Tree) -> float:
    pairs = zip(tensors(plain(one)), tensors(plain(other)), strict=True)
    return sum(float(length(a - b).sum()) for a, b in pairs)


def _length(output: Tree) -> float:
    return sum(float(length(t).sum()) for t in tensors(plain(output)))
