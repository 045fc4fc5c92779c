"""The tokens whose guess was furthest off when they last ran: what every computed step shows for nothing.

    s_n = ||v_n - guess_n||,        the k largest

`Refresh` adds ToCa's terms (arXiv 2410.05317) to it: tokens that waited long come up, and the best of every cell of two
by two tokens is favoured, so that the picture is covered.

    s_n = e_n / ||e|| + w * waited_n / interval,        s_n <- (1 + bonus) s_n for the largest of its cell
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dicache.tensors.norms import length
from dicache.tensors.token_grid import sides
from dicache.token_choice.base import SeenTokens, TokenChoice, check_share, largest


@dataclass(frozen=True)
class LastError(TokenChoice):
    """Raises ModeError for a share outside [0, 1]."""

    share: float = 0.25
    """Of the tokens."""

    def __post_init__(self) -> None:
        check_share(self, self.share)

    def choose(self, seen: SeenTokens, state: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        return largest(seen.errors, self.share), state


@dataclass(frozen=True)
class Refresh(TokenChoice):
    """ToCa's refresh with the last realised error in the place of the attention that a token gets, which fused kernels
    do not give out. Raises ModeError for a share outside [0, 1].
    """

    share: float = 0.1
    staleness: float = 0.25
    """w."""
    interval: int = 3
    """Steps from one computed step to the next."""
    bonus: float = 0.6
    size: tuple[int, int] | None = None
    """The picture's in tokens where it is not square."""

    def __post_init__(self) -> None:
        check_share(self, self.share)

    def choose(self, seen: SeenTokens, state: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        norm = length(seen.errors)[:, None].clamp(min=torch.finfo(seen.errors.dtype).tiny)
        scores = seen.errors / norm + self.staleness * seen.waited / self.interval
        return largest(self._favoured(scores), self.share), state

    def _favoured(self, scores: Tensor) -> Tensor:
        """With the bonus for the largest of every cell; what fills no cell of two by two has none."""
        height, width = sides(scores.shape[1], self.size)
        grid = scores.view(-1, height, width)
        even = grid[:, : height // 2 * 2, : width // 2 * 2]
        cells = even.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))
        best = cells == cells.amax((2, 4), keepdim=True)
        bonus = torch.zeros_like(grid)
        bonus[:, : even.shape[1], : even.shape[2]] = self.bonus * best.flatten(3, 4).flatten(1, 2)
        return (grid * (1 + bonus)).flatten(1)
