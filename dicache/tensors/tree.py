"""Running a block for some rows of its batch: gather what belongs to the rows, run, scatter back.

A tensor belongs to the rows if its first axis has the batch's length; tables that all rows share (rotary frequencies,
position ids) are recognised by name. What a block would have returned for the other rows is never read (the denoiser's
output is replaced as a whole), so those rows hold zeros, and a block that runs for no row hands on any tensor of the
right shape.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Tree = Any
"""A tensor, anything else, or tuples, lists and mappings of them: what blocks take and return."""

_SHARED = ("rotary", "rope", "freqs", "pos_emb", "_ids")


def map_tensors(function: Callable[[Tensor], Tree], tree: Tree) -> Tree:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple | list):
        mapped = [map_tensors(function, item) for item in tree]
        kind = type(tree)
        if kind not in (tuple, list) and "_fields" in dir(kind):  # a named tuple takes its entries one by one
            return kind(*mapped)
        return kind(mapped)
    if isinstance(tree, Mapping):
        return {key: map_tensors(function, item) for key, item in tree.items()}
    return tree


def tensors(tree: Tree) -> list[Tensor]:
    leaves: list[Tensor] = []
    _collect(tree, leaves)
    return leaves


def _collect(tree: Tree, leaves: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        leaves.append(tree)
    elif isinstance(tree, tuple | list):
        for item in tree:
            _collect(item, leaves)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            _collect(item, leaves)


def plain(output: Tree) -> Tree:
    """What a denoiser returned, taken out of the object that diffusers wraps it in, which is an ordered dictionary."""
    return tuple(output.values()) if isinstance(output, OrderedDict) else output


def filled(output: Tree, fill: Callable[[Tensor], Tensor]) -> Tree:
    """The same kind of output with other tensors in the places of its own."""
    if isinstance(output, Tensor):
        return fill(output)
    parts = map_tensors(fill, plain(output))
    return type(output)(**dict(zip(output.keys(), parts, strict=True))) if isinstance(output, OrderedDict) else parts


def take(
    args: tuple[Tree, ...], kwargs: Mapping[str, Tree], rows: Tensor, batch: int, names: Sequence[str] = ()
) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
    """The arguments of a block, for `rows`, (r,), of a batch of `batch`; `names` are those of `args`."""

    def pick(t: Tensor) -> Tensor:
        return t.index_select(0, rows.to(t.device)) if t.ndim and t.shape[0] == batch else t

    def taken(name: str, tree: Tree) -> Tree:
        shared = is_shared(name) and all(t.ndim <= 2 for t in tensors(tree))
        return tree if shared else map_tensors(pick, tree)

    named = (*names, *[""] * len(args))
    positional = tuple(taken(name, tree) for name, tree in zip(named, args, strict=False))
    return positional, {name: taken(name, tree) for name, tree in kwargs.items()}


def is_shared(name: str) -> bool:
    """Whether an argument of this name is a table of positions."""
    return any(part in name for part in _SHARED)


def scatter(output: Tree, rows: Tensor, batch: int) -> Tree:
    """The output of a block for `rows`, as an output for the whole batch; zeros elsewhere."""

    def spread(t: Tensor) -> Tensor:
        if not t.ndim or t.shape[0] != len(rows):
            return t
        return t.new_zeros((batch, *t.shape[1:])).index_copy_(0, rows.to(t.device), t)

    return map_tensors(spread, output)


def stand_in(shapes: Tree, args: tuple[Tree, ...], kwargs: Mapping[str, Tree]) -> Tree:
    """Something shaped like the output remembered as `shapes` (a tree of meta tensors): an argument where one fits,
    else zeros; None for None.
    """
    arguments = [] if shapes is None else tensors((args, kwargs))

    def like(shape: Tensor) -> Tensor:
        for t in arguments:
            if t.shape == shape.shape and t.dtype == shape.dtype:
                return t
        return torch.zeros(shape.shape, dtype=shape.dtype, device=arguments[0].device)

    return map_tensors(like, shapes)


def shapes_of(output: Tree) -> Tree:
    return map_tensors(lambda t: torch.empty_like(t, device="meta"), output)


def to_host(parts: Sequence[Tensor]) -> list[Tensor]:
    """Small tensors, (...) each, as float64 on the host, in one transfer."""
    device = parts[0].device  # parts of a model may lie on several
    numbers = torch.cat([t.to(device).double().flatten() for t in parts]).cpu()
    return [own.view(t.shape) for own, t in zip(numbers.split([t.numel() for t in parts]), parts, strict=True)]


def nothing_like(t: Tensor, device: torch.device | None = None) -> Tensor:
    """Zeros of its shape, which take no memory."""
    return torch.zeros((), dtype=t.dtype, device=device or t.device).expand(t.shape)
