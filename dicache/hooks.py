"""Attaching a session to a denoiser, and taking it off without a trace.

Blocks, and the modules around them, get a hook of diffusers' own registry, so weights, `state_dict`, offload and LoRA
are untouched. The denoiser itself gets two plain torch hooks: a registry hook on it would vanish under model offload.
The first block's hook also receives the `cache_context` that some pipelines set, and is told when the pipeline's run is
over. Whatever was not there before is removed again: `__dict__` is then what it was.
"""

import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from dicache.config import Config
from dicache.errors import AlreadyEnabledError, UnsupportedModelError
from dicache.latents import latent_of, prediction_of, returned
from dicache.models.family import Batch, Family
from dicache.models.stacks import family_of, find
from dicache.rows import Tree, tensors
from dicache.session import Clock, Session
from dicache.types import Kind

NAME = "dicache"
_FOREIGN = ("cache", "taylorseer", "pyramid_attention_broadcast", "mag_", "fbc_")


class _Branch(StateManager):
    """Receives the name of the branch that the pipeline is about to run."""

    @property
    def name(self) -> str | None:
        return None if self._context is None else self._context.name


class _PartHook(ModelHook):
    """Hands a part's forward to the session."""

    def __init__(self, run: Callable[..., Tree], part: str) -> None:
        super().__init__()
        self.run, self.part = run, part

    def new_forward(self, module: nn.Module, *args: Tree, **kwargs: Tree) -> Tree:
        return self.run(self.part, self.fn_ref.original_forward, args, kwargs)


class _FirstHook(_PartHook):
    """The same, and the ear on the pipeline."""

    _is_stateful = True

    def __init__(self, run: Callable[..., Tree], part: str, finish: Callable[[], None]) -> None:
        super().__init__(run, part)
        self.branch, self.finish = _Branch(BaseState), finish

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.finish()
        return module


class Attachment:
    """A session on a denoiser. Raises UnsupportedModelError or AlreadyEnabledError, and then has changed nothing."""

    def __init__(self, denoiser: nn.Module, config: Config, clock: Clock, family: Family | None = None) -> None:
        self.family = family_of(denoiser, family)
        parts = find(denoiser, self.family)
        _check_free(denoiser)
        sites = config.sites.select(parts.blocks, config.probe.depth)
        self.family.check(sites, config.probe.depth)
        for approximator in config.approximators:
            approximator.check(denoiser, sites)
        self.denoiser = denoiser
        self.session = Session(config, clock, sites)
        session = self.session
        self.apart = any(site.kind is Kind.BRANCH for site in sites)
        self.signature = inspect.signature(type(denoiser).forward)
        self.root_had_registry = _registry(denoiser) is not None
        self.hooked: list[tuple[nn.Module, set[str]]] = []
        self.handles: list[Any] = []
        first = next(iter(parts.blocks))
        self.first = _FirstHook(session.block, first, session.finish)
        try:
            for part, module in parts.blocks.items():
                self._register(module, self.first if part == first else _PartHook(session.block, part))
            for part in dict.fromkeys(part for site in sites for part in site.parts if part not in parts.blocks):
                self._register(denoiser.get_submodule(part), _PartHook(session.block, part))
            for part, module in parts.around.items():
                self._register(module, _PartHook(session.around, part))
            self.handles.append(denoiser.register_forward_pre_hook(self._before, with_kwargs=True))
            self.handles.append(denoiser.register_forward_hook(self._after, with_kwargs=True))
        except BaseException:
            self.detach()
            raise
        self._forget_registries()

    def _register(self, module: nn.Module, hook: ModelHook) -> None:
        had = {"forward", "_diffusers_hook"} & set(module.__dict__)
        self.hooked.append((module, had))
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, NAME)

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        for module, had in reversed(self.hooked):
            _remove(module, had)
        self.handles, self.hooked = [], []
        registry = _registry(self.denoiser)
        if registry is not None and not registry.hooks and not self.root_had_registry:
            del self.denoiser._diffusers_hook
        self._forget_registries()
        self.session.release()

    def _forget_registries(self) -> None:
        """Diffusers caches which modules carry a registry."""
        registry = _registry(self.denoiser)
        if registry is not None:
            registry.invalidate_child_registries_cache()

    def _before(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> None:
        given = self._given(args, kwargs)
        self._check_branches()
        latent = latent_of(self.family.model, given, self.family.latents)
        timestep = self.family.timestep(given)
        if timestep is None:
            self.session.note(f"no timestep was found among the denoiser's inputs ({', '.join(self.family.time)}).")
        gathered = self.family.batch is Batch.SAMPLE and not _holds_cache(given)
        self.session.begin(latent, timestep, self.first.branch.name, _key(given), gathered=gathered)

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

    def _after(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree], output: Tree) -> Tree:
        if self.session.rejected:
            self.session.repeat()
            output = module.forward(*args, **kwargs)
        if self.session.call is None:
            return output
        latent, names = self.session.call.latent, self.family.latents
        found = prediction_of(self.family.model, latent, self._given(args, kwargs), names, output)
        value = self.session.end(found)
        return output if value is found else returned(output, value)


def _key(given: Mapping[str, Tree]) -> tuple[Hashable, ...]:
    """What tells calls apart that run other parts, or the same on other shapes: switches and layers to leave out."""
    shapes = (t.shape for t in tensors(tuple(given.values())))
    return (*shapes, *((name, repr(value)) for name, value in given.items() if _switch(value)))


def _holds_cache(given: Mapping[str, Tree]) -> bool:
    """Whether blocks read keys and values of all samples from an object, which cannot be taken apart."""
    return any("cache" in name and value is not None for name, value in given.items())


def _switch(value: Tree) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and all(isinstance(i, int) for i in value))


def _check_free(denoiser: nn.Module) -> None:
    if getattr(denoiser, "is_cache_enabled", False):
        raise AlreadyEnabledError(
            f"{type(denoiser).__name__} has a diffusers cache enabled. Call its disable_cache() first."
        )
    for module in denoiser.modules():
        registry = _registry(module)
        for name in registry.hooks if registry is not None else ():
            if name == NAME:
                raise AlreadyEnabledError(
                    f"dicache is already enabled on this {type(denoiser).__name__}. "
                    "Call disable() on the Cache that `enable` returned first."
                )
            if any(word in name for word in _FOREIGN):
                raise AlreadyEnabledError(
                    f"{type(denoiser).__name__} carries the hook {name!r} of another cache. Remove it first."
                )


def _registry(module: nn.Module) -> Any:  # noqa: ANN401
    return module.__dict__.get("_diffusers_hook")


def _remove(module: nn.Module, had: set[str]) -> None:
    registry = _registry(module)
    registry.remove_hook(NAME, recurse=False)
    if registry.hooks:
        return
    for name in ("forward", "_diffusers_hook"):
        if name not in had and name in module.__dict__ and not hasattr(module, "_hf_hook"):
            del module.__dict__[name]
