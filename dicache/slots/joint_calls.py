"""One call of the denoiser for the rows of several: what each would be called with alone, row upon row.

    tensors whose first axis has a call's rows     upon each other, those rows that are asked for
    lists of as many entries                       the same
    a time without rows                            one for each row of its call
    tables that all rows share, switches, None     one for all: calls in which they differ do not run together

Row k of part i of n is row k * n + i: the first rows of all parts, then the second ones. So guidance branches that lie
upon each other in every part do in the joint call, too, and what treats a third of a batch in its own way (perturbed
attention) does so of each part.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dicache.tensors.tree import Tree, is_shared
from dicache.types import Rows


class Layout(NamedTuple):
    """How rows lie in what one call is made with."""

    rows: int
    times: frozenset[str]
    """The names of arguments that are times."""
    lists: bool = False
    """Whether samples come as a list of tensors. Then other lists are of samples, too; else of something else, as one
    entry for each adapter.
    """

    def belongs(self, name: str, value: Tensor) -> bool:
        """Whether it has an entry for each row. Tables of positions are shared whatever they hold."""
        shared = is_shared(name) and name != SIZES and value.ndim <= 2
        return value.ndim > 0 and len(value) == self.rows and not shared

    def listed(self, name: str, value: Tree) -> bool:
        """The same of a list: of numbers and shapes, or of samples."""
        fits = isinstance(value, list) and len(value) == self.rows and not is_shared(name) and LAYERS not in name
        return fits and (self.lists or not any(isinstance(each, Tensor) for each in value))


SIZES, LAYERS = "time_ids", "layer"
"""An argument that is called like a table of positions and is none, and what is in the names of lists of switches."""


class CallRows(NamedTuple):
    """Rows of one call that are to be computed."""

    inputs: Mapping[str, Tree]
    """What it would be called with alone, by name."""
    layout: Layout
    some: Tensor | None
    """The indices of those that are computed, None for all."""
    device: torch.device
    """That of its latent."""

    @property
    def computed(self) -> int:
        """How many are."""
        return self.layout.rows if self.some is None else len(self.some)


def layout_of(inputs: Mapping[str, Tree], rows: int, times: Sequence[str]) -> Layout:
    first = next(iter(inputs.values()), None)
    lists = isinstance(first, list) and bool(first) and isinstance(first[0], Tensor)
    return Layout(rows, frozenset(times), lists)


def kind_of(inputs: Mapping[str, Tree], layout: Layout) -> Hashable:
    """What calls must have alike to run together, but for the contents of what they share."""
    return frozenset((name, _kind(name, value, layout)) for name, value in inputs.items())


def _kind(name: str, value: Tree, layout: Layout) -> Hashable:
    if name in layout.times and _without_rows(value):
        return "rows", _type_of_time(value)
    if isinstance(value, Tensor):
        belongs = layout.belongs(name, value)
        shape = value.shape[1:] if belongs else value.shape
        return "rows" if belongs else "shared", shape, value.dtype, value.device
    if isinstance(value, Mapping):
        return "mapping", *((str(key), _kind(str(key), each, layout)) for key, each in value.items())
    if isinstance(value, tuple | list):
        kinds = [str(_kind(name, each, layout)) for each in value]
        return ("list", *sorted(set(kinds))) if layout.listed(name, value) else (type(value).__name__, *kinds)
    return "value", type(value).__name__, str(value) if isinstance(value, bool | int | float | str | None) else ""


def alike(one: CallRows, other: CallRows) -> bool:
    """Whether two calls of one kind share what is to be shared."""
    return all(_alike(name, value, other.inputs[name], one.layout) for name, value in one.inputs.items())


def _alike(name: str, value: Tree, its: Tree, layout: Layout) -> bool:
    if isinstance(value, Tensor):
        return layout.belongs(name, value) or not value.ndim or value is its or torch.equal(value, its)
    if isinstance(value, Mapping):
        return all(_alike(str(key), each, its[key], layout) for key, each in value.items())
    if isinstance(value, tuple | list):
        return layout.listed(name, value) or all(
            _alike(name, mine, each, layout) for mine, each in zip(value, its, strict=True)
        )
    if value is None or isinstance(value, bool | int | float | str):
        return True  # its kind says which
    return value is its


def joined(parts: Sequence[CallRows]) -> dict[str, Tree]:
    """What the denoiser is called with for all parts, which are of one kind and alike."""
    alone = len(parts) == 1 and parts[0].some is None
    first = parts[0].inputs
    return {
        name: value if alone else _joined(name, [p.inputs[name] for p in parts], parts) for name, value in first.items()
    }


def _joined(name: str, values: Sequence[Tree], parts: Sequence[CallRows]) -> Tree:
    value, layout = values[0], parts[0].layout
    if name in layout.times and _without_rows(value):
        return _upon_each_other([_time(each, part) for each, part in zip(values, parts, strict=True)])
    if isinstance(value, Tensor) and layout.belongs(name, value):
        return _upon_each_other([_of(each, part.some) for each, part in zip(values, parts, strict=True)])
    if isinstance(value, Mapping):
        return {key: _joined(str(key), [each[key] for each in values], parts) for key in value}
    if isinstance(value, tuple | list):
        if layout.listed(name, value):
            entries = [_entries(each, part) for each, part in zip(values, parts, strict=True)]
            return [each[k] for k in range(len(entries[0])) for each in entries]
        entries = [_joined(name, [each[i] for each in values], parts) for i in range(len(value))]
        return type(value)(entries) if type(value) in (tuple, list) else value
    return value


def times_of(parts: Sequence[CallRows]) -> list[Tensor]:
    """Of each part, one for each of its rows: (r,), or (r, ...) where tokens have times of their own."""
    named = [next((n for n in part.inputs if n in part.layout.times), None) for part in parts]
    return [torch.zeros(0) if n is None else _time(p.inputs[n], p) for n, p in zip(named, parts, strict=True)]


def at_time_of(part: CallRows, other: CallRows) -> CallRows:
    """The same call at the time of the other's first row."""
    return _at(part, _time(other.inputs[_named(part)], other)[:1])


