"""Methods that run some tokens where the rest is skipped. Their papers choose tokens anew in every layer, or keep a
cache for each; here a token that runs does so through all blocks, and what is guessed is the denoiser's output.
"""

from dicache.approximators.hold import Reuse
from dicache.approximators.taylor import Taylor
from dicache.config import Config
from dicache.controllers.threshold import Threshold
from dicache.estimators.relative_change import RelativeChange
from dicache.presets.evaluations import counted
from dicache.presets.method_table import published
from dicache.probes.raw_latent import RawLatent
from dicache.sites import Tokens
from dicache.token_choice.by_change import InputChange
from dicache.token_choice.by_cluster import Clusters
from dicache.token_choice.by_error import Refresh
from dicache.token_choice.by_score import TokenScore


@published(
    "ToCa",
    "2410.05317",
    differs="importance is the last realised error in the place of the attention that a token gets, which fused "
    "kernels do not give out; one share for all layers, and attention runs for the same tokens as the rest",
    default="PixArt-alpha at an interval of 3, a tenth of the tokens fresh",
)
def toca(interval: int = 3, share: float = 0.1, *, staleness: float = 0.25, bonus: float = 0.6) -> Config:
    """Compute every `interval`-th step, and in between refresh the tokens that matter most or waited longest."""
    sites = Tokens(Refresh(share, staleness, interval, bonus), line=False, lasting=True)
    return counted(Reuse(), interval, first=1, sites=sites)


@published(
    "ClusCa",
    "2509.10312",
    differs="the tokens that were drawn run through attention too, which the paper forecasts; Taylor's forecast is in "
    "true time, and what ran shifts it until the next computed step",
    default="DiT and FLUX; of 64 tokens 16 clusters are a quarter",
)
def clusca(interval: int = 4, clusters: int = 16, order: int = 2, *, weight: float = 0.005) -> Config:
    """Compute every `interval`-th step and cluster its tokens; in between run one of every cluster, which the others
    follow by `weight`, and forecast the rest.
    """
    sites = Tokens(Clusters(clusters, weight), line=False, lasting=True)
    return counted(Taylor(order), interval, first=3, sites=sites)


@published(
    "TokenCache",
    "2409.18523",
    differs="its predictor is a network trained together with the images, here a ridge regression "
    "(`dicache.regressions.token_scores`); without its rounds of two phases, and its ratios per block",
    default="ours: the paper's numbers are of its own training",
)
def tokencache(score: TokenScore, interval: int = 4) -> Config:
    """Compute every `interval`-th step, and in between run the tokens that a predictor scores highest."""
    return counted(Reuse(), interval, first=1, sites=Tokens(score, line=False, lasting=True))


@published(
    "FastCache, its tokens",
    "2505.20353",
    differs="tokens that stand still are held, where the paper maps them by a matrix that its code leaves random; "
    "`level` is its chi-square test with a variance, that of the median token, without which it accepts any change. "
    "Its map of blocks is `fastcache`",
    default="as published, changes are not added up, so slow drift is never seen",
)
def fastcache_tokens(threshold: float = 0.05, motion: float = 0.1, *, level: float | None = None) -> Config:
    """Compute where the input moved by more than `threshold` since the step before, and else run the tokens that moved
    by more than `motion` of the most, in squares.
    """
    sites = Tokens(InputChange(motion, level), line=False, lasting=True)
    return Config(Threshold(threshold), RelativeChange(norm="l2"), (Reuse(),), RawLatent(), sites)
