"""Text encoders that remember: called with token ids that the memory has, the encoder does not run.

    key = sha256(encoder's class, weights and settings; every argument to the bit; device and autocast)

So another prompt, another encoder, or the same one with other weights never gives an entry away. An encoder runs as
always with gradients on, in training, with adapters in it, or while its weights are elsewhere. Where the memory cannot
be read or written in the midst of things, a warning says so once, and the run goes on without it.
"""

import inspect
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dicache.errors import ArgumentError, DicacheWarning, MemoryFileError, ModeError
from dicache.files.checked import FileFault
from dicache.files.content import digest_of
from dicache.hosts.module_hook import Uncopied
from dicache.memory.encoded import Unfit, decoded, encoded
from dicache.memory.store import Memory
from dicache.models.identity import identity, offloaded
from dicache.models.weights import Weights
from dicache.tensors.tree import Tree, tensors

FORWARD = "forward"
DAMAGED = (FileFault, ValueError, TypeError, LookupError, RuntimeError)
"""What reading an entry raises that is not what was written."""


@dataclass
class MemoryUse:
    """Of all text encoders of a pipeline, since `enable`."""

    remembered: int = 0
    """Calls that were answered from the memory."""
    computed: int = 0
    """Calls that ran."""
    seconds_saved: float = 0.0
    """What the remembered calls took when they ran, less what remembering took."""


class RememberingEncoder(Uncopied):
    """In the place of one encoder's `forward`, until `remove`."""

    name: str
    memory: Memory
    use: MemoryUse
    forward: Callable[..., Any]
    on: bool
    weights: Weights
    model: str
    encoder: nn.Module

    def __init__(self, name: str, encoder: nn.Module, memory: Memory, use: MemoryUse) -> None:
        self.name, self.encoder, self.memory, self.use = name, encoder, memory, use
        self.own: bool = FORWARD in vars(encoder)
        self.forward, self.on = encoder.forward, True
        self.__signature__: inspect.Signature = inspect.signature(encoder.forward)  # pipelines look at it
        self.weights, self.model = Weights(encoder), ""
        encoder.forward = self

    def __call__(self, *args: Tree, **kwargs: Tree) -> Tree:
        key = self._key(args, kwargs) if self.on else None
        if key is None:
            return self.forward(*args, **kwargs)
        output = self._remembered(key, tensors((args, kwargs))[0].device)
        return self._computed(key, args, kwargs) if output is None else output

    def _remembered(self, key: str, device: torch.device) -> Tree:
        """None where it has to be computed."""
        started, output = time.perf_counter(), None
        try:
            entry = self.memory.read(key)
            if entry is not None:
                output, took = decoded(entry, key, self.encoder, device)
                self.use.remembered += 1
                self.use.seconds_saved += took - (time.perf_counter() - started)
        except MemoryFileError as error:
            self._give_up(error)
        except DAMAGED:
            output = None  # the entry is written anew
        return output

    def _computed(self, key: str, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> Tree:
        started = time.perf_counter()
        output = self.forward(*args, **kwargs)
        self.use.computed += 1
        if not self.on:
            return output
        for t in tensors(output)[:1]:
            t.reshape(-1)[:1].cpu()  # until then the device is at work
        try:
            self.memory.write(key, encoded(output, key, time.perf_counter() - started))
        except Unfit:
            self.on = False
        except MemoryFileError as error:
            self._give_up(error)
        return output

    def _key(self, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> str | None:
        """None where it must run, or cannot be known."""
        encoder, arguments = self.encoder, tensors((args, kwargs))
        adapted = any("lora_A" in module._modules for module in encoder.modules())
        if torch.is_grad_enabled() or encoder.training or adapted or not arguments or offloaded(encoder):
            return None
        if self.weights.changed() or not self.model:
            settings = vars(encoder).get("config")
            self.model = f"{identity(encoder)} {settings}"
        device = arguments[0].device.type
        surroundings = [device, torch.is_autocast_enabled(device), str(torch.get_autocast_dtype(device))]
        try:
            return digest_of([self.name, self.model, surroundings, list(args), dict(kwargs)])
        except ArgumentError:
            return None

    def _give_up(self, error: MemoryFileError) -> None:
        self.on = False
        warnings.warn(f"{error} Text encoders run without it.", DicacheWarning, stacklevel=4)

    def remove(self) -> None:
        """Where somebody wrapped it meanwhile, it stays inside and only calls on."""
        self.on = False
        if vars(self.encoder).get(FORWARD) is self:
            if self.own:
                self.encoder.forward = self.forward
            else:
                del self.encoder.forward


class Encoders:
    """The text encoders of a pipeline, that remember until `remove`."""

    def __init__(self, pipe: Any, memory: Memory) -> None:  # noqa: ANN401
        self.use: MemoryUse = MemoryUse()
        parts = {name: part for name, part in vars(pipe).items() if name.startswith("text_encoder")}
        self.encoders: list[RememberingEncoder] = [
            RememberingEncoder(name, part, memory, self.use)
            for name, part in parts.items()
            if isinstance(part, nn.Module)
        ]

    def remove(self) -> None:
        for encoder in self.encoders:
            encoder.remove()


def parse_memory(memory: Any, pipe: Any) -> Memory | None:  # noqa: ANN401
    """What `enable` was handed, or None. Raises ModeError for what is no memory, or one without text encoders."""
    if memory is None:
        return None
    if not isinstance(memory, Memory):
        if isinstance(memory, bool) or ("__fspath__" not in dir(memory) and not isinstance(memory, str)):
            raise ModeError(f"memory is {memory!r:.60}. Expected the name of a file, or a dicache.Memory.")
        memory = Memory(memory)
    names = vars(pipe) if not isinstance(pipe, nn.Module) else {}
    if not any(name.startswith("text_encoder") and isinstance(part, nn.Module) for name, part in names.items()):
        raise ModeError(f"a {type(pipe).__name__} has no text encoder that could remember. Leave memory=... out.")
    memory.check()
    return memory
