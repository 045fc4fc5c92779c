"""Attaching a session to a denoiser, and taking it off without a trace.

Blocks, and the modules around them, get a hook of diffusers' own registry, so weights, `state_dict`, offload and LoRA
are untouched. The denoiser itself gets two plain torch hooks: a registry hook on it would vanish under model offload.
The first block's hook also receives the `cache_context` that some pipelines set, and is told when the pipeline's run is
over. Whatever was not there before is removed again: `__dict__` is then what it was.

What else may happen to a denoiser in its life is looked for at each call: LoRA, compiled blocks, another cache.
"""

import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from dicache.config import Config
from dicache.errors import AlreadyEnabledError, ModeError, UnsupportedModelError
from dicache.hosts.compiled_blocks import Compilation, refuse_wrapped
from dicache.hosts.latents import latent_of, prediction_of, returned
from dicache.hosts.lora import Adapters
from dicache.hosts.module_hook import NAME, ModuleHook, Uncopied, registry_of
from dicache.models.conditioning import fingerprint
from dicache.models.family import Batch, Family
from dicache.models.find_blocks import family_of, find
from dicache.runtime.session import Clock, Session
from dicache.tensors.tree import Tree, tensors
from dicache.types import Kind

_FOREIGN = ("cache", "taylorseer", "pyramid_attention_broadcast", "mag_", "fbc_")
_eager = torch.compiler.disable(
    reason="dicache decides outside of graphs: leave the model as it is, and pass compile_blocks=True to dicache.enable"
)


class _Branch(StateManager):
    """Receives the name of the branch that the pipeline is about to run."""

    @property
    def name(self) -> str | None:
        return None if self._context is None else self._context.name


class _PartHook(Uncopied, ModelHook):
    """Hands a part's forward to the session."""

    def __init__(self, run: Callable[..., Tree], part: str) -> None:
        super().__init__()
        self.run, self.part = run, part

    @_eager
    def new_forward(self, module: nn.Module, *args: Tree, **kwargs: Tree) -> Tree:
        return self.run(self.part, module, self.fn_ref.original_forward, args, kwargs)


class _FirstHook(_PartHook):
    """The same, and the ear on the pipeline."""

    _is_stateful = True

    def __init__(self, attachment: "Attachment", part: str) -> None:
        super().__init__(attachment.session.block, part)
        self.attachment, self.branch = attachment, _Branch(BaseState)

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.attachment.session.finish()
        return module


