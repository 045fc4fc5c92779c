"""Linear layers in 8-bit integers beside the cache, CacheQuant's other half: `pip install 'dicache[int8]'`."""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.int8.quantised import Quantised as Quantised
    from dicache.int8.quantised import quantise as quantise

__all__, __getattr__, __dir__ = lazy(__name__, {"dicache.int8.quantised": ("Quantised", "quantise")})
