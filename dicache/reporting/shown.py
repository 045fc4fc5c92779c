"""Pictures and prompts for the page of a report: a card per sample.

Pictures are put into the page, at most SIDE pixels wide and high: a page is one file. Videos move.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL.Image import Image, Resampling

from dicache.errors import FileError
from dicache.reporting.page import Shown

SIDE = 512
SMALL = 128
"""Pixels up to which each of them is to be seen."""
LOSSLESS = 256
"""Pixels up to which a picture is a PNG."""
MILLISECONDS = 62
"""Of a frame."""
TITLES = "within the budget", "uncached"


def shown(
    samples: int,
    prompts: Sequence[str] | None,
    pictures: Sequence[Any] | None,
    uncached: Sequence[Any] | None,
) -> list[Shown]:
    """A card for each of so many samples, none where nothing is given. Raises FileError for more or fewer than these,
    and for what is no picture.
    """
    lists = {"prompts": prompts, "pictures": pictures, "uncached": uncached}
    for name, values in lists.items():
        if values is not None and len(values) != samples:
            raise FileError(f"{len(values)} {name} were given for {samples} samples. Expected one of each, in order.")
    if all(values is None for values in lists.values()):
        return []
    both = [(title, each) for title, each in zip(TITLES, (pictures, uncached), strict=True) if each is not None]
    return [
        Shown(
            "" if prompts is None else prompts[i],
            [(title, *embedded(each[i])) for title, each in both],
        )
        for i in range(samples)
    ]


def embedded(picture: Any) -> tuple[str, bool]:  # noqa: ANN401
    """As a data URL, and whether its pixels are to be seen."""
    frames = list(picture) if isinstance(picture, list) else [picture]
    if not frames or not all(isinstance(frame, Image) for frame in frames):
        raise FileError(
            f"a picture is a {type(picture).__name__}. Expected what a pipeline gives with output_type='pil': pictures "
            "of PIL, or of videos lists of them."
        )
    first, *rest = [_fitted(frame) for frame in frames]
    side, data = max(first.size), io.BytesIO()
    if rest:
        kind = "webp"
        first.save(data, "WEBP", save_all=True, append_images=rest, duration=MILLISECONDS, loop=0)
    else:
        kind = "png" if side <= LOSSLESS else "jpeg"
        first.save(data, kind.upper(), quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}", side <= SMALL


def _fitted(frame: Image) -> Image:
    fitted = frame.convert("RGB")
    fitted.thumbnail((SIDE, SIDE), Resampling.LANCZOS)
    return fitted
