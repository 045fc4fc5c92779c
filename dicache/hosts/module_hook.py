"""Hooks on modules: put on, looked for, taken off, whatever others put on or took off meanwhile.

Diffusers keeps its hooks in a registry and links them; accelerate (sequential offload) wraps `forward` and keeps what
it wrapped in `_old_forward`. Taking off a hook must leave both in place, and leave nothing of its own behind.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from torch import nn

from dicache.errors import CopyError
from dicache.parallel.sharded import Sharded, is_sharded
from dicache.ranks.group import Group, check_lost
from dicache.runtime.module_call import ModuleCall
from dicache.runtime.run_state import Call
from dicache.runtime.session import Session
from dicache.tensors.mac_meter import Meter
from dicache.tensors.tree import Tree

NAME = "dicache"
eager = torch.compiler.disable(
    reason="dicache decides outside of graphs: leave the model as it is, and pass compile_blocks=True to dicache.enable"
)


class Uncopied:
    """What is tied to one model. A copy of it would run the weights of the first."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Uncopied":
        raise CopyError("a model that dicache is enabled on cannot be copied. Call disable() on its Cache first.")

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:  # noqa: ANN401
        raise CopyError(
            "a model that dicache is enabled on cannot be pickled, or sent to another process. "
            "Call disable() on its Cache first; save_pretrained and state_dict work as they are."
        )


class SessionHook(Uncopied, ModelHook):
    """Hands a module's forward to `run` while the session has a call open."""

    session: Session
    run: Callable[[Call, ModuleCall], Tree]
    path: str

    def __init__(self, session: Session, run: Callable[[Call, ModuleCall], Tree], path: str) -> None:
        super().__init__()
        self.session, self.run, self.path = session, run, path
        self.sharded: Sharded | None = None

    @eager
    def new_forward(self, module: nn.Module, *args: Tree, **kwargs: Tree) -> Tree:
        call, forward = self.session.call, self.fn_ref.original_forward
        if self.sharded is not None:
            forward = self.sharded.around(forward)
        if call is None:
            return forward(*args, **kwargs)
        try:
            return self.run(call, ModuleCall(self.path, module, forward, args, kwargs))
        except RuntimeError as error:
            check_lost(error)
            raise


class _Context(threading.local):
    context: CacheContext | None = None


class BranchName(StateManager):
    """Receives the name of the branch that the pipeline is about to run. What a second thread sets, which may not run
    beside the first, is heard by itself alone.
    """

    def __init__(self) -> None:
        self._own = _Context()
        self.of_rank: str | None = None
        """What the branch of this rank is called, where each has one of its own."""
        super().__init__(BaseState)

    @property  # type: ignore[override]
    def _context(self) -> CacheContext | None:
        return self._own.context

    @_context.setter
    def _context(self, context: CacheContext | None) -> None:
        self._own.context = context

    @property
    def name(self) -> str | None:
        return self.of_rank or (None if self._context is None else self._context.name)


class FirstHook(SessionHook):
    """That of the first block: the ear on the pipeline, which sets a `cache_context` and says when its run is over."""

    _is_stateful = True

    branch: BranchName
    attachment: object

    def __init__(self, session: Session, path: str, attachment: object) -> None:
        super().__init__(session, session.strategy.block, path)
        self.branch, self.attachment = BranchName(), attachment

    def reset_state(self, module: nn.Module) -> nn.Module:
        if not self.session.owner.elsewhere:
            self.session.finish()
        return module


