"""One network that the loop calls beside the denoiser: counted where it runs, and not run for rows of which nothing
will be read.

    counted    as the denoiser's parts are (`dicache.tensors.mac_meter`): where it first runs on inputs of a shape, in
               the run that was due. Where a graph would hide it, it runs once more as it was
    skipped    for the rows that `plan` leaves out: the others are gathered, run and scattered; where none is left it
               hands on tensors of the right shapes that hold nothing, its `stand_ins`
"""

from collections.abc import Callable, Hashable, Mapping
from inspect import Signature, signature
from typing import Any, NamedTuple

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.hooks import RemovableHandle

from dicache.hosts.denoiser_call import call_key
from dicache.hosts.holding import Holding
from dicache.hosts.module_hook import NAME, ModuleHook, Uncopied, registry_of
from dicache.tensors.mac_meter import MacCounter
from dicache.tensors.tree import Tree, filled, map_tensors, nothing_like, plain, take, tensors
from dicache.tensors.written import Unwritten
from dicache.types import Rows


class NetworkCall(NamedTuple):
    """What it was called with."""

    args: tuple[Tree, ...]
    kwargs: Mapping[str, Tree]
    named: Mapping[str, Tree]
    """The same by the names of its arguments."""


class Handed(NamedTuple):
    """What it handed on, and whether that is still as it was."""

    output: Tree
    parts: list[Tensor]
    unwritten: Unwritten


