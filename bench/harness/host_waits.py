"""How often would the host wait for the device? Counted on the CPU, where nothing waits.

Every tensor is on the `device` or on the `host`. On the device: parameters and buffers, what the denoiser is called
with, the scheduler's timesteps, whatever is computed from these, and what is made or moved with an argument that is a
`torch.device` (code reads it off a device tensor). On the host: what `.cpu()`, `.to("cpu")` and the like give back,
what is made without a tensor, and whatever is computed from host tensors alone. So the sigmas of DPM-Solver++ are on
the host and those of flow-matching Euler are not: its `set_timesteps` leaves them on the device. A wait is an operation
on a device tensor whose answer the host, or the next kernel's shape, needs: `.item()` and all that ends in it, a copy
to the host, `equal`, `allclose`, `nonzero` and what is like it, indexing by a mask.

Seen are calls of torch from Python. Not seen: what torch's own Python functions do inside one call, waits inside
compiled extensions, and whether the device was busy at all; so this counts the places where code waits, not the time it
waits. Copies from host to device count as free, though pageable memory makes some of them wait.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

_TO_HOST = {"item", "tolist", "numpy", "cpu", "__array__"}
_ASKED = {"__bool__", "__float__", "__int__", "__index__", "__complex__", "__contains__", "__format__", "is_nonzero"}
_SHAPED = {"equal", "allclose", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"}
_WAITS = _TO_HOST | _ASKED | _SHAPED


class Syncs(TorchFunctionMode):
    """Counts in `waits`, and by name in `names`, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.on_device: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.names: dict[str, int] = {}

    @property
    def waits(self) -> int:
        return sum(self.names.values())

    def mark(self, tree: object) -> None:
        """All tensors in the tree are on the device."""
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor):
                self.on_device[leaf] = True

    def holds(self, tree: object) -> bool:
        """Whether any tensor in the tree is on the device."""
        return any(isinstance(t, nn.Parameter) or t in self.on_device for t in tree_leaves(tree) if _is_tensor(t))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        on_device = self.holds((args, kwargs))
        if on_device and self._waits(name, args, kwargs):
            self.names[name] = self.names.get(name, 0) + 1
        output = func(*args, **kwargs)
        if name == "__iter__":
            output = list(output)
        if name in ("to", "cpu") and output is args[0]:  # here, a copy that moved nothing; there, another tensor
            output = output.detach()
            on_device = self.holds(args[0])
        if (on_device and not _to_host(name, args, kwargs)) or _to_device(name, args, kwargs):
            self.mark(output)
        return iter(output) if name == "__iter__" else output

    def _waits(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if name == "__getitem__":
            return any(_is_tensor(t) and t.dtype == torch.bool for t in _index(args[1]))
        if name == "where":
            return len(args) + len(kwargs) == 1
        if name == "copy_":
            return not self.holds(args[0])
        return name in _WAITS or _to_host(name, args, kwargs)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _index(key: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return key if isinstance(key, tuple) else (key,)


def _to_host(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return name in _TO_HOST or (name == "to" and "cpu" in (*(a for a in args if isinstance(a, str)), *_named(kwargs)))


def _named(kwargs: dict[str, Any]) -> list[str]:
    return [value for value in kwargs.values() if isinstance(value, str)]


def _to_device(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(isinstance(value, torch.device) for value in (*args, *kwargs.values()))


@contextmanager
def counted(pipe: FluxPipeline) -> Iterator[Syncs]:
    """Counts over whatever the pipeline draws inside the context."""
    syncs, transformer, scheduler = Syncs(), pipe.transformer, pipe.scheduler
    syncs.mark(list(transformer.buffers()))
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)  # pipelines look at the signature
    def telling(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        set_timesteps(*args, **kwargs)
        syncs.mark(scheduler.timesteps)

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        syncs.mark((args, kwargs))

    handle = transformer.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    scheduler.set_timesteps = telling
    try:
        with syncs:
            yield syncs
    finally:
        del scheduler.set_timesteps
        handle.remove()