class Attachment(Uncopied):
    """A session on a denoiser; `compiling` are the options of `torch.compile` for its blocks, None to compile none.

    Raises UnsupportedModelError, AlreadyEnabledError or ModeError, and then has changed nothing.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        config: Config,
        clock: Clock,
        compiling: Mapping[str, Any] | None = None,
        family: Family | None = None,
    ) -> None:
        self.family = family_of(denoiser, family)
        parts = find(denoiser, self.family)
        refuse_wrapped(parts.blocks)
        _check_free(denoiser)
        _check_offloaded(parts.blocks.values(), config)
        sites = config.sites.select(parts.blocks, config.probe.depth)
        self.family.check(sites, config.probe.depth)
        for approximator in config.approximators:
            approximator.check(denoiser, sites)
        self.denoiser = denoiser
        self.session = Session(config, clock, sites)
        session = self.session
        self.apart = any(site.kind is Kind.BRANCH for site in sites)
        self.signature = inspect.signature(type(denoiser).forward)
        self.given: dict[str, Tree] = {}
        self.root_had_registry = registry_of(denoiser) is not None
        self.hooked: list[ModuleHook] = []
        self.around: dict[str, ModuleHook] = {}
        self.adapters = Adapters(denoiser)
        self.handles: list[Any] = []
        self.undo: Callable[[], None] = self.detach
        """Takes it off: `disable` of the Cache that it belongs to."""
        first = next(iter(parts.blocks))
        self.first = _FirstHook(self, first)
        inside = dict.fromkeys(part for site in sites for part in site.modules if part not in parts.blocks)
        deciding = {**parts.blocks, **{part: denoiser.get_submodule(part) for part in inside}}
        _check_apart(deciding)
        self.compilation = Compilation(denoiser, deciding.values(), compiling)
        try:
            for part, module in deciding.items():
                hook = self.first if part == first else _PartHook(session.block, part)
                self.hooked.append(ModuleHook(module, hook))
            self._surround(parts.around)
            self.compilation.begin()
            self.handles.append(denoiser.register_forward_pre_hook(self._before, with_kwargs=True))
            self.handles.append(denoiser.register_forward_hook(self._after, with_kwargs=True))
        except BaseException:
            self.detach()
            raise
        self._forget_registries()

    def _surround(self, modules: dict[str, nn.Module]) -> None:
        """Hook the modules around the blocks; those that LoRA has replaced meanwhile are let go."""
        for part, module in modules.items():
            before = self.around.get(part)
            if before is not None and before.module is module:
                continue
            if before is not None:
                before.remove()
            self.around[part] = ModuleHook(module, _PartHook(self.session.around, part))

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.compilation.undo()
        for hooked in reversed((*self.hooked, *self.around.values())):
            hooked.remove()
        self.handles, self.hooked, self.around = [], [], {}
        registry = registry_of(self.denoiser)
        if registry is not None and not registry.hooks and not self.root_had_registry:
            del self.denoiser._diffusers_hook
        self._forget_registries()
        self.session.release()

    def _forget_registries(self) -> None:
        """Diffusers caches which modules carry a registry."""
        registry = registry_of(self.denoiser)
        if registry is not None:
            registry.invalidate_child_registries_cache()

    @_eager
    def _before(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> None:
        self.given = given = self._given(args, kwargs)
        self._check_branches()
        latent = latent_of(self.family.model, given, self.family.latents)
        timestep = self.family.timestep(given)
        if timestep is None:
            self.session.note(f"no timestep was found among the denoiser's inputs ({', '.join(self.family.time)}).")
        others, gathered = self._looked_around(given), self.family.batch is Batch.SAMPLE and not _holds_cache(given)
        name, key = self.first.branch.name, _key(given)
        told = partial(fingerprint, given, latent.shape[0])
        self.session.begin(latent, timestep, name, key, gathered=gathered, other_weights=others, conditions=told)

    def _check_branches(self) -> None:
        """Perturbed attention is put on the denoiser by the pipeline's call, so it cannot be refused before."""
        processors = getattr(self.denoiser, "attn_processors", {}) if self.apart else {}
        name = next((type(p).__name__ for p in processors.values() if type(p).__name__.startswith("PAG")), None)
        if name is not None:
            raise UnsupportedModelError(
                f"{self.family.model} cannot compute its guidance branches apart: {name} splits the batch into them. "
                "Use sites=Evaluation()."
            )

    def _given(self, args: tuple[Tree, ...], kwargs: Mapping[str, Tree]) -> dict[str, Tree]:
        """The denoiser's inputs by name."""
        bound = self.signature.bind_partial(self.denoiser, *args, **kwargs).arguments
        return {name: value for name, value in bound.items() if value is not self.denoiser}

    def _looked_around(self, given: Mapping[str, Tree]) -> bool:
        """Whether the weights are others than at the last call. What cannot be lived with is an error here."""
        _check_uncached(self.denoiser)
        run = self.session.run
        if run is None or run.complete or run.at_end:
            _check_others(self.denoiser)
        self.compilation.check()
        for hooked in (*self.hooked, *self.around.values()):
            hooked.keep()
        if not self.hooked[0].alive:
            self.session.note(
                "its hooks are gone from the blocks, so everything was computed: offload was turned off that had been "
                "turned on before dicache. Call disable() and dicache.enable again."
            )
        changed = self.adapters.changed(given)
        if changed:
            self._surround(find(self.denoiser, self.family).around)
            self._forget_registries()
        if not self.adapters.as_at_first:
            for text in self.session.config.on_other_weights():
                self.session.note(text)
        return changed

    @_eager
    def _after(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree], output: Tree) -> Tree:
        if self.session.rejected:
            self.session.repeat()
            output = module.forward(*args, **kwargs)
        given, self.given = self.given, {}
        if self.session.call is None:
            return output
        latent, names = self.session.call.latent, self.family.latents
        found = prediction_of(self.family.model, latent, given, names, output)
        value = self.session.end(found)
        return output if value is found else returned(output, value)


