"""What follows from the shapes and switches of a call, and is asked at every one: worked out once for all that are
alike.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from dicache.hosts.denoiser_call import call_key
from dicache.models.family import Family
from dicache.slots.joint_calls import Layout, kind_of, layout_of
from dicache.tensors.tree import Tree

MOST = 256
"""How many forms are remembered: a switch may be a number that is another at every call."""


class CallForm(NamedTuple):
    key: tuple[Hashable, ...]
    """As a session tells calls apart."""
    layout: Layout
    kind: Hashable
    """What calls must have alike to run together."""


class CallForms:
    """Of one family's denoiser."""

    times: Sequence[str]
    by_shape: dict[Hashable, CallForm]

    def __init__(self, family: Family) -> None:
        self.times, self.by_shape = family.time, dict[Hashable, CallForm]()

    def of(self, inputs: Mapping[str, Tree], named: Mapping[str, Tree], rows: int) -> CallForm:
        """`named` holds what stands in dictionaries among `inputs` too, each by its name."""
        facts = rows, *(self._seen(name, value) for name, value in inputs.items())
        alike = None if None in facts else self.by_shape.get(facts)
        if alike is None:
            layout = layout_of(inputs, rows, self.times)
            alike = CallForm(call_key(named), layout, kind_of(inputs, layout))
            if None not in facts:
                self.by_shape = {} if len(self.by_shape) >= MOST else self.by_shape
                self.by_shape[facts] = alike
        return alike

    def _seen(self, name: str, value: Tree) -> Hashable:
        """What a form depends on; None where there is more to look at."""
        if isinstance(value, Tensor):
            return name, value.shape, value.dtype, value.device
        if isinstance(value, int | float) and name in self.times and not isinstance(value, bool):
            return name, type(value)
        if value is None or isinstance(value, bool | int | float | str):
            return name, type(value), value
        if not isinstance(value, Mapping | tuple | list):
            return None
        entries = value.items() if isinstance(value, Mapping) else ((name, each) for each in value)
        inside = tuple(self._seen(str(key), each) for key, each in entries)
        return None if None in inside else (name, type(value), inside)
