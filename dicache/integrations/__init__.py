"""dicache inside other programs, each written against what it asks of those who extend it. Imported only by them."""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.integrations.comfyui import NODE_CLASS_MAPPINGS as NODE_CLASS_MAPPINGS
    from dicache.integrations.comfyui import NODE_DISPLAY_NAME_MAPPINGS as NODE_DISPLAY_NAME_MAPPINGS
    from dicache.integrations.modular import CachedDenoising as CachedDenoising
    from dicache.integrations.sglang import StackCache as StackCache
    from dicache.integrations.vllm_omni import OmniSlots as OmniSlots

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.integrations.comfyui": ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"),
        "dicache.integrations.modular": ("CachedDenoising",),
        "dicache.integrations.sglang": ("StackCache",),
        "dicache.integrations.vllm_omni": ("OmniSlots",),
    },
)