class SideNetwork(Uncopied):
    """The `part` of a pipeline of this name: two plain torch hooks, which offload leaves alone, and one of diffusers'
    registry that can leave out its forward. `begins` hears that it is about to run, and says for which samples, (B,)
    bool, None for all; `ran` what it executes where it runs for all, in MACs.
    """

    part: str
    ran: Callable[["SideNetwork", float], None]
    name: str
    module: nn.Module
    again: bool
    reached: bool
    begins: Callable[["SideNetwork"], Rows | None]
    signature: Signature
    handles: tuple[RemovableHandle, RemovableHandle]

    def __init__(
        self,
        module: nn.Module,
        part: str,
        begins: Callable[["SideNetwork"], Rows | None],
        ran: Callable[["SideNetwork", float], None],
    ) -> None:
        self.module, self.part, self.begins, self.ran = module, part, begins, ran
        original: Any = module._modules.get("_orig_mod", module)
        self.name, self.signature = type(original).__name__, signature(type(original).forward)
        self.costs: dict[tuple[Hashable, ...], float] = {}
        self.shapes: dict[tuple[Hashable, ...], Tree] = {}
        """Of what it gives, on no device, by the shapes of what it takes."""
        self.key: tuple[Hashable, ...] = ()
        self.counter: MacCounter | None = None
        self.call: NetworkCall | None = None
        """The last one, until nobody asks for it any more."""
        self.handed: Handed | None = None
        """What it gave in that call, where it ran for all samples."""
        self.computed: Rows | None = None
        """The samples that it ran for, (B,) bool; None for all."""
        self.holding: Holding | None = None
        """Where a rule has it held while the denoiser computes: what it gave."""
        self.stand_ins: list[Tensor] = []
        """What it gave where it did not run for all."""
        self.late: dict[int, Tensor] = {}
        """What it gave when it ran after all, for all: by the `id` of each of them."""
        self.again = False
        """Whether it is running so."""
        self.latent = ""
        """Under which name it takes the denoiser's own latent, if what it gives feeds the denoiser alone."""
        self.looked = False
        """Whether that was looked for in this run."""
        self.handles = (
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            # The last that began to count is the first to end, where two caches listen to one network.
            module.register_forward_hook(self._after, prepend=True, with_kwargs=True, always_call=True),
        )
        registry = registry_of(module)
        shared = registry is not None and NAME in registry.hooks  # another cache leaves it out
        self.reached = False
        """Whether this call reaches the hook that can leave out its forward."""
        self.hook: ModuleHook | None = None if shared or compiled(module) else ModuleHook(module, _Leaving(self))

    def _before(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> None:
        if torch.compiler.is_compiling():  # the network as a whole: nothing of this may be in its graph
            return
        self.stop()
        if self.again:
            return
        bound = self.signature.bind_partial(module, *args, **kwargs).arguments
        self.call = NetworkCall(args, kwargs, {name: value for name, value in bound.items() if value is not module})
        self.handed, self.stand_ins, self.computed, self.late = None, [], None, {}
        self.reached = self.hook is not None and self.hook.alive
        if self.hook is not None:
            self.hook.put_back()
            if not self.reached:  # model offload puts back what it wrapped after each run; this call is under way
                self.hook.renew()
        self.key = call_key({**{str(i): tree for i, tree in enumerate(args)}, **kwargs})
        computed = self.begins(self)
        if self.key in self.costs:
            self.computed = None if computed is None or not self._leaves_out(computed) else computed
            return
        if compiled(module):
            self.costs[self.key] = 0.0 if hidden(module) else _counted_apart(module, args, kwargs)
            return
        self.counter = MacCounter()
        self.counter.__enter__()

    def _leaves_out(self, computed: Rows) -> bool:
        """Whether its forward can be left out for the others."""
        if not self.reached or self.key not in self.shapes or compiled(self.module) or bool(computed.all()):
            return False
        rows = {t.shape[0] if t.ndim else 0 for t in tensors(plain(self.shapes[self.key]))}
        apart = rows == {self._rows()}
        return apart or (self.holding is None and not bool(computed.any()))

    def _rows(self) -> int:
        assert self.call is not None
        latent = self.call.named.get(self.latent)
        return latent.shape[0] if isinstance(latent, Tensor) else -1

    def forward(self, forward: Callable[..., Tree], args: tuple[Tree, ...], kwargs: Mapping[str, Tree]) -> Tree:
        """In place of its own, `forward`, where it does not run for all samples."""
        assert self.computed is not None
        shapes, rows = self.shapes[self.key], self._rows()
        device = next(t.device for t in tensors((args, kwargs)) if t.ndim)
        nothing = [nothing_like(t, device) for t in tensors(plain(shapes))]
        parts = self.holding.guess(nothing) if self.holding is not None and self.holding.values is not None else nothing
        if bool(self.computed.any()):
            some_rows = self.computed.repeat(rows // len(self.computed)).nonzero().flatten().to(device)
            own_args, own_kwargs = take(
                args, kwargs, some_rows, rows, tuple(self.signature.parameters)[1 : len(args) + 1]
            )
            ran = tensors(plain(forward(*own_args, **own_kwargs)))
            parts = [part.index_copy(0, some_rows, own.to(part.dtype)) for part, own in zip(parts, ran, strict=True)]
        remaining = iter(parts)
        output = filled(shapes, lambda _: next(remaining))
        self.stand_ins = tensors(plain(output))
        return output

    def _after(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree], output: Tree) -> None:
        if torch.compiler.is_compiling():
            return
        counter = self.stop()
        if output is None:  # it raised
            return
        if counter is not None:
            self.costs[self.key] = counter.total
        parts = tensors(plain(output))
        if self.holding is not None and (self.computed is None or bool(self.computed.any())):
            self.holding.remember(parts, self.computed)
        if self.computed is None and not self.again:
            if self.key not in self.shapes:
                self.shapes[self.key] = filled(output, lambda t: torch.empty_like(t, device="meta"))
            self.handed = None if self.looked or self.call is None else Handed(output, parts, Unwritten(parts))
        self.ran(self, self.costs[self.key])

    def run_late(self) -> dict[int, Tensor]:
        """What it gives for all rows in the call that it left out: by the `id` of what stands in for it."""
        assert self.call is not None
        if not self.late:
            computed, self.computed, self.again = self.computed, None, True
            try:
                parts = tensors(plain(self.module(*self.call.args, **self.call.kwargs)))
                self.late = {id(stand_in): part for stand_in, part in zip(self.stand_ins, parts, strict=True)}
            finally:
                self.computed, self.again = computed, False
        return self.late

    def let_go(self) -> None:
        """Of the tensors of its last call."""
        self.call, self.handed, self.stand_ins, self.late = None, None, [], {}

    def stop(self) -> MacCounter | None:
        """What has been counting. Torch calls no hook after a Ctrl-C, so whoever comes next asks for this."""
        counter, self.counter = self.counter, None
        if counter is not None and _get_current_dispatch_mode() is counter:
            counter.__exit__(None, None, None)
        return counter

    def remove(self) -> None:
        self.stop()
        for handle in self.handles:
            handle.remove()
        if self.hook is not None:
            self.hook.remove()
        self.let_go()


class _Leaving(Uncopied, ModelHook):
    def __init__(self, network: SideNetwork) -> None:
        super().__init__()
        self.network = network

    def new_forward(self, module: nn.Module, *args: Tree, **kwargs: Tree) -> Tree:
        forward = self.fn_ref.original_forward
        return (
            forward(*args, **kwargs) if self.network.computed is None else self.network.forward(forward, args, kwargs)
        )


def hidden(module: nn.Module) -> bool:
    """Whether it cannot be counted: hooks are not heard in place of a whole graph, and a wrapped module inside cannot
    run as it was.
    """
    original: Any = module._modules.get("_orig_mod", module)
    return original._compiled_call_impl is not None or any("_orig_mod" in m._modules for m in original.modules())


def compiled(module: nn.Module) -> bool:
    """As a whole, or a part of it."""
    return any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in module.modules())


def _counted_apart(module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> float:
    """What it executes without its graphs, which hide that, and which a counter would break."""
    original: Any = module._modules.get("_orig_mod", module)
    graphs = [(m, m._compiled_call_impl) for m in original.modules() if m._compiled_call_impl is not None]
    for m, _ in graphs:
        m._compiled_call_impl = None
    try:
        with MacCounter() as counter:
            original.forward(*map_tensors(Tensor.clone, args), **map_tensors(Tensor.clone, kwargs))
    finally:
        for m, graph in graphs:
            m._compiled_call_impl = graph
    return counter.total