def at_half_its_time(part: CallRows) -> CallRows:
    """The same call at half the time of its first row."""
    time = _time(part.inputs[_named(part)], part)[:1]
    return _at(part, (time / 2).to(time.dtype))


def _named(part: CallRows) -> str:
    return next(name for name in part.inputs if name in part.layout.times and part.inputs[name] is not None)


def _at(part: CallRows, time: Tensor) -> CallRows:
    everywhere = time.expand(part.layout.rows, *time.shape[1:]).contiguous()
    return part._replace(inputs={**part.inputs, _named(part): everywhere})


def cut(output: Tree, parts: Sequence[CallRows]) -> list[Tree]:
    """What each part's rows gave, apart from that of the others."""
    n = len(parts)
    return [output] if n == 1 else [_cut(output, slice(i, None, n), n * parts[0].computed) for i in range(n)]


def _cut(output: Tree, rows: slice, total: int) -> Tree:
    if isinstance(output, Tensor):
        return output[rows].clone() if output.ndim and len(output) == total else output
    if isinstance(output, Mapping):  # diffusers wraps outputs in ordered dictionaries of classes of their own
        make: Callable[..., Any] = type(output) if type(output) is not dict else dict
        return make(**{key: _cut(value, rows, total) for key, value in output.items()})
    if isinstance(output, list) and len(output) == total and all(isinstance(each, Tensor) for each in output):
        return output[rows]
    if isinstance(output, tuple | list):
        return type(output)(_cut(each, rows, total) for each in output)
    return output


def spread(like: Tree, output: Tree, part: CallRows | None, rows: int, device: torch.device) -> Tree:
    """As an output for all rows, shaped `like` meta tensors, of what the part's rows gave; zeros elsewhere."""
    if isinstance(like, Tensor):
        if part is not None and not (like.ndim and len(like) == rows):
            return output
        full = torch.zeros(like.shape, dtype=like.dtype, device=device)
        return full if part is None or part.some is None else full.index_copy_(0, part.some, output)
    if isinstance(like, Mapping):
        own = {key: None if part is None else output[key] for key in like}
        made = {key: spread(value, own[key], part, rows, device) for key, value in like.items()}
        return type(like)(**made)
    if isinstance(like, list) and len(like) == rows and all(isinstance(each, Tensor) for each in like):
        some = [] if part is None or part.some is None else part.some.tolist()
        computed = dict(zip(some, output, strict=True)) if some else {}
        return [computed.get(i, torch.zeros(t.shape, dtype=t.dtype, device=device)) for i, t in enumerate(like)]
    if isinstance(like, tuple | list):
        outputs = [None] * len(like) if part is None else output
        return type(like)(spread(mine, each, part, rows, device) for mine, each in zip(like, outputs, strict=True))
    return like


def rows_apart(computed: Rows | None, device: torch.device) -> Tensor | None:
    """The indices of rows, (R,) bool, that compute; None for all."""
    return None if computed is None else computed.nonzero().flatten().to(device)


def _without_rows(value: Tree) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and (not value.ndim or value.shape == (1,)))


def _type_of_time(value: Tree) -> torch.dtype:
    return value.dtype if isinstance(value, Tensor) else torch.tensor(value).dtype


def _time(value: Tree, part: CallRows) -> Tensor:
    return _for_rows(value, part) if _without_rows(value) else _of(value, part.some)


def _for_rows(value: Tree, part: CallRows) -> Tensor:
    """A time of all rows, (computed,)."""
    return torch.as_tensor(value, device=part.device).reshape(1).expand(part.computed)


def _upon_each_other(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values), dim=1).flatten(0, 1)


def _of(value: Tensor, some: Tensor | None) -> Tensor:
    return value if some is None else value.index_select(0, some.to(value.device))


def _entries(value: Sequence[Tree], part: CallRows) -> Sequence[Tree]:
    return value if part.some is None else [value[i] for i in part.some.tolist()]
