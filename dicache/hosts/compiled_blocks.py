"""Compiled blocks inside their hooks: what is decided stays Python, what is computed is a graph.

A block that is compiled from outside would have its hook traced with it. So what is compiled is the forward that the
innermost hook calls, and a block that was compiled already is taken over. Both are undone exactly.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from dicache.errors import ModeError
from dicache.hosts.module_hook import registry_of
from dicache.tensors.tree import Tree, map_tensors

HOW_TO = "Call dicache.enable(..., compile_blocks=True) on the model as it is, and dicache compiles its blocks"


class Compiled:
    """A forward, compiled. Where something counts what runs, which a graph would hide, it also runs as it was."""

    def __init__(self, eager: Callable[..., Tree], options: Mapping[str, Any]) -> None:
        self.eager = eager
        self.compiled: Callable[..., Tree] = torch.compile(eager, **{"fullgraph": True, **options})

    def __call__(self, *args: Tree, **kwargs: Tree) -> Tree:
        if _get_current_dispatch_mode() is None:
            return self.compiled(*args, **kwargs)
        self.eager(*map_tensors(Tensor.clone, args), **map_tensors(Tensor.clone, kwargs))
        with unwatched():
            return self.compiled(*args, **kwargs)


@contextmanager
def unwatched() -> Iterator[None]:
    """Without what counts or looks at operations. Modes are left by the way they were entered: merely taken off their
    stack, torch 2.10 takes them for active still, does not compile, and never tries again. But not by an `__exit__` of
    their own, which may sum up.
    """
    modes = list[TorchDispatchMode]()
    while (mode := _get_current_dispatch_mode()) is not None:
        TorchDispatchMode.__exit__(mode, None, None, None)
        modes.append(mode)
    try:
        yield
    finally:
        for mode in reversed(modes):
            TorchDispatchMode.__enter__(mode)


def refuse_whole(denoiser: nn.Module) -> None:
    """Raises ModeError where the denoiser is compiled as a whole: its graph would hold dicache's decisions."""
    if denoiser._compiled_call_impl is not None or "_orig_mod" in denoiser._modules:
        raise ModeError(f"the denoiser is compiled as a whole, and dicache would be with it. {HOW_TO}.")


def refuse_wrapped(modules: Mapping[str, nn.Module]) -> None:
    """Raises ModeError where `torch.compile` was called on a module and its result put in the module's place: hooks on
    it would be hooks on the module inside, which the graph holds.
    """
    wrapped = next((path for path, module in modules.items() if "_orig_mod" in module._modules), None)
    if wrapped is not None:
        raise ModeError(
            f"{wrapped} is what torch.compile made of a module, and dicache would be compiled with it. {HOW_TO}; or "
            "compile it in place, with its compile()."
        )


class Compilation:
    """Of the hooked modules of one denoiser that have no hooked ones inside them. `options` are those of
    `torch.compile`; None to compile nothing.

    Raises ModeError where a module's forward cannot be a graph.
    """

    options: Mapping[str, Any] | None
    denoiser: nn.Module
    modules: tuple[nn.Module, ...]

    def __init__(self, denoiser: nn.Module, modules: Iterable[nn.Module], options: Mapping[str, Any] | None) -> None:
        self.denoiser, self.modules, self.options = denoiser, tuple(modules), options
        self.taken: list[tuple[nn.Module, Any]] = []
        self.compiled: list[tuple[Any, str]] = []

    def begin(self) -> None:
        self.check()
        if self.options is None:
            return
        hooked = set(self.modules)
        for module in self.modules:
            if not hooked & {m for m in module.modules() if m is not module}:
                self._compile(module, self.options)

    def _compile(self, module: nn.Module, options: Mapping[str, Any]) -> None:
        reference = registry_of(module)._fn_refs[0]
        name = "forward" if reference.original_forward is None else "original_forward"
        vars(reference)[name] = Compiled(vars(reference)[name], options)
        self.compiled.append((reference, name))

    def check(self) -> None:
        """Before every call: what was compiled from outside meanwhile is taken over.

        Raises ModeError without `compile_blocks`, where the whole denoiser was compiled, or where the blocks cannot be.
        """
        refuse_whole(self.denoiser)
        if self.options is not None and any("_hf_hook" in vars(m) for m in self.modules[0].modules()):
            raise ModeError(
                "compile_blocks does not go with sequential offload, whose hooks inside the blocks cannot be compiled. "
                "Use model offload or group offload."
            )
        for module in self.modules:
            if module._compiled_call_impl is None:
                continue
            if self.options is None:
                name = type(self.denoiser).__name__
                raise ModeError(f"the blocks of {name} are compiled, and dicache would be with them. {HOW_TO}.")
            self.taken.append((module, module._compiled_call_impl))
            module._compiled_call_impl = None

    def undo(self) -> None:
        for reference, name in self.compiled:
            vars(reference)[name] = vars(reference)[name].eager
        for module, compiled in self.taken:
            module._compiled_call_impl = compiled
        self.compiled, self.taken = [], []
