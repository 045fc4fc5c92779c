"""Tokens as a picture: how many rows and columns they make, and a picture as tokens."""

import math

from torch import Tensor

from dicache.errors import UnsupportedModelError


def sides(tokens: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns; a square unless `size` says otherwise. Raises UnsupportedModelError where the tokens do not
    fill them.
    """
    side = math.isqrt(tokens)
    height, width = size or (side, side)
    if height * width != tokens:
        raise UnsupportedModelError(
            f"The denoiser has {tokens} tokens, which do not fill {height} x {width}. "
            "Give size=(rows, columns) of tokens."
        )
    return height, width


def tokens(x: Tensor) -> Tensor:
    """A map, (R, C, H, W), as tokens, (R, H * W, C); others as they are. A view."""
    return x.flatten(2).mT if x.ndim == 4 else x
