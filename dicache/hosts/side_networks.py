"""Networks that a pipeline calls in its loop beside the denoiser: ControlNets, a second model for one branch. Nothing
of them is skipped, so a speed-up that left them out would be larger than what is saved.

    what runs between two denoiser calls of a run    counts
    what runs before the first of them               counts if it runs again in that run: its last call, and only if
                                                     the scheduler had the run's times by then
    what runs after the last of them                 does not: it follows the loop

A network is counted as the denoiser's parts are (`dicache.tensors.mac_meter`): where it first runs on inputs of a
shape, in the run that was due. Where a graph would hide it, it runs once more as it was. All samples share evenly.
Encoders and autoencoders, which callbacks may call at every step, are never counted.
"""

import re
from collections.abc import Callable, Collection, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from dicache.hosts.attachment import Attachment
from dicache.hosts.denoiser_call import call_key
from dicache.hosts.module_hook import Uncopied
from dicache.hosts.running_pipeline import Running
from dicache.runtime.run_state import Run
from dicache.runtime.session import Session
from dicache.tensors.mac_meter import MacCounter
from dicache.tensors.tree import Tree, map_tensors

_ENCODERS = re.compile("text_encoder|image_encoder|vae|vq")
"""In the names that pipelines give to what is not of the loop."""


class SideNetwork(Uncopied):
    """One of them: two plain torch hooks, which offload leaves alone. `begins` hears that it is about to run, `ran` its
    name and MACs.
    """

    def __init__(self, module: nn.Module, begins: Callable[[], None], ran: Callable[[str, float], None]) -> None:
        self.name, self.begins, self.ran = type(module._modules.get("_orig_mod", module)).__name__, begins, ran
        self.costs: dict[tuple[Hashable, ...], float] = {}
        self.key: tuple[Hashable, ...] = ()
        self.counter: MacCounter | None = None
        self.handles = (
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        )

    def _before(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> None:
        if torch.compiler.is_compiling():  # the network as a whole: nothing of this may be in its graph
            return
        self.stop()
        self.begins()
        self.key = call_key({**{str(i): tree for i, tree in enumerate(args)}, **kwargs})
        if self.key in self.costs:
            return
        if _compiled(module):
            self.costs[self.key] = 0.0 if hidden(module) else _counted_apart(module, args, kwargs)
            return
        self.counter = MacCounter()
        self.counter.__enter__()

    def _after(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree], output: Tree) -> None:
        if torch.compiler.is_compiling():
            return
        counter = self.stop()
        if output is None:  # it raised
            return
        if counter is not None:
            self.costs[self.key] = counter.total
        self.ran(self.name, self.costs[self.key])

    def stop(self) -> MacCounter | None:
        """What has been counting. Torch calls no hook after a Ctrl-C, so whoever comes next asks for this."""
        counter, self.counter = self.counter, None
        if counter is not None and _get_current_dispatch_mode() is counter:
            counter.__exit__(None, None, None)
        return counter


class SideNetworks(Uncopied):
    """Those of the pipeline that runs, for the sessions of all its denoisers."""

    def __init__(self, running: Running, attachments: Collection[Attachment]) -> None:
        self.running = running
        self.networks = WeakKeyDictionary[nn.Module, SideNetwork]()
        self.calls: list[tuple[str, float, object]] = []
        """Since the denoiser was called last: name, MACs, the scheduler's times by then."""
        self.before_run: dict[str, float] = {}
        """What ran before the run's first denoiser call, by name."""
        self.session: Session | None = None
        self.run: Run | None = None
        """Of the denoiser call before."""
        self.sessions = [attachment.session for attachment in attachments]
        self._look(running.pipe)
        for attachment in attachments:
            attachment.session.on_call = self._before_denoiser
            attachment.handles.append(self)

    def _begins(self) -> None:
        """A network is about to run: what the next call of a denoiser is says whether that counts."""
        for session in self.sessions:
            session.expected = True

    def _ran(self, name: str, macs: float) -> None:
        scheduler = _attributes(self.running.pipeline).get("scheduler")
        self.calls.append((name, macs, _attributes(scheduler).get("timesteps")))

    def _before_denoiser(self, session: Session) -> None:
        """The session has seen the call already."""
        for listening in self.networks.values():
            listening.stop()
        calls, run = list(self.calls), session.run
        self.calls.clear()
        if run is None:
            return
        if self._goes_on(session):
            for name, macs, _ in calls:
                run.side_macs[name] = run.side_macs.get(name, 0.0) + macs + self.before_run.pop(name, 0.0)
        else:
            self.before_run = {name: macs for name, macs, times in calls if times is None or times is run.key}
            self._look(self.running.pipeline)
            for network in filter(hidden, self.networks):
                session.note(
                    f"{type(network).__name__}, beside the denoiser, is compiled in a way that hides what it executes, "
                    "which is in no number here. Compile it with torch.compile(network), or its blocks in place."
                )
        self.session, self.run = session, run

    def _goes_on(self, session: Session) -> bool:
        """Whether it is the loop of the call before; experts take turns in one."""
        before = self.session
        return session.run is self.run or (
            before is not None and before is not session and session.shares_its_run_with(before)
        )

    def _look(self, pipe: object) -> None:
        """Pipelines share a denoiser, and their networks are exchanged: looked for at the beginning of every run."""
        denoisers = {*self.running.denoisers.values()}
        parts = {name: part for name, part in _attributes(pipe).items() if isinstance(part, nn.Module)}
        networks = [part for name, part in parts.items() if part not in denoisers and not _ENCODERS.search(name)]
        if not all(network in self.networks for network in networks):
            owners = (*denoisers, *networks)
            inside = {m for owner in owners for m in owner.modules() if m is not owner}
            for network in networks:
                if network not in self.networks and network not in inside:
                    self.networks[network] = SideNetwork(network, self._begins, self._ran)

    def remove(self) -> None:
        for network in self.networks.values():
            network.stop()
            for handle in network.handles:
                handle.remove()
        self.networks.clear()
        for session in self.sessions:
            session.on_call = bool


def _attributes(holder: object) -> dict[str, Any]:
    try:
        return vars(holder)
    except TypeError:  # None, or it has slots
        return {}


def hidden(module: nn.Module) -> bool:
    """Whether it cannot be counted: hooks are not heard in place of a whole graph, and a wrapped module inside cannot
    run as it was.
    """
    original: Any = module._modules.get("_orig_mod", module)
    return original._compiled_call_impl is not None or any("_orig_mod" in m._modules for m in original.modules())


def _compiled(module: nn.Module) -> bool:
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
