"""The skip connections of a UNet: what one of its blocks hands ahead, and which later block reads it.

    conv_in, down_0, down_1, ... down_(n-1), mid, up_0, ... up_(n-2), up_(n-1)
       |        |       |__________________________________|         |
       |        |____________________________________________________|    up_(n-1-k) reads what level k handed ahead
       |_____________________________________________________________|

Level k hands ahead what enters down block k and what each of its layers gives: as many tensors as up block n-1-k has
layers, which reads them last in, first out. A span is closed where both ends of all skip connections that begin in it
lie in it: then all that leaves it is what its last module gives.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from torch import nn

from dicache.errors import UnsupportedModelError

DOWN, UP = "down_blocks.", "up_blocks."
_PARTS = ("resnets", "attentions", "downsamplers", "upsamplers")


def closed(modules: Sequence[str], blocks: Sequence[str]) -> bool:
    """Whether no block outside of a span reads what one inside hands ahead. `modules` are the span's, blocks or parts
    of them, `blocks` all of the denoiser's, both in order of execution.
    """
    first, last = _block_of(modules[0], blocks), _block_of(modules[-1], blocks)
    if not first.startswith(DOWN):
        return True
    before, after = blocks[: blocks.index(first)], blocks[blocks.index(last) + 1 :]
    return sum(path.startswith(UP) for path in after) <= sum(path.startswith(DOWN) for path in before)


def deep(blocks: Mapping[str, nn.Module], level: int, layers: int) -> tuple[str, ...]:
    """The span that leaves `level` levels, counted from the outside in, and `layers` skip connections of the next one
    outside: the paths of its modules in order of execution. Raises UnsupportedModelError where there is none.
    """
    downs, ups = ([path for path in blocks if path.startswith(side)] for side in (DOWN, UP))
    if not downs or len(downs) != len(ups):
        raise UnsupportedModelError(
            "Skips() needs a UNet, with as many down blocks as up blocks. Use Tail() or Spans() on other denoisers."
        )
    inside = list(blocks)[level : len(blocks) - level]
    if level + (layers > 0) > len(downs) or not inside:
        raise UnsupportedModelError(
            f"Skips({level}, layers={layers}) leaves nothing inside: this UNet has {len(downs)} levels. Use fewer."
        )
    if not layers:
        return tuple(inside)
    first, *between, last = inside
    entering, leaving = list(_layers(first, blocks[first])), list(_layers(last, blocks[last]))
    if not layers < len(leaving):
        raise UnsupportedModelError(
            f"Skips({level}, layers={layers}): level {level} has {len(leaving)} skip connections. Use fewer, or "
            f"Skips({level + 1})."
        )
    samplers = [f"{first}.{name}" for name, _ in blocks[first].named_modules() if _is_sampler(name)]
    down, up = (chain.from_iterable(part) for part in (entering[layers - 1 :], leaving[: len(leaving) - layers]))
    return (*down, *samplers, *between, *up)


def _layers(path: str, block: nn.Module) -> Iterator[tuple[str, ...]]:
    """The modules of each layer of a block: a resnet and, where the block has any, its attention."""
    resnets, attentions = (block._modules.get(name) for name in ("resnets", "attentions"))
    fits = isinstance(resnets, nn.ModuleList) and (
        attentions is None or (isinstance(attentions, nn.ModuleList) and len(attentions) == len(resnets))
    )
    if not fits or any(name not in _PARTS for name in block._modules):
        raise UnsupportedModelError(
            f"{path} is a {type(block).__name__}, whose layers dicache cannot take apart. Use Skips(level) without "
            "layers."
        )
    assert isinstance(resnets, nn.ModuleList)
    for i in range(len(resnets)):
        attended = () if attentions is None else (f"{path}.attentions.{i}",)
        yield (f"{path}.resnets.{i}", *attended)


def _is_sampler(name: str) -> bool:
    return name.startswith("downsamplers.") and name.count(".") == 1


def _block_of(module: str, blocks: Sequence[str]) -> str:
    return next(block for block in blocks if module == block or module.startswith(f"{block}."))
