"""dicache inside other programs, each written against what it asks of those who extend it. Imported only by them."""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.integrations.comfyui import NODE_CLASS_MAPPINGS as NODE_CLASS_MAPPINGS
    from dicache.integrations.comfyui import NODE_DISPLAY_NAME_MAPPINGS as NODE_DISPLAY_NAME_MAPPINGS

__all__, __getattr__, __dir__ = lazy(
    __name__, {"dicache.integrations.comfyui": ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS")}
)
