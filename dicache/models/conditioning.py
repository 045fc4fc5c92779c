"""What a guidance branch is conditioned by, as a few numbers per sample: enough to tell usual negative prompts apart,
in whatever precision and beside whatever batch mates.

Of every text or image embedding (R, L, D) that the denoiser is called with: sums over the tokens 1, 2 to 4, 5 to 16 and
all later ones, each averaged over eighths of the channels, so (R, 32). Tokens that a mask (R, L) among the inputs
leaves out do not count. Two are alike if none of the four sums is further apart than 5 % of its length.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from dicache.models.family import Family
from dicache.tensors.norms import length
from dicache.tensors.tree import Tree, tensors

Prints = Mapping[str, Tensor]
"""(R, 32) float32 by the name of the denoiser's input."""
APART = 0.05
SIZE = 32
_TOKENS = (slice(0, 1), slice(1, 4), slice(4, 16), slice(16, None))
_CONDITIONS = re.compile("encoder_hidden_states|embeds|pooled|prompt|context|cap_feats")


def conditions_of(family: Family, arguments: Mapping[str, Tree], latent: Tensor) -> dict[str, Tree]:
    """All that a denoiser is called with but what is denoised, and the time."""
    other = (*family.latents, *family.time)
    named = {name: value for name, value in arguments.items() if name not in other}
    first = next(iter(arguments), "")
    return {
        name: {key: each for key, each in value.items() if key in named} if isinstance(value, Mapping) else value
        for name, value in named.items()
        if not (name == first and isinstance(value, list)) and not any(t is latent for t in tensors(value))
    }


def fingerprint(inputs: Mapping[str, Tree], rows: int) -> Prints:
    """Of the inputs that condition a call of that many rows; some pipelines give one negative prompt for all."""
    named = dict(_named(inputs))
    masks = [value for name, value in named.items() if "mask" in name and isinstance(value, Tensor)]
    sums = {name: _sums(value, rows, masks) for name, value in named.items() if _CONDITIONS.search(name)}
    return {name: print_.expand(rows, -1) for name, print_ in sums.items() if print_ is not None}


def alike(a: Tensor, b: Tensor) -> Tensor:
    """Whether two fingerprints, (..., 32), are of one condition, (...) bool; what is not finite is not."""
    a, b = torch.broadcast_tensors(a, b)
    shape = (*a.shape[:-1], len(_TOKENS))
    ours, theirs, between = (length(t.reshape(-1, SIZE // len(_TOKENS))).view(shape) for t in (a, b, a - b))
    return (between <= APART * torch.maximum(ours, theirs)).all(-1)


def _named(inputs: Mapping[str, Tree]) -> Iterator[tuple[str, Tree]]:
    """Inputs by name; those of a mapping among them by theirs."""
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            yield from _named(value)
        else:
            yield name, value


def _sums(value: Tree, rows: int, masks: list[Tensor]) -> Tensor | None:
    """(R, 32), or (1, 32) for all rows; None for what is no embedding of the rows."""
    if isinstance(value, list) and len(value) == rows and all(isinstance(v, Tensor) and v.ndim == 2 for v in value):
        return torch.cat([_of(sample[None]) for sample in value])
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2 or len(value) not in (1, rows):
        return None
    mask = next((m for m in masks if value.ndim == 3 and m.shape == value.shape[:2]), None)
    return _of(value if mask is None else value * (mask > 0)[:, :, None])


def _of(value: Tensor) -> Tensor:
    tokens = value.detach()[:, None] if value.ndim == 2 else value.detach().flatten(2)
    sums = torch.stack([tokens[:, some].float().sum(1) for some in _TOKENS], dim=1)
    return adaptive_avg_pool1d(sums, SIZE // len(_TOKENS)).flatten(1)
