"""How two tensors of one shape lie in memory, sample by sample: lines of neighbouring elements, one stride apart.

The order of a sample's elements does not matter to a sum, as long as both tensors are walked in the same one. So
contiguous samples are one line whatever their shape, token views `x[:, ::k]` are lines without a copy, and so are
channels-last tensors. Anything else is copied first, and so are lines too short to be worth their beginning.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SHORTEST = 256
"""Elements of a line that is read where it lies."""


class Lines(NamedTuple):
    """What native code is told; strides in elements."""

    a: Tensor
    b: Tensor
    outer: int
    """Lines per sample."""
    inner: int
    """Elements per line."""
    a_stride: int
    b_stride: int
    """From line to line."""


def lines(a: Tensor, b: Tensor) -> Lines:
    """(B, ...), (B, ...) of one shape, not empty."""
    if a.is_contiguous() and b.is_contiguous():
        return Lines(a, b, 1, a.numel() // a.shape[0], 0, 0)
    merged = _merged(a, b)
    if not merged:
        return Lines(a, b, 1, 1, 0, 0)
    long = len(merged) == 1 or (len(merged) == 2 and merged[1][0] >= SHORTEST)
    if long and merged[-1][1:] == (1, 1):
        outer, a_stride, b_stride = merged[0] if len(merged) == 2 else (1, 0, 0)
        return Lines(a, b, outer, merged[-1][0], a_stride, b_stride)
    return lines(a.contiguous(), b.contiguous())


def _merged(a: Tensor, b: Tensor) -> list[tuple[int, int, int]]:
    """Size and both strides of a sample's axes, outermost in memory first, neighbours made one where they are one."""
    axes = [axis for axis in zip(a.shape[1:], a.stride()[1:], b.stride()[1:], strict=True) if axis[0] != 1]
    merged: list[tuple[int, int, int]] = []
    for size, x, y in sorted(axes, key=lambda axis: axis[1:], reverse=True):
        if merged and merged[-1][1:] == (size * x, size * y):
            merged[-1] = (merged[-1][0] * size, x, y)
        else:
            merged.append((size, x, y))
    return merged


def like(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A new tensor, (B, ...), whose samples are dense and follow each other: laid out as `t` where those of `t` are."""
    out = torch.empty_like(t, dtype=dtype)
    if t.numel() and out.stride(0) != t.numel() // t.shape[0]:
        return torch.empty(t.shape, dtype=dtype, device=t.device)
    return out


def rows(t: Tensor, out: Tensor) -> Tensor:
    """`t` where its samples are laid out as those of `out` (they may lie anywhere), else a copy that is."""
    if t.stride()[1:] == out.stride()[1:]:
        return t
    return torch.empty_like(out, dtype=t.dtype).copy_(t)
