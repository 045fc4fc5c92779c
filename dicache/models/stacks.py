"""Where a denoiser's blocks are: its stacks, found by shape, and the models that must not be skipped at all.

A stack is a ModuleList, direct child of the denoiser, whose every block owns parameters and takes the denoiser's
stream. Refiners of the text, control branches and adapters look alike and are left alone by name: they run as parts of
the model around the blocks. Skipping hands the blocks' shapes on and replaces the denoiser's output, so nothing else
need be known of the blocks.
"""

import inspect
from typing import NamedTuple, cast

from torch import nn

from dicache.errors import UnsupportedModelError

_STREAMS = {"hidden_states", "x", "visual_embed", "gen_seq", "vis"}
_NOT_STACKS = (
    "refiner",
    "txt_mode_blocks",
    "text_transformer_blocks",
    "vace_blocks",
    "control",
    "face_adapter",
    "caption_projection",
)
_WRITES_STATE = "its blocks write a key-value cache that later steps read, so a skipped block corrupts it"
REFUSED = {
    "AnyFlowFARTransformer3DModel": _WRITES_STATE,
    "GlmImageTransformer2DModel": _WRITES_STATE,
    "HeliosTransformer3DModel": _WRITES_STATE,
    "MiniMaxMusic3RVQDepthDecoder": "it is an autoregressive decoder, not a denoiser",
    "NucleusMoEImageTransformer2DModel": _WRITES_STATE,
    "QwenImage21Transformer2DModel": _WRITES_STATE,
    "SanaWMLTX2RefinerTransformer3DModel": _WRITES_STATE,
    "WanAnimate2Transformer3DModel": _WRITES_STATE,
}


class Parts(NamedTuple):
    """The modules of a denoiser that are hooked, by their path."""

    blocks: dict[str, nn.Module]
    around: dict[str, nn.Module]


def find(denoiser: nn.Module) -> Parts:
    """Blocks and the modules around them. Raises UnsupportedModelError, with the reason, if there is nothing that can
    be skipped safely.
    """
    name = type(denoiser).__name__
    if name in REFUSED:
        raise UnsupportedModelError(f"{name} cannot be cached: {REFUSED[name]}.")
    stacks = {path: cast(nn.ModuleList, child) for path, child in denoiser.named_children() if _is_stack(path, child)}
    blocks = {f"{path}.{i}": block for path, stack in stacks.items() for i, block in enumerate(stack)}
    if len(blocks) < 2:
        raise UnsupportedModelError(
            f"{name} has no stack of blocks that dicache recognises. Expected a ModuleList, a direct child, "
            f"of at least two blocks whose forward takes one of {', '.join(sorted(_STREAMS))}."
        )
    return Parts(blocks, {path: part for path, part in _leaves(denoiser) if path not in stacks})


def _is_stack(path: str, child: nn.Module) -> bool:
    if not isinstance(child, nn.ModuleList) or any(word in path for word in _NOT_STACKS):
        return False
    return all(
        any(True for _ in block.parameters()) and _STREAMS & set(inspect.signature(type(block).forward).parameters)
        for block in child
    )


def _leaves(denoiser: nn.Module) -> list[tuple[str, nn.Module]]:
    """Direct children, with lists of modules opened (a list itself is never called)."""
    found: list[tuple[str, nn.Module]] = []
    for path, child in denoiser.named_children():
        if isinstance(child, nn.ModuleList) and not _is_stack(path, child):
            found += [(f"{path}.{i}", item) for i, item in enumerate(child)]
        else:
            found.append((path, child))
    return [(path, module) for path, module in found if any(True for _ in module.parameters())]
