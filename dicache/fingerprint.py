"""What a guidance branch is conditioned by, as a few numbers per sample: enough to tell one negative prompt from
another, in whatever precision and beside whatever batch mates.

Of every text or image embedding (R, L, D) that the denoiser is called with: sums over the tokens 1, 2 to 4 and 5 to 16,
each averaged over eighths of the channels, so (R, 24). Later tokens are left out, because pipelines pad texts to the
longest of their batch. Two are alike if they are no further apart than 5 % of their length.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from dicache.rows import Tree

Prints = Mapping[str, Tensor]
"""(R, 24) float32 by the name of the denoiser's input."""
APART = 0.05
SIZE = 24
_TOKENS = ((0, 1), (1, 4), (4, 16))
_CONDITIONS = re.compile("encoder_hidden_states|embeds|pooled|prompt|context")


def fingerprint(given: Mapping[str, Tree], rows: int) -> Prints:
    """Of the inputs that condition a call of that many rows; some pipelines give one negative prompt for all."""
    found = {name: value for name, value in given.items() if _CONDITIONS.search(name) and _of_rows(value, rows)}
    return {name: _print(value).expand(rows, -1) for name, value in found.items() if isinstance(value, Tensor)}


def apart(a: Tensor, b: Tensor) -> float:
    """Of two fingerprints, (..., 24), the largest distance relative to the longer one."""
    longer = torch.maximum(a.norm(dim=-1), b.norm(dim=-1)).clamp(min=1e-12)
    return float(((a - b).norm(dim=-1) / longer).max())


def _of_rows(value: Tree, rows: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1 and len(value) in (1, rows)


def _print(value: Tensor) -> Tensor:
    tokens = value.detach()[:, None] if value.ndim == 2 else value.detach().flatten(1, -2)
    sums = torch.stack([tokens[:, begin:end].float().sum(1) for begin, end in _TOKENS], dim=1)
    return adaptive_avg_pool1d(sums, SIZE // len(_TOKENS)).flatten(1)
