"""The arguments of a block for some tokens of some rows, and the way back of what it gives.

the picture's stream        (R, N, C) -> (r, k, C)      the tokens that run
the text's, where handed on (R, T, C) -> (r, m, C)      its first m tokens, that it is not empty, or all of them
tables of positions         (N, D) or (T + N, D)        the same tokens, per row
what else has N tokens      (R, N, ...), (1, N, ..)     the same
all else                    as it is
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.runtime.module_call import ModuleCall
from dicache.tensors.tree import Tree, is_shared, map_tensors, take, tensors

PICTURE, TEXT = "picture", "text"


class Sizes(NamedTuple):
    """How many tokens a block takes."""

    picture: int
    text: int
    """0 where no text is handed on from block to block."""
    text_first: bool = True
    """Whether the text comes first where both are attended to together."""

    @property
    def joint(self) -> int:
        return self.picture + self.text

    def holds(self, length: int) -> bool:
        """Whether a sequence of so many tokens is the picture, or both."""
        return length in (self.picture, self.joint)


class Subset(NamedTuple):
    """What runs of one call."""

    rows: Tensor | None
    """(r,) on the device; None for all."""
    picture: Tensor
    """Tokens of the picture, (r, k)."""
    text: int
    """How many of the text's run along, m."""

    def positions(self, sizes: Sizes, length: int) -> Tensor | None:
        """Where they lie in a sequence of so many tokens, (r, n); None where that is neither picture nor both."""
        if length == sizes.picture:
            return self.picture
        if length != sizes.joint:
            return None
        text = torch.arange(self.text, device=self.picture.device).expand(len(self.picture), -1)
        if sizes.text_first:
            return torch.cat([text, self.picture + sizes.text], dim=1)
        return torch.cat([self.picture, text + sizes.picture], dim=1)


class Gathered(NamedTuple):
    args: tuple[Tree, ...]
    kwargs: dict[str, Tree]
    tables: list[Tensor]
    """Tables of positions that all rows shared, and that are per row here, (r, n, D)."""


def gathered(call: ModuleCall, streams: Sequence[str], rows: int, subset: Subset, sizes: Sizes) -> Gathered:
    """The block's arguments for a subset; `rows` is how many the call has."""
    args, kwargs = call.args, dict(call.kwargs)
    names = call.names
    if subset.rows is not None:
        args, kwargs = take(args, kwargs, subset.rows, rows, names)
    tables: list[Tensor] = []

    def picked(t: Tensor) -> Tensor:
        axis = next((a for a in (1, 2) if t.ndim > 2 and t.shape[0] in (1, len(subset.picture)) and
                     t.shape[a] in (sizes.picture, sizes.joint)), None)  # fmt: skip
        if axis is None:
            return t
        positions = subset.positions(sizes, t.shape[axis])
        assert positions is not None
        spread = positions.view(len(positions), *[1] * (axis - 1), -1, *[1] * (t.ndim - axis - 1))
        return t.expand(len(positions), *[-1] * (t.ndim - 1)).gather(
            axis, spread.expand(-1, *t.shape[1:axis], -1, *t.shape[axis + 1 :])
        )

    def table(t: Tensor) -> Tensor:
        positions = subset.positions(sizes, t.shape[0]) if t.ndim == 2 else None
        if positions is None:
            return picked(t)
        tables.append(t[positions.to(t.device)])
        return tables[-1]

    def of(name: str, tree: Tree) -> Tree:
        if name == streams[0]:
            return map_tensors(lambda t: tokens_at(t, subset.picture), tree)
        if name in streams:
            return map_tensors(lambda t: t[:, : subset.text], tree)
        if name.startswith("encoder_"):
            return tree
        return map_tensors(table if is_shared(name) else picked, tree)

    named = (*names, *[""] * len(args))
    positional = tuple(of(name, tree) for name, tree in zip(named, args, strict=False))
    return Gathered(positional, {name: of(name, tree) for name, tree in kwargs.items()}, tables)


def tokens_at(stream: Tensor, index: Tensor) -> Tensor:
    """(R, N, C) at (R, k): (R, k, C)."""
    return stream.gather(1, index[..., None].expand(-1, -1, stream.shape[2]))


def argument(call: ModuleCall, name: str) -> Tensor | None:
    """A tensor that a block is called with, by its name."""
    value = call.kwargs.get(name, dict(zip(call.names, call.args, strict=False)).get(name))
    return value if isinstance(value, Tensor) else None


def scattered(output: Tree, parts: Tree, subset: Subset, kinds: Sequence[str]) -> Tree:
    """`output` of all rows and tokens, which is written to, with what some gave in their places; `kinds` says of every
    tensor whose tokens they are.
    """
    for stream, part, kind in zip(tensors(output), tensors(parts), kinds, strict=True):
        rows = torch.arange(len(part), device=part.device) if subset.rows is None else subset.rows
        if kind == PICTURE:
            stream[rows[:, None], subset.picture] = part
        else:
            stream[rows, : subset.text] = part
    return output
