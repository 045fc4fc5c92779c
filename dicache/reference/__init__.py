"""A small text-to-image model that ships with dicache: what the demo shows, the tests run and the bench measures.

    pipe = dicache.reference.pipeline()
    image = pipe("top-left large red circle on blue background", negative_prompt="", true_cfg_scale=3.5).images[0]

It draws small scenes it was trained on (`scenes`), and is called what it is: small.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicache.reference.assembly import pipeline
    from dicache.reference.reader import Reader
    from dicache.reference.scenes import prompts

__all__ = ["Reader", "pipeline", "prompts"]
_HOME = {
    "pipeline": "dicache.reference.assembly",
    "prompts": "dicache.reference.scenes",
    "Reader": "dicache.reference.reader",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOME:
        raise AttributeError(f"module 'dicache.reference' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
