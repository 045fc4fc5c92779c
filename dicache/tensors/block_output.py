"""What a site's outputs are made of: one tensor to remember, taken apart again when it is guessed.

A block takes streams (picture, text) among its arguments and hands them on changed, so what is remembered is what it
added: output minus the input that the output continues. Which input that is, is found once, where everything computes:
of those with the output's shape the one the output differs least from. A wrong choice would cost accuracy, never
exactness. An output that continues no input is remembered as it is; so is every output of a block that works in place.
Streams of one width are joined along the tokens, (R, N1 + N2, C); others are flattened, (R, D).
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.extension import combine, residual_sums
from dicache.tensors.tree import Tree, map_tensors, shapes_of, tensors
from dicache.types import Rows


class OutputLayout(NamedTuple):
    """How a site's outputs are made of its inputs."""

    outputs: Tree
    """Meta tensors in the place of tensors."""
    bases: tuple[int | None, ...]
    """For every tensor of the output, the input tensor that it continues."""
    added: bool
    """Whether what was added is remembered, or the outputs themselves."""


def layout_of(
    inputs: Sequence[Tensor], output: Tree, rows: int, added: bool, *, in_place: bool = False
) -> OutputLayout | None:
    """None where an output has not the rows on its first axis. `in_place`: the site has written to its inputs."""
    outputs = tensors(output)
    if not outputs or any(not t.ndim or t.shape[0] != rows or not t.is_floating_point() for t in outputs):
        return None
    return OutputLayout(shapes_of(output), tuple(_base(t, inputs) for t in outputs), added and not in_place)


def _base(output: Tensor, inputs: Sequence[Tensor]) -> int | None:
    fitting = [i for i, t in enumerate(inputs) if t.shape == output.shape and t.dtype == output.dtype]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    return min(fitting, key=lambda i: float(residual_sums(output[None], inputs[i][None])[0, 2]))


def value_of(layout: OutputLayout, inputs: Sequence[Tensor], output: Tree) -> Tensor:
    """(R, N, C) or (R, D): what is remembered. A tensor of its own."""
    parts = [
        t - inputs[base] if layout.added and base is not None else t
        for t, base in zip(tensors(output), layout.bases, strict=True)
    ]
    return parts[0].detach().clone() if len(parts) == 1 and not layout.added else join(parts)


def entering(layout: OutputLayout, inputs: Sequence[Tensor]) -> Tensor:
    """The streams that the site continues, joined: what a probe that looks at a site sees. All inputs of the rows'
    where it continues none.
    """
    bases = [inputs[base] for base in layout.bases if base is not None]
    return join(bases or [t for t in inputs if t.is_floating_point() and t.ndim > 1])


def output_of(
    layout: OutputLayout, inputs: Sequence[Tensor], value: Tensor, output: Tree = (), computed: Rows | None = None
) -> Tree:
    """The site's output where `value`, (R, ...), was added to (or stands for) what it continues; where rows were
    `computed`, (R,) bool, that of `output`. One pass over memory, and a tensor of its own.
    """
    shapes, exact = tensors(layout.outputs), [] if computed is None else tensors(output)
    parts = iter(zip(_split(value, shapes), layout.bases, strict=True))
    chooses = None if computed is None else torch.stack([computed, ~computed], dim=1).float()

    def fill(shape: Tensor) -> Tensor:
        part, base = next(parts)
        terms = [part.reshape(part.shape[0], *shape.shape[1:]).to(shape.dtype)]
        if layout.added and base is not None:
            terms.insert(0, inputs[base])
        if chooses is None:
            return terms[0] + terms[1] if len(terms) == 2 else terms[0].clone()
        return combine([exact.pop(0), *terms], torch.cat([chooses, chooses[:, 1:]], dim=1)[:, : 1 + len(terms)])

    return map_tensors(fill, layout.outputs)


def join(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if all(t.ndim == 3 and t.shape[2] == parts[0].shape[2] for t in parts):
        return torch.cat(list(parts), dim=1)
    return torch.cat([t.flatten(1) for t in parts], dim=1)


def _split(value: Tensor, shapes: Sequence[Tensor]) -> list[Tensor]:
    if len(shapes) == 1:
        return [value]
    joined = value.ndim == 3 and all(t.ndim == 3 and t.shape[2] == value.shape[2] for t in shapes)
    lengths = [t.shape[1] if joined else t[0].numel() for t in shapes]
    ends = list(accumulate(lengths))
    return [value[:, end - length : end] for end, length in zip(ends, lengths, strict=True)]
