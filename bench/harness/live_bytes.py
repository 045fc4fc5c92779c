"""What a cache holds on to: bytes of live tensors at the end of a run's last denoiser call.

All tensors that the garbage collector knows are walked, each storage counted once and parameters left out. The caller
subtracts the same number for the uncached pipeline: what remains is what the arm keeps.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import FluxPipeline
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def live_bytes() -> int:
    """Of all tensors in this process that are no parameters."""
    gc.collect()
    sizes, parameters = {}, set()
    for item in gc.get_objects():
        if not issubclass(type(item), Tensor) or item.layout.__str__() != "torch.strided":
            continue
        if isinstance(item, FakeTensor | FunctionalTensor):  # left by torch.compile: they hold no memory
            continue
        if is_traceable_wrapper_subclass(item):  # quantised: the tensors inside are walked themselves
            continue
        storage = item.untyped_storage()
        if isinstance(item, nn.Parameter):
            parameters.add(storage.data_ptr())
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(size for pointer, size in sizes.items() if pointer not in parameters)


@contextmanager
def at_last_call(pipe: FluxPipeline, calls: int) -> Iterator[list[int]]:
    """Fills the list with `live_bytes` at the end of the denoiser's call number `calls`."""
    seen, readings = [0], []

    def after(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        seen[0] += 1
        if seen[0] == calls:
            readings.append(live_bytes())

    handle = pipe.transformer.register_forward_hook(after)
    try:
        yield readings
    finally:
        handle.remove()
