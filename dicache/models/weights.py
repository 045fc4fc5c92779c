"""Whether a denoiser's weights are those of `enable`, without reading one of them.

Every parameter counts what is written into it in place; another dtype, or another parameter in its place, is another
weight too. All of it is looked at where a run may begin; at the calls between, only the sum of the counts. What moves
weights (offload, `.to()`) leaves the count alone. Not seen: what is written through `.data`, into inference tensors,
quantised weights, or weights that are elsewhere (sequential offload). What LoRA does to them is told by
`dicache.models.lora`.
"""

from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_WRITES = attrgetter("_version")


class Mark(NamedTuple):
    """What a parameter was when it was looked at. It is not referred to, also not weakly: it could not be moved then
    where it is quantised (`torch.utils.swap_tensors`).
    """

    identity: int
    written: int
    dtype: torch.dtype


class Weights:
    """Those of one denoiser."""

    as_at_first: bool
    elsewhere: bool
    marks: dict[str, Mark | None]
    writes: int

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.as_at_first = True
        self.elsewhere = False
        """Whether some ever were: they come back as other parameters."""
        self.counters: tuple[list[dict[str, nn.Parameter | None]], list[str]] = [], []
        """Where those that count are: modules' tables, and the names in them. No parameter is referred to."""
        self.writes = 0
        """The sum of all counts when it was taken last."""
        self.tree: list[tuple[nn.Module, list[nn.Module | None]]] = []
        """The denoiser's modules, each with those in it, as they were when it was walked last."""
        self.seen: list[Mark | None] = []
        """Marks in their order."""
        self.marks = self._marks()

    def touched(self) -> bool:
        """Whether they may have been written to since this was asked last: a sum, in microseconds."""
        try:
            writes = sum(map(_WRITES, map(dict.get, *self.counters)))
        except (AttributeError, RuntimeError):  # one is gone, or counts no more
            writes = -1
        before, self.writes = self.writes, writes
        return before != writes

    def changed(self) -> bool:
        """Whether they are others than when this was asked last."""
        if not self._walked() and self._marks_in_order() == self.seen:
            return False
        before, latest = self.marks, self._marks()
        self.elsewhere = self.elsewhere or any(mark is None for mark in latest.values())
        self.marks = latest
        changed = any(self._differ(before[path], mark) for path, mark in latest.items() if path in before)
        self.as_at_first = self.as_at_first and not changed
        self.writes = 0
        self.touched()
        return changed

    def _differ(self, before: Mark | None, latest: Mark | None) -> bool:
        if before is None or latest is None or before == latest:
            return False
        return before.identity == latest.identity or not self.elsewhere

    @property
    def modules(self) -> list[nn.Module]:
        """All modules of the denoiser."""
        self._walked()
        return [module for module, _ in self.tree]

    def _walked(self) -> bool:
        """Whether modules were put in or exchanged, so that the tree was walked anew."""
        if self.tree and all(list(module._modules.values()) == parts for module, parts in self.tree):
            return False
        self.tree = [(module, list(module._modules.values())) for module in self.denoiser.modules()]
        return True

    def _marks_in_order(self) -> list[Mark | None]:
        tables = (module._parameters.values() for module, _ in self.tree)
        return [_mark(parameter) for table in tables for parameter in table if parameter is not None]

    def _marks(self) -> dict[str, Mark | None]:
        """By path; None while a weight is elsewhere. Looks anew for `counters` and in order."""
        self._walked()
        self.seen = self._marks_in_order()
        marks: dict[str, Mark | None] = {}
        self.counters = tables, names = [], []
        for path, module in self.denoiser.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                marks[f"{path}.{name}"] = _mark(parameter)
                if _counts(parameter):
                    tables.append(module._parameters)
                    names.append(name)
        return marks


def _mark(parameter: Tensor) -> Mark | None:
    if parameter.is_meta:
        return None
    return Mark(id(parameter), parameter._version if _counts(parameter) else 0, parameter.dtype)


def _counts(parameter: Tensor) -> bool:
    plain = type(parameter) is nn.Parameter or not is_traceable_wrapper_subclass(parameter)
    return plain and not parameter.is_inference()
