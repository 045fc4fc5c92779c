"""Tokens as a picture: their rows and columns, which values each stands for, and a picture as tokens."""

import math
from collections.abc import Sequence

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


def as_tokens(picture: Tensor, tokens: int) -> Tensor | None:
    """(R, N, D): what each of N tokens stands for. Of (R, N, D) that is the tensor itself; of a picture, (R, C, H, W),
    or a video, (R, C, F, H, W), it is square patches of one frame, row by row. None where that does not come out even.
    """
    if picture.ndim == 3:
        return picture if picture.shape[1] == tokens else None
    patch = _patch(picture.shape, tokens)
    if patch is None:
        return None
    patches = picture.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # (R, C, .., h, p, w, p)
    if picture.ndim == 4:
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def as_picture(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """The way back, to `shape`, (R, ...)."""
    if len(shape) == 3:
        return tokens
    patch = _patch(shape, tokens.shape[1])
    assert patch is not None
    channels, height, width = shape[1], shape[-2] // patch, shape[-1] // patch
    if len(shape) == 4:
        patches = tokens.unflatten(1, (height, width)).unflatten(3, (channels, patch, patch))
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(tuple(shape))
    patches = tokens.unflatten(1, (shape[2], height, width)).unflatten(4, (channels, patch, patch))
    return patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(tuple(shape))


def _patch(shape: Sequence[int], tokens: int) -> int | None:
    """The side of a patch; None where the tokens are no patches of this picture or video."""
    if len(shape) not in (4, 5):
        return None
    area = math.prod(shape[2:])
    side = math.isqrt(area // tokens)
    even = side * side * tokens == area and shape[-1] % side == 0 and shape[-2] % side == 0
    return side if even else None
