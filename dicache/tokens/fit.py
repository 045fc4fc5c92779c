"""How a block takes some of its tokens, tried out at its first call: two tokens of every row run against the keys and
values that all had a moment ago, and must give what they gave among all. What does not is refused by name.

That finds where the text stands where both are attended to, and refuses whatever mixes tokens in another way: linear
attention, convolutions, fused kernels.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.errors import UnsupportedModelError
from dicache.extension import residual_sums
from dicache.models.family import Batch, Family, Inside
from dicache.runtime.module_call import ModuleCall
from dicache.sites import Tokens
from dicache.tensors.tree import Tree, tensors
from dicache.tokens.attention import KeysValues, StoredAttention, tolerance
from dicache.tokens.gather import PICTURE, TEXT, Sizes, Subset, argument, gathered, tokens_at


class Fit(NamedTuple):
    sizes: Sizes
    kinds: tuple[str, ...]
    """Of every tensor that the block gives: whose tokens they are."""

    def picture_of(self, output: Tree) -> Tensor:
        """The picture's stream, (R, N, C)."""
        return tensors(output)[self.kinds.index(PICTURE)]


def check_family(family: Family) -> None:
    """Raises UnsupportedModelError for families whose tokens cannot be taken apart."""
    reason = ""
    if family.inside is Inside.NOTHING:
        reason = family.between
    elif family.batch is Batch.TOGETHER:
        reason = "its batches compute together or not at all"
    elif len(family.latents) > 1:
        reason = f"it denoises {' and '.join(family.latents)} together"
    if reason:
        raise UnsupportedModelError(f"{family.model} cannot have sites=Tokens(): {reason}. Use sites=Evaluation().")


def fit_of(family: Family, rule: Tokens, call: ModuleCall, rows: int, output: Tree, pairs: Sequence[KeysValues]) -> Fit:
    """Of a block that has just run for all rows and tokens and gave `output`. Raises UnsupportedModelError where some
    tokens do not give what they gave.
    """
    named = f"{call.path} of {family.model} ({type(call.module).__name__})"
    picture, *texts = (argument(call, name) for name in family.streams)
    if picture is None or picture.ndim != 3 or len(picture) != rows:
        raise _refusal(named, f"takes no {family.streams[0]} of rows and tokens")
    if not pairs:
        raise _refusal(named, "calls no scaled_dot_product_attention of torch while it runs")
    text = sum(t.shape[1] for t in texts if t is not None)
    reason = ""
    for text_first in (True, False) if text else (True,):
        sizes = Sizes(picture.shape[1], text, text_first)
        try:
            return Fit(sizes, _tried(family, call, output, pairs, sizes, _few(sizes, rule.text_tokens(text), picture)))
        except UnsupportedModelError as error:
            reason = str(error)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = f"fails with some of its tokens: {error}"
    raise _refusal(named, reason)


def _refusal(named: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{named} cannot run for some of its tokens: it {reason}. Use sites=Evaluation().")


def _few(sizes: Sizes, text: int, like: Tensor) -> Subset:
    """Others in every row; not as many as of the text."""
    count = min(sizes.picture, 3 if text == 2 else 2)
    begin = torch.arange(len(like), device=like.device)[:, None]
    spread = torch.arange(count, device=like.device) * (sizes.picture // count)
    return Subset(None, (begin + spread) % sizes.picture, text)


def _tried(
    family: Family, call: ModuleCall, output: Tree, pairs: Sequence[KeysValues], sizes: Sizes, few: Subset
) -> tuple[str, ...]:
    """The kinds of what it gives."""
    inputs = gathered(call, family.streams, len(few.picture), few, sizes)
    copies = [KeysValues(p.keys.clone(), p.values.clone()) if sizes.holds(p.keys.shape[2]) else None for p in pairs]
    with StoredAttention(copies, partial(few.positions, sizes), None, inputs.tables, still=True):
        parts = tensors(call.forward(*inputs.args, **inputs.kwargs))
    kinds = tuple(_kind(full, part, sizes, few) for full, part in zip(tensors(output), parts, strict=True))
    if PICTURE not in kinds:
        raise UnsupportedModelError("gives no stream with the picture's tokens")
    streams = dict(zip((PICTURE, TEXT), map(partial(argument, call), family.streams), strict=False))
    for kind, full, part in zip(kinds, tensors(output), parts, strict=True):
        _check_same(_at(full, kind, few), part, _at(streams[kind], kind, few))
    return kinds


def _kind(full: Tensor, part: Tensor, sizes: Sizes, few: Subset) -> str:
    lengths = (full.shape[1], part.shape[1]) if full.ndim == part.ndim == 3 else ()
    if lengths == (sizes.picture, few.picture.shape[1]):
        return PICTURE
    if lengths == (sizes.text, few.text):
        return TEXT
    raise UnsupportedModelError(f"gives {tuple(full.shape)}, and {tuple(part.shape)} for {few.picture.shape[1]} tokens")


def _at(stream: Tensor | None, kind: str, few: Subset) -> Tensor:
    assert stream is not None
    return tokens_at(stream, few.picture) if kind == PICTURE else stream[:, : few.text]


def _check_same(full: Tensor, part: Tensor, before: Tensor) -> None:
    missed, size = residual_sums(part, full)[:, 2:4].double().sqrt().unbind(1)
    added = residual_sums(full, before)[:, 2].double().sqrt() if full.shape == before.shape else size
    allowed = tolerance(full.dtype) * added + 16 * torch.finfo(full.dtype).eps * size
    if not bool((missed <= allowed).all()):
        raise UnsupportedModelError(
            f"gives {float((missed / added).max()):.0%} of what it adds to a token otherwise when that runs among few, "
            "so its tokens meet elsewhere than in attention"
        )
