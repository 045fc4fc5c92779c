"""CuPy as the compiler and launcher of the CUDA kernels where the install had no nvcc: the same source, through NVRTC.

Wants the extra `dicache[cuda]`. The first use compiles, for less than a second, and CuPy keeps the result on disk.
"""

import ctypes
from typing import Any

import numpy as np
import torch

from dicache.extension.build import SOURCES
from dicache.extension.cuda import THREADS, CombinationStruct, Cuda, LinesStruct
from dicache.extension.native import Unavailable

OPTIONS = ("-std=c++17",)


class Cupy:
    """A launcher. Structures go by value, as the bytes of one numpy record."""

    name = "CuPy (NVRTC)"

    def __init__(self, cupy: Any) -> None:  # noqa: ANN401
        self._cupy = cupy
        self._module = cupy.RawModule(code=source(), options=OPTIONS, backend="nvrtc")
        self._module.get_function("dicache_sums_0")  # compiles now, so that a failure is found when choosing

    def sums(
        self, dtype: int, device: int, blocks: int, at: LinesStruct, pointers: tuple[int, int, int], stream: int
    ) -> None:
        self._launch(f"dicache_sums_{dtype}", device, blocks, (_record(at), *pointers), stream)

    def combine(
        self, dtype: int, to_float: bool, device: int, blocks: int, task: CombinationStruct, stream: int
    ) -> None:
        wide = int(to_float and dtype != 0)
        self._launch(f"dicache_combine_{dtype}_{wide}", device, blocks, (_record(task),), stream)

    def _launch(self, name: str, device: int, blocks: int, arguments: tuple[Any, ...], stream: int) -> None:
        with self._cupy.cuda.Device(device), self._cupy.cuda.ExternalStream(stream, device):
            self._module.get_function(name)((blocks,), (THREADS,), arguments)


def source() -> str:
    return (SOURCES / "kernels.cuh").read_text(encoding="utf-8")


def _record(structure: ctypes.Structure) -> np.ndarray:
    kind = np.dtype([("bytes", f"V{ctypes.sizeof(structure)}")])
    return np.frombuffer(bytes(structure), dtype=kind)


def compiled() -> Cuda:
    """Raises Unavailable where CuPy is missing or does not work here."""
    try:
        import cupy
    except ImportError as error:
        raise Unavailable(f"CuPy is not installed (pip install 'dicache[cuda]'): {error}") from error
    try:
        with torch.cuda.device(torch.cuda.current_device()):
            return Cuda(Cupy(cupy))
    except Exception as error:  # CuPy has many kinds of its own, and none of them should end a run
        raise Unavailable(f"CuPy cannot run the kernels here: {type(error).__name__}: {error}") from error
