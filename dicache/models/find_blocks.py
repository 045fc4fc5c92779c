"""Where a denoiser's blocks are: as its family says, or, of a class that nobody knows, found by their shape.

Found by shape is a ModuleList, direct child of the denoiser, whose every block owns parameters and takes the denoiser's
stream. Refiners of the text, control branches and adapters look alike and are left alone by name: they run as parts of
the model around the blocks. Blocks that take a cache are refused, since nobody can see whether they write it; of blocks
that take what earlier ones skipped ahead, no two are skipped as one.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from dicache.errors import ModeError, UnsupportedModelError
from dicache.models.families import FAMILIES
from dicache.models.family import STREAMS, Family, Inside
from dicache.models.refusals import REFUSALS

_NOT_STACKS = (
    "refiner",
    "txt_mode_blocks",
    "text_transformer_blocks",
    "vace_blocks",
    "control",
    "face_adapter",
    "caption_projection",
)
_SKIPS = ("skip", "skips", "res_hidden_states_tuple")


class HookedModules(NamedTuple):
    """Of a denoiser, by their path."""

    blocks: dict[str, nn.Module]
    around: dict[str, nn.Module]


def family_of(denoiser: nn.Module, users: Family | None = None) -> Family:
    """What is known of it: what the user says, else the table, else what its shape shows. Raises UnsupportedModelError
    where it is refused, is of another class than the user's, or shows no stack; ModeError where `users` is no family.
    """
    name = type(denoiser).__name__
    if users is not None and not isinstance(users, Family):
        raise ModeError(f"family is {users!r}. Expected a dicache.Family, or none for a model of diffusers.")
    if users is not None and users.model != name:
        raise UnsupportedModelError(
            f"the family given is that of {users.model}, but this denoiser is a {name}. "
            f"Give a Family(model={name!r}, ...), or none."
        )
    family = users or FAMILIES.get(name) or REFUSALS.get(name) or _by_shape(denoiser)
    if family.refused:
        raise UnsupportedModelError(f"{name} cannot be cached: {family.refused}.")
    return family


def find(denoiser: nn.Module, family: Family) -> HookedModules:
    """Blocks and the modules around them, each of these once. Raises UnsupportedModelError where the family names what
    is not there, or there is no block.
    """
    blocks = {path: block for stack in family.stacks for path, block in _blocks(denoiser, stack)}
    if not blocks:
        raise UnsupportedModelError(
            f"{family.model} has no block in {', '.join(family.stacks)}. Expected at least one."
        )
    around: dict[nn.Module, str] = {}
    for path, module in _leaves(denoiser, "", (*family.stacks, *blocks)):
        if module not in blocks.values() and any(True for _ in module.parameters()):
            around.setdefault(module, path)
    return HookedModules(blocks, {path: module for module, path in around.items()})


def check_streams(blocks: Mapping[str, nn.Module], family: Family) -> None:
    """Raises UnsupportedModelError where a user's family names a stream that no block takes."""
    if tuple(family.streams) == STREAMS[:1]:  # what it says where the user says nothing
        return
    taken = {type(block).__name__: _arguments(block) for block in blocks.values()}
    missing = [name for name in family.streams if not any(name in names for names in taken.values())]
    if missing and not any(_takes_any(block) for block in blocks.values()):
        takes = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in taken.items())
        raise UnsupportedModelError(
            f"no block of {family.model} takes {missing[0]!r}, which Family(streams=...) names. Expected names among "
            f"what their forward takes ({takes})."
        )


def _blocks(denoiser: nn.Module, stack: str) -> Iterator[tuple[str, nn.Module]]:
    if getattr(denoiser, stack, denoiser) is None:  # some configurations leave the middle of a UNet out
        return
    try:
        module = denoiser.get_submodule(stack)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(denoiser).__name__} has no {stack}. Expected the path of a list of blocks, or of one block."
        ) from error
    if isinstance(module, nn.ModuleList):
        yield from ((f"{stack}.{i}", block) for i, block in enumerate(module))
    else:
        yield stack, module


def _leaves(module: nn.Module, path: str, stacks: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """What is called beside the stacks: children, with lists (which are never called) and what holds a stack opened."""
    for name, child in module.named_children():
        here = f"{path}{name}"
        if here in stacks:
            continue
        if isinstance(child, nn.ModuleList | nn.ModuleDict) or any(stack.startswith(f"{here}.") for stack in stacks):
            yield from _leaves(child, f"{here}.", stacks)
        else:
            yield here, child


def _by_shape(denoiser: nn.Module) -> Family:
    name = type(denoiser).__name__
    stacks = [path for path, child in denoiser.named_children() if _is_stack(path, child)]
    if not stacks:
        raise UnsupportedModelError(
            f"{name} has no stack of blocks that dicache recognises. Expected a ModuleList, a direct child, "
            f"of blocks whose forward takes one of {', '.join(STREAMS)}; or give enable a dicache.Family."
        )
    taken = {name for path in stacks for _, block in _blocks(denoiser, path) for name in _arguments(block)}
    caches = sorted(name for name in taken if "cache" in name)
    if caches:
        reason = f"its blocks take {', '.join(caches)}; if they write it, a skipped block corrupts it"
        return Family(model=name, refused=f"{reason}. If they do not, give enable a dicache.Family")
    skips = sorted(name for name in taken if name in _SKIPS)
    if skips:
        between = f"its blocks take {', '.join(skips)} from earlier ones"
        return Family(model=name, stacks=stacks, streams=STREAMS, inside=Inside.BLOCKS, between=between)
    return Family(model=name, stacks=stacks, streams=STREAMS)


def _parameters(block: nn.Module) -> list[inspect.Parameter]:
    """What its forward takes."""
    block = block._modules.get("_orig_mod") or block  # what torch.compile wrapped
    return list(inspect.signature(type(block).forward).parameters.values())[1:]


def _arguments(block: nn.Module) -> list[str]:
    return [parameter.name for parameter in _parameters(block)]


def _takes_any(block: nn.Module) -> bool:
    return any(p.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) for p in _parameters(block))


def _is_stack(path: str, child: nn.Module) -> bool:
    if not isinstance(child, nn.ModuleList) or not len(child) or any(word in path for word in _NOT_STACKS):
        return False
    return all(any(True for _ in block.parameters()) and set(STREAMS) & set(_arguments(block)) for block in child)
