"""Tokens as a picture: how many rows and columns they make."""

import math

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