def attached_to(denoiser: nn.Module) -> Attachment | None:
    """What `enable` has put on this denoiser; None where nothing is."""
    registries = filter(None, map(registry_of, denoiser.modules()))
    hooks = (registry.get_hook(NAME) for registry in registries)
    return next((hook.attachment for hook in hooks if isinstance(hook, _FirstHook)), None)


def _key(given: Mapping[str, Tree]) -> tuple[Hashable, ...]:
    """What tells calls apart that run other parts, or the same on other shapes: switches and layers to leave out."""
    shapes = (t.shape for t in tensors(tuple(given.values())))
    return (*shapes, *((name, repr(value)) for name, value in given.items() if _switch(value)))


def _holds_cache(given: Mapping[str, Tree]) -> bool:
    """Whether blocks read keys and values of all samples from an object, which cannot be taken apart."""
    return any("cache" in name and value is not None for name, value in given.items())


def _switch(value: Tree) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and all(isinstance(i, int) for i in value))


def _check_uncached(denoiser: nn.Module) -> None:
    if getattr(denoiser, "is_cache_enabled", False):
        raise AlreadyEnabledError(
            f"{type(denoiser).__name__} has a diffusers cache enabled. Call its disable_cache() first."
        )


def _check_free(denoiser: nn.Module) -> None:
    _check_uncached(denoiser)
    if NAME in _hooks(denoiser):
        raise AlreadyEnabledError(
            f"dicache is already enabled on this {type(denoiser).__name__}. "
            "Call disable() on the Cache that `enable` returned, or dicache.disable(pipe), first."
        )
    _check_others(denoiser)


def _check_others(denoiser: nn.Module) -> None:
    others = (name for name in _hooks(denoiser) if name != NAME and any(word in name for word in _FOREIGN))
    name = next(others, None)
    if name is not None:
        raise AlreadyEnabledError(
            f"{type(denoiser).__name__} carries the hook {name!r} of another cache. Remove it first."
        )


def _hooks(denoiser: nn.Module) -> list[str]:
    """Names of all that diffusers has hooked to its modules."""
    return [name for registry in filter(None, map(registry_of, denoiser.modules())) for name in registry.hooks]


def _check_apart(modules: Mapping[str, nn.Module]) -> None:
    """One module in several places would be decided in all of them at once."""
    paths: dict[int, str] = {}
    for path, module in modules.items():
        if id(module) in paths:
            raise UnsupportedModelError(
                f"{path} is the module that {paths[id(module)]} is. Expected modules of their own; they may share "
                "their weights."
            )
        paths[id(module)] = path


def _check_offloaded(blocks: Iterable[nn.Module], config: Config) -> None:
    """Group offload that is inside dicache's hooks brings the weights of a group when its first block runs."""
    for registry in filter(None, map(registry_of, blocks)):
        hook = registry.get_hook("group_offloading")
        if config.sites.inside_denoiser and hook is not None and len(hook.group.modules) > 1:
            raise ModeError(
                f"group offload moves {len(hook.group.modules)} blocks when the first of them runs, which sites inside "
                "the denoiser may skip. Use num_blocks_per_group=1, or turn on group offload after dicache."
            )
