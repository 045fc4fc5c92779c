"""The CPU library: found beside this file, bound with ctypes, run on torch's own thread pool.

What it is told of two tensors is how they lie in memory, sample by sample: lines of neighbouring elements, one stride
apart. The order of a sample's elements does not matter to a sum, as long as both tensors are walked in the same one. So
contiguous samples are one line whatever their shape, token views `x[:, ::k]` are lines without a copy, and so are
channels-last tensors. Anything else is copied first, and so are lines too short to be worth their beginning.
"""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.errors import ExtensionError
from dicache.extension.build import NAMES, digest

NATIVE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The dtypes of native code, and their numbers there."""
MOST_TERMS = 16
SHORTEST = 256
"""Elements of a line that is read where it lies."""
_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_SUMS = (_INT, _INT, _LONG, _LONG, _LONG, *(_POINTER, _LONG, _LONG) * 2, _POINTER, _POINTER)
_COMBINE = (_INT, _INT, _INT, _LONG, _LONG, _INT, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER)
_FAILURES = {1: "there was no memory for partial sums", 2: "torch's thread pool failed"}


class Unavailable(Exception):
    """Why a path cannot be taken."""


def load(kind: str, folder: Path = Path(__file__).parent) -> ctypes.CDLL:
    """The library `kind`, "cpu" or "cuda". Raises Unavailable where it is missing or built from other sources."""
    path = folder / NAMES[kind]
    if not path.is_file():
        raise Unavailable(f"{NAMES[kind]} is not built (needs {'nvcc' if kind == 'cuda' else 'a C++ compiler'})")
    try:
        library = ctypes.CDLL(str(path))
        library.dicache_sources.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise Unavailable(f"{NAMES[kind]} does not load: {error}") from error
    if library.dicache_sources().decode() != digest(kind):
        raise Unavailable(f"{NAMES[kind]} was built from other sources: install again, or run extension/build.py")
    return library


def paths(library: ctypes.CDLL) -> list[str]:
    """The instruction sets that this processor can run, best last."""
    library.dicache_path.restype = ctypes.c_char_p
    names = (library.dicache_path(i) for i in range(3))
    return [name.decode() for name in names if name]


@cache
def pool() -> int | None:
    """The address of torch's parallel_for; None where this torch has none, and then there is one thread."""
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    name = "torch_cpu.dll" if suffix == "dll" else f"libtorch_cpu.{suffix}"
    try:
        function = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name)).torch_parallel_for
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


class Native:
    """`path`: an instruction set of `paths`; the best by default."""

    def __init__(self, library: ctypes.CDLL, path: str | None = None) -> None:
        every = paths(library)
        self.path: str = every[-1] if path is None else path
        self.index: int = every.index(self.path)
        self.name: str = f"native ({self.path})"
        self._sums, self._combine, self._pool = library.dicache_residual_sums, library.dicache_combine, pool()
        self._sums.argtypes, self._combine.argtypes = _SUMS, _COMBINE

    def residual_sums(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """Into `out`, (B, 6); a and b are checked and not empty."""
        at = lines(a, b)
        x = at.a.data_ptr(), at.a.stride(0), at.a_stride
        y = at.b.data_ptr(), at.b.stride(0), at.b_stride
        shape = a.shape[0], at.outer, at.inner
        _check(self._sums(self.index, NATIVE[a.dtype], *shape, *x, *y, out.data_ptr(), self._pool))

    def combine(self, terms: Sequence[Tensor], coefficients: Tensor, out: Tensor) -> None:
        """Into `out`, laid out by `ops._like`; the rest is checked and not empty."""
        terms, weights = [rows(t, out) for t in terms], coefficients.float().contiguous()
        count, samples = len(terms), len(out)
        pointers = (_POINTER * count)(*[t.data_ptr() for t in terms])
        strides = (_LONG * count)(*[t.stride(0) for t in terms])
        shape = (samples, out.numel() // samples, count)
        kind = (self.index, NATIVE[terms[0].dtype], int(out.dtype != terms[0].dtype))
        _check(self._combine(*kind, *shape, pointers, strides, weights.data_ptr(), out.data_ptr(), self._pool))


def _check(status: int) -> None:
    if status:
        raise ExtensionError(f"the native library gave up: {_FAILURES[status]}. Set DICACHE_EXTENSION=eager to go on.")


# How tensors lie in memory.


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


def rows(t: Tensor, out: Tensor) -> Tensor:
    """`t` where its samples are laid out as those of `out` (they may lie anywhere), else a copy that is."""
    if t.stride()[1:] == out.stride()[1:]:
        return t
    return torch.empty_like(out, dtype=t.dtype).copy_(t)