class ModuleHook:
    """A hook of the registry, put on when this is made."""

    hook: ModelHook
    worn: Callable[..., Any]
    runs: None
    module: nn.Module

    def __init__(self, module: nn.Module, hook: ModelHook) -> None:
        self.module, self.hook = module, hook
        self.sharded: Sharded | None = None
        self.had: set[str] = {"forward", "_diffusers_hook"} & set(vars(module))
        registry = HookRegistry.check_if_exists_or_initialize(module)
        # What parts tokens over ranks stays outside: what a site is given and gives are both this rank's part.
        outside = [name for name in registry._hook_order if name.startswith("cp_")]
        parting = {name: registry.hooks[name] for name in outside}
        for name in outside:
            registry.remove_hook(name, recurse=False)
        registry.register_hook(hook, NAME)
        self.worn, self.runs = module.forward, hook.fn_ref.forward
        for name, each in parting.items():
            registry.register_hook(each, name)

    def put_back(self) -> None:
        """Where a hook inside of it was taken off: diffusers then has the next one outside call what was inside, in the
        place of what it runs itself.
        """
        reference = self.hook.fn_ref
        if reference.forward is not self.runs:
            reference.original_forward, reference.forward = reference.forward, self.runs

    @property
    def alive(self) -> bool:
        """Whether calls of the module reach the hook: offload that is turned off brings back an older `forward`."""
        state, hooks = vars(self.module), registry_of(self.module)._hook_order
        return hooks[-1] != NAME or self.worn in (state.get("forward"), state.get("_old_forward"))

    def renew(self) -> None:
        """Where it is not alive: put it on what the module runs since then."""
        registry = registry_of(self.module)
        i = registry._hook_order.index(NAME)
        del registry._hook_order[i], registry._fn_refs[i], registry.hooks[NAME]
        registry.register_hook(self.hook, NAME)
        self.worn, self.runs = self.module.forward, self.hook.fn_ref.forward

    def gather_late(self, group: Group) -> None:
        """Where its weights lie on these ranks."""
        if self.sharded is None and isinstance(self.hook, SessionHook) and is_sharded(self.module, group):
            self.sharded = self.hook.sharded = Sharded(self.module)

    def remove(self) -> None:
        if self.sharded is not None:
            self.sharded.undo()
        self.put_back()
        registry, state = registry_of(self.module), vars(self.module)
        wrapped, inside = self.module.forward, self.hook.fn_ref.original_forward
        later = registry._fn_refs[registry._hook_order.index(NAME) + 1 :]
        runs = later[0].forward if later else None
        registry.remove_hook(NAME, recurse=False)
        if later and later[0].original_forward is not None:  # it calls what it wraps itself
            later[0].forward, later[0].original_forward = runs, inside
        wrapped_later = not later and wrapped is not self.worn  # by somebody who goes on with it
        if wrapped_later:
            self.module.forward = wrapped
        if state.get("_old_forward") is self.worn:
            self.module._old_forward = inside
        self._tidy(registry, wrapped=wrapped_later)

    def _tidy(self, registry: HookRegistry, *, wrapped: bool) -> None:
        state = vars(self.module)
        if registry.hooks:
            return
        if "forward" not in self.had and "_old_forward" not in state and not wrapped:
            state.pop("forward", None)
        if "_diffusers_hook" not in self.had:
            state.pop("_diffusers_hook", None)


class Hooks:
    """All hooks of one denoiser: on what may be skipped, and on the modules around it."""

    session: Session
    denoiser: nn.Module

    def __init__(self, denoiser: nn.Module, session: Session) -> None:
        self.denoiser, self.session = denoiser, session
        self.root_had_registry: bool = registry_of(denoiser) is not None
        self.deciding: list[ModuleHook] = []
        self.around: dict[str, ModuleHook] = {}

    def put_on(self, module: nn.Module, hook: SessionHook) -> None:
        self.deciding.append(ModuleHook(module, hook))

    def surround(self, modules: dict[str, nn.Module]) -> None:
        """Hook the modules around the blocks; those that LoRA has replaced meanwhile are let go."""
        for path, module in modules.items():
            before = self.around.get(path)
            if before is not None and before.module is module:
                continue
            if before is not None:
                before.remove()
            self.around[path] = ModuleHook(
                module, SessionHook(self.session, partial(_around, self.session.meter), path)
            )
        self.forget_registries()

    def put_back(self) -> bool:
        """Before every call; whether it will reach them."""
        for hook in (*self.deciding, *self.around.values()):
            hook.put_back()
        return self.deciding[0].alive

    def remove(self) -> None:
        for hook in reversed((*self.deciding, *self.around.values())):
            hook.remove()
        self.deciding, self.around = [], {}
        registry = registry_of(self.denoiser)
        if registry is not None and not registry.hooks and not self.root_had_registry:
            del self.denoiser._diffusers_hook
        self.forget_registries()

    def forget_registries(self) -> None:
        """Diffusers caches which modules carry a registry."""
        registry = registry_of(self.denoiser)
        if registry is not None:
            registry.invalidate_child_registries_cache()


def _around(meter: Meter, call: Call, module_call: ModuleCall) -> Tree:
    """A module around the blocks: always runs, and is counted."""
    # It may serve streams of several sizes, one after another, and in calls of one key always in the same order.
    part = path, number = module_call.path, call.around.get(module_call.path, 0)
    call.around[path] = number + 1
    output = meter.counted(part, module_call.run)
    meter.ran(part)
    return output


def registry_of(module: nn.Module) -> Any:  # noqa: ANN401
    """The registry of diffusers on this module; None if it has none."""
    return vars(module).get("_diffusers_hook")
