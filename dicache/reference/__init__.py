"""A small text-to-image model that ships with dicache: what the demo shows, the tests run and the bench measures.

    pipe = dicache.reference.pipeline()
    image = pipe("top-left large red circle on blue background", negative_prompt="", true_cfg_scale=3.5).images[0]

It draws small scenes it was trained on (`scenes`), and is called what it is: small.
"""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.reference.assembly import pipeline as pipeline
    from dicache.reference.reader import Reader as Reader
    from dicache.reference.scenes import prompts as prompts

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.reference.assembly": ("pipeline",),
        "dicache.reference.reader": ("Reader",),
        "dicache.reference.scenes": ("prompts",),
    },
)
