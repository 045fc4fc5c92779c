"""Tokens by chance: what any other choice is to be better than."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dicache.token_choice.base import SeenTokens, TokenChoice, check_share, largest


@dataclass(frozen=True)
class Random(TokenChoice):
    """Others at every step. Raises ModeError for a share outside [0, 1]."""

    share: float = 0.25

    def __post_init__(self) -> None:
        check_share(self, self.share)

    def choose(self, seen: SeenTokens, state: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        return largest(drawn(seen), self.share).to(seen.errors.device), state


def drawn(seen: SeenTokens) -> Tensor:
    """A number in [0, 1) of every token, (B, N), on the host: the same for a sample in any batch."""
    tokens = seen.shape[1]
    return torch.stack(
        [torch.rand(tokens, generator=torch.Generator().manual_seed(seed + seen.index)) for seed in seen.seeds]
    )
