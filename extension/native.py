"""The CPU library: found beside this file, bound with ctypes, run on torch's own thread pool."""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from dicache.errors import ExtensionError
from dicache.extension.arguments import NATIVE
from dicache.extension.build import NAMES, digest
from dicache.extension.layout import lines, rows

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
        self.path = every[-1] if path is None else path
        self.index = every.index(self.path)
        self.name = f"native ({self.path})"
        self._sums, self._combine, self._pool = library.dicache_residual_sums, library.dicache_combine, pool()
        self._sums.argtypes, self._combine.argtypes = _SUMS, _COMBINE

    def residual_sums(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """Into `out`, (B, 6); a and b are checked and not empty."""
        a, b, outer, inner, *strides = lines(a, b)
        x, y = ((t.data_ptr(), t.stride(0), stride) for t, stride in zip((a, b), strides, strict=True))
        _check(self._sums(self.index, NATIVE[a.dtype], a.shape[0], outer, inner, *x, *y, out.data_ptr(), self._pool))

    def combine(self, terms: Sequence[Tensor], coefficients: Tensor, out: Tensor) -> None:
        """Into `out`, laid out by `layout.like`; the rest is checked and not empty."""
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
