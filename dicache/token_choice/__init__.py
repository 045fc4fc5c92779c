"""Which tokens of a sample run where the rest is skipped (`dicache.sites.Tokens`)."""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.token_choice.base import SeenTokens as SeenTokens
    from dicache.token_choice.base import TokenChoice as TokenChoice
    from dicache.token_choice.by_chance import Random as Random
    from dicache.token_choice.by_change import InputChange as InputChange
    from dicache.token_choice.by_cluster import Clusters as Clusters
    from dicache.token_choice.by_error import LastError as LastError
    from dicache.token_choice.by_error import Refresh as Refresh
    from dicache.token_choice.by_score import TokenScore as TokenScore

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.token_choice.base": ("SeenTokens", "TokenChoice"),
        "dicache.token_choice.by_chance": ("Random",),
        "dicache.token_choice.by_change": ("InputChange",),
        "dicache.token_choice.by_cluster": ("Clusters",),
        "dicache.token_choice.by_error": ("LastError", "Refresh"),
        "dicache.token_choice.by_score": ("TokenScore",),
    },
)
