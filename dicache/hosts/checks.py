"""What would make a cached run wrong: another cache on the model, modules that cannot be decided apart, offload that
brings weights with a block that is skipped, attention that cannot be computed branch by branch. Each is an error that
says what to do, and nothing was changed by then.
"""

from collections.abc import Iterable, Mapping

from diffusers.models.cache_utils import CacheMixin
from torch import nn

from dicache.config import Config
from dicache.errors import AlreadyEnabledError, ModeError, UnsupportedModelError
from dicache.hosts.module_hook import NAME, registry_of

_FOREIGN = ("cache", "taylorseer", "pyramid_attention_broadcast", "mag_", "fbc_")


def check_free(denoiser: nn.Module) -> None:
    """Raises AlreadyEnabledError where a cache is on the model, dicache's or another."""
    check_uncached(denoiser)
    if NAME in _hooks(denoiser.modules()):
        raise AlreadyEnabledError(
            f"dicache is already enabled on this {type(denoiser).__name__}. "
            "Call disable() on the Cache that `enable` returned, or dicache.disable(pipe), first."
        )
    check_others(denoiser, denoiser.modules())


def check_uncached(denoiser: nn.Module) -> None:
    """Raises AlreadyEnabledError where one of diffusers' own caches is enabled."""
    if isinstance(denoiser, CacheMixin) and denoiser.is_cache_enabled:
        raise AlreadyEnabledError(
            f"{type(denoiser).__name__} has a diffusers cache enabled. Call its disable_cache() first."
        )


def check_others(denoiser: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Raises AlreadyEnabledError where one of its modules carries the hook of another cache."""
    foreign = (name for name in _hooks(modules) if name != NAME and any(word in name for word in _FOREIGN))
    name = next(foreign, None)
    if name is not None:
        raise AlreadyEnabledError(
            f"{type(denoiser).__name__} carries the hook {name!r} of another cache. Remove it first."
        )


def _hooks(modules: Iterable[nn.Module]) -> list[str]:
    """Names of all that diffusers has hooked to them."""
    return [name for registry in filter(None, map(registry_of, modules)) for name in registry.hooks]


def check_apart(modules: Mapping[str, nn.Module]) -> None:
    """Raises UnsupportedModelError for one module in several places: it would be decided in all of them at once."""
    paths: dict[int, str] = {}
    for path, module in modules.items():
        if id(module) in paths:
            raise UnsupportedModelError(
                f"{path} is the module that {paths[id(module)]} is. Expected modules of their own; they may share "
                "their weights."
            )
        paths[id(module)] = path


def check_offloaded(blocks: Iterable[nn.Module], config: Config) -> None:
    """Raises ModeError where group offload inside dicache's hooks brings the weights of a group when its first block
    runs, which may be skipped.
    """
    for registry in filter(None, map(registry_of, blocks)):
        hook = registry.get_hook("group_offloading")
        if config.sites.inside_denoiser and hook is not None and len(hook.group.modules) > 1:
            raise ModeError(
                f"group offload moves {len(hook.group.modules)} blocks when the first of them runs, which sites inside "
                "the denoiser may skip. Use num_blocks_per_group=1, or turn on group offload after dicache."
            )


def check_eager(denoiser: nn.Module, blocks: Iterable[nn.Module], compiling: Mapping[str, object] | None) -> None:
    """Raises ModeError where blocks are compiled, so that nobody sees into their attention."""
    if compiling is not None or any(block._compiled_call_impl for block in blocks):
        raise ModeError(
            f"sites=Tokens() looks into the attention of {type(denoiser).__name__}'s blocks, which a compiled block "
            "hides. Leave compile_blocks off, or use sites=Evaluation()."
        )


def check_branches(denoiser: nn.Module) -> None:
    """Raises UnsupportedModelError where perturbed attention splits the batch itself. The pipeline's call puts it
    on, so it cannot be refused before.
    """
    parts = ((*vars(module).items(), *module._modules.items()) for module in denoiser.modules())
    processors = (type(part).__name__ for part in parts for name, part in part if name == "processor")
    name = next((name for name in processors if name.startswith("PAG")), None)
    if name is not None:
        raise UnsupportedModelError(
            f"{type(denoiser).__name__} cannot compute its guidance branches apart: {name} splits the batch into them. "
            "Use sites=Evaluation()."
        )
