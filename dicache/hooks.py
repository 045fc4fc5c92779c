"""Attaching a session to a denoiser, and taking it off without a trace.

Blocks, and the modules around them, get a hook of diffusers' own registry, so weights, `state_dict`, offload and LoRA
are untouched. The denoiser itself gets two plain torch hooks: a registry hook on it would vanish under model offload.
The first block's hook also receives the `cache_context` that some pipelines set, and is told when the pipeline's run is
over. Whatever was not there before is removed again: `__dict__` is then what it was.

What else may happen to a denoiser in its life is looked for at each call: LoRA, compiled blocks, another cache.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor, nn

from dicache.adapters import Adapters
from dicache.compiled import Compilation, refuse_whole
from dicache.config import Config, measured_on_others
from dicache.errors import AlreadyEnabledError, ModeError, UnsupportedModelError
from dicache.hooked import NAME, Hooked, Uncopied, registry_of
from dicache.models.stacks import find
from dicache.rows import Tree, plain, tensors
from dicache.session import Clock, Session

_TIMES = ("timestep", "timesteps", "t", "sigma")
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

    def __init__(self, run: Callable[..., Tree], part: str, finish: Callable[[], None]) -> None:
        super().__init__(run, part)
        self.branch, self.finish = _Branch(BaseState), finish

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.finish()
        return module


class Attachment(Uncopied):
    """A session on a denoiser; `compiling` are the options of `torch.compile` for its blocks, None to compile none.

    Raises UnsupportedModelError, AlreadyEnabledError or ModeError, and then has changed nothing.
    """

    def __init__(
        self, denoiser: nn.Module, config: Config, clock: Clock, compiling: Mapping[str, Any] | None = None
    ) -> None:
        refuse_whole(denoiser)
        parts = find(denoiser)
        _check_free(denoiser)
        _check_offloaded(parts.blocks.values(), config)
        sites = config.sites.select(parts.blocks, config.probe.depth)
        for approximator in config.approximators:
            approximator.check(denoiser, sites)
        self.denoiser, self.session = denoiser, Session(config, clock, sites)
        session = self.session
        self.signature = inspect.signature(type(denoiser).forward)
        self.root_had_registry = registry_of(denoiser) is not None
        self.hooked: list[Hooked] = []
        self.around: dict[str, Hooked] = {}
        self.adapters = Adapters(denoiser)
        self.handles: list[Any] = []
        first = next(iter(parts.blocks))
        self.first = _FirstHook(session.block, first, session.finish)
        inside = dict.fromkeys(part for site in sites for part in site.parts if part not in parts.blocks)
        deciding = {**parts.blocks, **{part: denoiser.get_submodule(part) for part in inside}}
        self.compilation = Compilation(denoiser, deciding.values(), compiling)
        try:
            for part, module in deciding.items():
                hook = self.first if part == first else _PartHook(session.block, part)
                self.hooked.append(Hooked(module, hook))
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
            self.around[part] = Hooked(module, _PartHook(self.session.around, part))

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
        bound = self.signature.bind_partial(module, *args, **kwargs).arguments
        given = {name: value for name, value in bound.items() if value is not module}
        first = next(iter(given.values()), None)
        latent = next((t for t in tensors(tuple(given.values())) if t.is_floating_point() and t.ndim > 1), None)
        if latent is None or isinstance(first, list | tuple):
            raise UnsupportedModelError(
                f"{type(module).__name__} was called without a latent. "
                "Expected a floating tensor with a batch axis as its first input."
            )
        timestep = next((given[name] for name in _TIMES if name in given), None)
        if timestep is None:
            self.session.note(f"no timestep was found among the denoiser's inputs ({', '.join(_TIMES)}).")
        shapes = tuple(t.shape for t in tensors(tuple(given.values())))
        self.session.begin(latent, timestep, self.first.branch.name, shapes, other_weights=self._looked_around(given))

    def _looked_around(self, given: Mapping[str, Tree]) -> bool:
        """Whether the weights are others than at the last call. What cannot be lived with is an error here."""
        _check_uncached(self.denoiser)
        self.compilation.check()
        if not self.hooked[0].alive:
            self.session.note(
                "its hooks are gone from the blocks, so everything was computed: offload was turned off that had been "
                "turned on before dicache. Call disable() and dicache.enable again."
            )
        changed = self.adapters.changed(given)
        if changed:
            self._surround(find(self.denoiser).around)
            self._forget_registries()
        if not self.adapters.as_at_first:
            measured_on_others(self.session.config, self.session.note)
        return changed

    @_eager
    def _after(self, module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree], output: Tree) -> Tree:
        if self.session.rejected:
            self.session.repeat()
            output = module.forward(*args, **kwargs)
        found = tensors(plain(output))
        if len(found) != 1:
            raise UnsupportedModelError(
                f"{type(module).__name__} returned {len(found)} tensors. Expected one, the prediction for the latent: "
                "models with several latent streams, or lists of samples, cannot be cached yet."
            )
        value = self.session.end(found[0])
        return output if value is found[0] else _replaced(output, value)


def _replaced(output: Tree, value: Tensor) -> Tree:
    """The denoiser's output with its first tensor replaced; the same kind of object."""
    if isinstance(output, Tensor):
        return value
    if hasattr(output, "to_tuple"):
        return type(output)(**{**output, next(iter(output.keys())): value})
    return (value, *output[1:])


def _check_uncached(denoiser: nn.Module) -> None:
    if getattr(denoiser, "is_cache_enabled", False):
        raise AlreadyEnabledError(
            f"{type(denoiser).__name__} has a diffusers cache enabled. Call its disable_cache() first."
        )


def _check_free(denoiser: nn.Module) -> None:
    _check_uncached(denoiser)
    for module in denoiser.modules():
        registry = registry_of(module)
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


def _check_offloaded(blocks: Iterable[nn.Module], config: Config) -> None:
    """Group offload that is inside dicache's hooks brings weights when a group's first block runs, and learns the
    blocks' order from the first call of all, in which dicache runs them twice to count what they cost.
    """
    for registry in filter(None, map(registry_of, blocks)):
        if "layer_execution_tracker" in registry.hooks:
            raise ModeError(
                "group offload with streams has not run yet, and learns from its first run in which order blocks come. "
                "Run the pipeline once before dicache.enable, or turn on group offload after it."
            )
        hook = registry.get_hook("group_offloading")
        if config.sites.inner and hook is not None and len(hook.group.modules) > 1:
            raise ModeError(
                f"group offload moves {len(hook.group.modules)} blocks when the first of them runs, which sites inside "
                "the denoiser may skip. Use num_blocks_per_group=1, or turn on group offload after dicache."
            )
