"""What is known of the models that are wrapped."""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.models.family import Batch as Batch
    from dicache.models.family import Family as Family
    from dicache.models.family import Inside as Inside

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.models.family": ("Batch", "Family", "Inside"),
    },
)
