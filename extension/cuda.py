"""CUDA tensors: the launches of `csrc/kernels.cuh`, whoever compiled it: nvcc ahead of time (here) or NVRTC
(`dicache.extension.cupy`).

Everything goes to torch's current stream and memory comes from torch's allocator; nothing is waited for. What a launch
needs beyond the tensors travels in its arguments.
"""

import ctypes
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dicache.errors import ExtensionError
from dicache.extension.native import MOST_TERMS, NATIVE, Lines, Unavailable, lines, load, rows

_LONG, _POINTER = ctypes.c_longlong, ctypes.c_void_p
THREADS, WARPS, GROUP, TILE, MOST_COEFFICIENTS = 256, 8, 2048, 8192, 512
"""As in kernels.cuh."""


class LinesStruct(ctypes.Structure):
    """`Lines` of kernels.cuh."""

    _fields_ = (
        ("a", _POINTER),
        ("b", _POINTER),
        *((name, _LONG) for name in ("samples", "outer", "inner", "a_sample", "a_outer", "b_sample", "b_outer")),
    )


class CombinationStruct(ctypes.Structure):
    """`Combination` of kernels.cuh."""

    _fields_ = (
        ("term", _POINTER * MOST_TERMS),
        ("stride", _LONG * MOST_TERMS),
        ("out", _POINTER),
        *((name, _LONG) for name in ("first", "samples", "elements", "terms")),
        ("c", ctypes.c_float * MOST_COEFFICIENTS),
    )


class Launcher(Protocol):
    """Whoever can start the kernels. Pointers are numbers; `device` is an index."""

    name: str

    def sums(
        self, dtype: int, device: int, blocks: int, at: LinesStruct, pointers: tuple[int, int, int], stream: int
    ) -> None: ...

    def combine(
        self, dtype: int, to_float: bool, device: int, blocks: int, task: CombinationStruct, stream: int
    ) -> None: ...


def blocks_per_sample(at: Lines) -> int:
    """`Lines::blocks` of kernels.cuh."""
    together = GROUP // at.inner if at.inner < GROUP else 1
    groups = -(-at.outer // together) * -(-at.inner // GROUP)
    return -(-groups // WARPS)


class Cuda:
    """The operations on CUDA tensors, through a launcher."""

    launcher: Launcher
    name: str

    def __init__(self, launcher: Launcher) -> None:
        self.launcher, self.name = launcher, launcher.name
        self._tickets: dict[tuple[int, int], Tensor] = {}

    def residual_sums(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """Into `out`, (B, 6); a and b are checked and not empty."""
        with torch.cuda.device(a.device):
            stream = torch.cuda.current_stream(a.device).cuda_stream
            self.launch_sums(a, b, out, self._counters(a, stream), stream)

    def launch_sums(self, a: Tensor, b: Tensor, out: Tensor, tickets: Tensor, stream: int) -> None:
        """`tickets`, (B or more,) int32, holds zeros, and will again once the kernel is done."""
        at = lines(a, b)
        a, b, samples, each = at.a, at.b, len(a), blocks_per_sample(at)
        partials = torch.empty(samples * each * 6 if each > 1 else 0, dtype=torch.float32, device=a.device)
        strides = (a.stride(0), at.a_stride, b.stride(0), at.b_stride)
        task = LinesStruct(a.data_ptr(), b.data_ptr(), samples, at.outer, at.inner, *strides)
        pointers = (partials.data_ptr(), tickets.data_ptr(), out.data_ptr())
        self.launcher.sums(NATIVE[a.dtype], _index(a), samples * each, task, pointers, stream)

    def _counters(self, a: Tensor, stream: int) -> Tensor:
        """Two streams must not share tickets, nor a graph what lives outside it."""
        if torch.cuda.is_current_stream_capturing():
            return torch.zeros(len(a), dtype=torch.int32, device=a.device)
        key = (_index(a), stream)
        if key not in self._tickets or len(self._tickets[key]) < len(a):
            self._tickets[key] = torch.zeros(max(len(a), 64), dtype=torch.int32, device=a.device)
        return self._tickets[key]

    def combine(self, terms: Sequence[Tensor], coefficients: Tensor, out: Tensor) -> None:
        """Into `out`, laid out by `ops._like`; the rest is checked and not empty."""
        with torch.cuda.device(out.device):
            self.launch_combine(terms, coefficients, out, torch.cuda.current_stream(out.device).cuda_stream)

    def launch_combine(self, terms: Sequence[Tensor], coefficients: Tensor, out: Tensor, stream: int) -> None:
        """One launch per 512 coefficients."""
        terms, (samples, count) = [rows(t, out) for t in terms], coefficients.shape
        elements, at_once = out.numel() // samples, MOST_COEFFICIENTS // count
        dtype, to_float = NATIVE[terms[0].dtype], out.dtype != terms[0].dtype
        task = CombinationStruct(out=out.data_ptr(), elements=elements, terms=count)
        task.term[:count] = [t.data_ptr() for t in terms]
        task.stride[:count] = [t.stride(0) for t in terms]
        for first in range(0, samples, at_once):
            weights = coefficients[first : first + at_once].flatten().tolist()
            task.first, task.samples, task.c[: len(weights)] = first, len(weights) // count, weights
            blocks = len(weights) // count * -(-elements // TILE)
            self.launcher.combine(dtype, to_float, _index(out), blocks, task, stream)


def _index(t: Tensor) -> int:
    return t.device.index or 0


class CompiledLibrary:
    """A launcher: the library that nvcc built."""

    name = "native (nvcc)"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._sums, self._combine, self._describe = (
            library.dicache_cuda_sums,
            library.dicache_cuda_combine,
            library.dicache_cuda_error,
        )
        unsigned, number = ctypes.c_uint, ctypes.c_int
        self._sums.argtypes = (number, number, unsigned, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER)
        self._combine.argtypes = (number, number, number, unsigned, _POINTER, _POINTER)
        self._describe.restype = ctypes.c_char_p

    def sums(
        self, dtype: int, device: int, blocks: int, at: LinesStruct, pointers: tuple[int, int, int], stream: int
    ) -> None:
        self._check(self._sums(dtype, device, blocks, ctypes.byref(at), *pointers, stream))

    def combine(
        self, dtype: int, to_float: bool, device: int, blocks: int, task: CombinationStruct, stream: int
    ) -> None:
        self._check(self._combine(dtype, to_float, device, blocks, ctypes.byref(task), stream))

    def _check(self, status: int) -> None:
        if status:
            reason = self._describe(status).decode()
            raise ExtensionError(f"a CUDA launch failed: {reason}. Set DICACHE_EXTENSION=eager to go on without.")


def library() -> Cuda:
    """What nvcc built. Raises Unavailable where it is missing or cannot run on this driver and device."""
    loaded = load("cuda")
    compiled = CompiledLibrary(loaded)
    status = loaded.dicache_cuda_usable(torch.cuda.current_device())
    if status:
        raise Unavailable(f"the CUDA library cannot run here: {loaded.dicache_cuda_error(status).decode()}")
    return Cuda(compiled)
