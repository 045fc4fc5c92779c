"""One call of the denoiser for the rows of several: what each would be called with alone, row upon row.

    tensors whose first axis has a call's rows     upon each other, those rows that are asked for
    lists of as many entries                       behind each other
    a time without rows                            one for each row of its call
    tables that all rows share, switches, None     one for all: calls in which they differ do not run together

What comes out is cut at the same places.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dicache.tensors.tree import Tree, is_shared
from dicache.types import Rows


class CallRows(NamedTuple):
    """Rows of one call that are to be computed."""

    inputs: Mapping[str, Tree]
    """What it would be called with alone, by name."""
    rows: int
    """How many it has."""
    some: Tensor | None
    """The indices of those that are computed, None for all."""
    device: torch.device
    """That of its latent."""

    @property
    def computed(self) -> int:
        """How many are."""
        return self.rows if self.some is None else len(self.some)


Times = frozenset[str]
"""The names of arguments that are times."""


def kind_of(inputs: Mapping[str, Tree], rows: int, times: Times) -> Hashable:
    """What calls must have alike to run together, but for the contents of what they share."""
    return tuple(sorted((name, _kind(name, value, rows, times)) for name, value in inputs.items()))


def _kind(name: str, value: Tree, rows: int, times: Times) -> Hashable:
    if name in times and _without_rows(value):
        return "rows", "()", _type_of_time(value), ""
    if isinstance(value, Tensor):
        belongs = _belongs(name, value, rows)
        shape = value.shape[1:] if belongs else value.shape
        return "rows" if belongs else "shared", str(tuple(shape)), str(value.dtype), str(value.device)
    if isinstance(value, Mapping):
        return "mapping", *((str(key), _kind(str(key), each, rows, times)) for key, each in value.items())
    if isinstance(value, tuple | list):
        kinds = [_kind(name, each, -1, times) for each in value]
        if _listed(name, value, rows):
            return "list", *sorted(set(map(str, kinds)))
        return type(value).__name__, *map(str, kinds)
    return "value", type(value).__name__, str(value) if isinstance(value, bool | int | float | str | None) else ""


def alike(one: CallRows, other: CallRows) -> bool:
    """Whether two calls of one kind share what is to be shared."""
    return all(_alike(name, value, other.inputs[name], one, other) for name, value in one.inputs.items())


def _alike(name: str, value: Tree, its: Tree, one: CallRows, other: CallRows) -> bool:
    if isinstance(value, Tensor):
        return _belongs(name, value, one.rows) or not value.ndim or value is its or torch.equal(value, its)
    if isinstance(value, Mapping):
        return all(_alike(str(key), each, its[key], one, other) for key, each in value.items())
    if isinstance(value, tuple | list):
        if _listed(name, value, one.rows):
            return True
        alone = one._replace(rows=-1), other._replace(rows=-1)
        return all(_alike(name, mine, each, *alone) for mine, each in zip(value, its, strict=True))
    if value is None or isinstance(value, bool | int | float | str):
        return True  # its kind says which
    return value is its


def joined(parts: Sequence[CallRows], times: Times) -> dict[str, Tree]:
    """What the denoiser is called with for all parts, which are of one kind and alike."""
    alone = len(parts) == 1 and parts[0].some is None
    first = parts[0].inputs
    return {n: v if alone else _joined(n, [p.inputs[n] for p in parts], parts, times) for n, v in first.items()}


def _joined(name: str, values: Sequence[Tree], parts: Sequence[CallRows], times: Times) -> Tree:
    value, rows = values[0], parts[0].rows
    if name in times and _without_rows(value):
        return torch.cat([_for_rows(each, part) for each, part in zip(values, parts, strict=True)])
    if isinstance(value, Tensor) and _belongs(name, value, rows):
        return torch.cat([_of(each, part.some) for each, part in zip(values, parts, strict=True)])
    if isinstance(value, Mapping):
        return {key: _joined(str(key), [each[key] for each in values], parts, times) for key in value}
    if isinstance(value, tuple | list) and _listed(name, value, rows):
        return type(value)(entry for each, part in zip(values, parts, strict=True) for entry in _entries(each, part))
    return value


def times_of(parts: Sequence[CallRows], times: Times) -> list[Tensor]:
    """Of each part, one for each of its rows: (r,), or (r, ...) where tokens have times of their own."""
    named = [next((n for n in part.inputs if n in times), None) for part in parts]
    return [torch.zeros(0) if n is None else _time(p.inputs[n], p) for n, p in zip(named, parts, strict=True)]


def at_time_of(part: CallRows, other: CallRows, times: Times) -> CallRows:
    """The same call at the time of the other's first row."""
    (name,) = (n for n in part.inputs if n in times and part.inputs[n] is not None)
    time = _time(other.inputs[name], other)[:1]
    return part._replace(inputs={**part.inputs, name: time.expand(part.rows, *time.shape[1:]).contiguous()})


def cut(output: Tree, parts: Sequence[CallRows]) -> list[Tree]:
    """What each part's rows gave, apart from that of the others."""
    if len(parts) == 1:
        return [output]
    ends, total = [], 0
    for part in parts:
        ends.append(slice(total, total + part.computed))
        total += part.computed
    return [_cut(output, rows, total) for rows in ends]


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


def _belongs(name: str, value: Tensor, rows: int) -> bool:
    """Whether it has an entry for each row. Tables of positions are shared whatever they hold."""
    return value.ndim > 0 and len(value) == rows and not (is_shared(name) and value.ndim <= 2)


def _listed(name: str, value: Sequence[Tree], rows: int) -> bool:
    return isinstance(value, list) and len(value) == rows and not is_shared(name)


def _without_rows(value: Tree) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and (not value.ndim or value.shape == (1,)))


def _type_of_time(value: Tree) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else str(torch.tensor(value).dtype)


def _time(value: Tree, part: CallRows) -> Tensor:
    return _for_rows(value, part) if _without_rows(value) else _of(value, part.some)


def _for_rows(value: Tree, part: CallRows) -> Tensor:
    """A time of all rows, (computed,)."""
    return torch.as_tensor(value, device=part.device).reshape(1).expand(part.computed)


def _of(value: Tensor, some: Tensor | None) -> Tensor:
    return value if some is None else value.index_select(0, some.to(value.device))


def _entries(value: Sequence[Tree], part: CallRows) -> Sequence[Tree]:
    return value if part.some is None else [value[i] for i in part.some.tolist()]
