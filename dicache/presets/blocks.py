"""Methods that skip blocks, sublayers or guidance branches and mean nothing without them: what their papers skip, they
skip here.
"""

from dataclasses import replace
from typing import Any

from dicache.approximators.base import Approximator
from dicache.approximators.gained import Gained
from dicache.approximators.hold import Reuse
from dicache.approximators.taylor import Taylor
from dicache.config import Config
from dicache.controllers.base import Controller
from dicache.controllers.by_kind import ByKind
from dicache.controllers.clip import Clip
from dicache.controllers.gate import Gate
from dicache.controllers.interval import Interval
from dicache.controllers.noise_window import NoiseWindow
from dicache.errors import ModeError
from dicache.estimators.closed_loop import ClosedLoop
from dicache.presets.evaluations import NO_PROBE, counted
from dicache.presets.method_table import published
from dicache.presets.parts.bwcache import ComputedChange, Stretch
from dicache.presets.parts.delta_dit import Staged
from dicache.presets.parts.fastercache import Bands
from dicache.sites import Branches, Drafted, Skips, Spans, Sublayers
from dicache.types import Kind


@published(
    "SpeCa",
    "2509.11628",
    differs="as in the paper a draft that fails is computed, at its own step (its code only changes the next one); "
    "every draft is verified, where the code begins after three; the error is that of the whole block, not the mean of "
    "elements'",
    default="FLUX: at most 8 drafts in a row",
)
def speca(
    interval: int = 9, order: int = 2, *, threshold: float = 0.3, decay: float = 0.05, floor: float = 0.1
) -> Config:
    """Draft all blocks but the last as TaylorSeer does, and verify the draft by the last one."""
    sites = Drafted(threshold, decay, floor)
    return Config(Interval(interval, first=3), ClosedLoop(), (Taylor(order),), NO_PROBE, sites)


@published(
    "BWCache",
    "2509.13789",
    differs="a change is measured against the last computed step, which after a stretch of reuse lies further back",
    default="stretches of a tenth of the steps",
)
def bwcache(threshold: float = 0.15, share: float = 0.1, *, tail: float = 0.5) -> Config:
    """Reuse the outputs of all blocks for `share` of the steps after a computed step at which they changed by less than
    `threshold`.
    """
    sites = Spans(added=False)
    return Config(Stretch(threshold, share, tail), ComputedChange(), (Reuse(),), NO_PROBE, sites, together=True)


@published(
    "Gradient-optimised caching",
    "2503.05156",
    differs="its list of steps that have the gain, 3, 5, 7 and 9, is the window here; its differences are of exact "
    'values, where the code also takes extrapolated ones. Which half of the blocks its "50 %" caches is not said: here '
    "all sublayers, every second step",
    default="DiT at 20 steps",
)
def gradient_optimized_cache(
    interval: int = 2, weight: float = 1.2, *, begin: float = 0.15, end: float = 0.5
) -> Config:
    """Compute every `interval`-th step, and in a window of the run add the last difference with a gain in between."""
    return counted(Gained(weight, begin, end), interval, first=1, sites=Sublayers())


@published(
    "DeepCache",
    "2312.00858",
    differs="intervals count from the last computed step, and one more step computes at the start; its non-uniform "
    "schedule is `rule=dicache.controllers.centred(20, 7, 8)`. `Extrapolate()` in place of its reuse loses .29 to .53 "
    "as much where `first=4, last=1` (DDIM, 20 steps, `bench/studies/controls.py`), and more than it where the last "
    "step is held",
    default="Stable Diffusion; `layers=1` after `level=0` is its cheapest branch, `cache_branch_id=0`. At the errors "
    "of the package DeepCache, every 2nd to 4th of 20 steps, `error_budget=` is 1.35 to 2.1 times as fast",
)
def deepcache(
    interval: int = 3,
    level: int = 0,
    layers: int = 1,
    *,
    approximator: Approximator | None = None,
    first: int = 1,
    last: int = 0,
    rule: Controller[Any] | None = None,
) -> Config:
    """Compute a UNet every `interval`-th step, and in between what lies outside of `level` levels and `layers` skip
    connections of the next one (`dicache.sites.Skips`); what enters from the inside is held, or extrapolated where
    `approximator` is `Extrapolate()`. The `first` and `last` steps compute. `rule` decides in place of the interval.
    """
    composed = counted(approximator or Reuse(), interval, first=first, sites=Skips(level, layers))
    composed = composed if rule is None else replace(composed, controller=rule)
    return replace(composed, controller=Clip(composed.controller, 0.0, last)) if last else composed


@published(
    "Delta-DiT",
    "2406.01125",
    differs="each block counts from its own last computed step; no code was released",
    default="`share` is what its 1.60x on PixArt-alpha at an interval of 2 comes to, `gate` half-way as for its 4-step "
    "model",
)
def delta_dit(interval: int = 2, share: float = 0.75, *, gate: float = 0.5) -> Config:
    """Hold what `share` of the blocks add between full steps: the rear ones first, from the level of noise `gate` on
    the front ones.
    """
    rule = Staged(Interval(interval), share, gate)
    return Config(rule, ClosedLoop(), (Reuse(),), NO_PROBE, Spans())


@published(
    "Pyramid Attention Broadcast",
    "2408.12588",
    differs="without its hand-listed MLPs; spatial and temporal attention are one kind here; ranges count from the "
    "last computed step, not from the run's first",
    default="Open-Sora-Plan",
)
def pab(attention: int = 2, cross: int = 6, *, window: tuple[float, float] = (0.1, 0.85)) -> Config:
    """Compute attention every `attention`-th step and cross-attention every `cross`-th, inside a window of noise."""
    rule = ByKind({Kind.ATTENTION: Interval(attention), Kind.CROSS_ATTENTION: Interval(cross)})
    sites = Sublayers((Kind.ATTENTION, Kind.CROSS_ATTENTION))
    return Config(NoiseWindow(rule, *window), ClosedLoop(), (Reuse(),), NO_PROBE, sites)


@published(
    "T-GATE",
    "2404.02747",
    differs="both guidance branches go on after the gate, each with what its own cross-attention gave: the paper holds "
    "the mean of the two and drops the unconditional branch, and no hook can drop a branch of the pipeline's. An "
    "interval counts from the last computed step",
    default="SDXL at 25 steps: gate 10, warm-up 2; PixArt: `gate=0.6, interval=3`",
)
def tgate(gate: float = 0.4, interval: int = 5, *, warm: int = 3) -> Config:
    """Hold what cross-attention gave from a share of the steps on, `gate`. Before it attention computes every
    `interval`-th step, after `warm` ones that do; from it on at every step.
    """
    rules = {
        Kind.CROSS_ATTENTION: Gate(Interval(1), gate),
        Kind.ATTENTION: Gate(Interval(interval, warm), gate, closes=False),
    }
    return Config(ByKind(rules), ClosedLoop(), (Reuse(),), NO_PROBE, Sublayers(tuple(rules)))


@published(
    "HGC",
    "2511.11031",
    differs="its rule, a profile of similarities, is not public: an interval and a gate stand in its place. A "
    "configuration has sites of one sort, so its two grains are taken one by one; both guidance branches go on after "
    "the gate. No code was found",
    default="none is public: the gate is half-way. On a small UNet with control .585 of the work of both networks "
    "obeys it within 1.5 %, .398 a fifth worse; `error_budget=` obeys it at .440",
)
def hgc(interval: int = 3, gate: float = 0.5, *, grain: str = "blocks", level: int = 0, layers: int = 1) -> Config:
    """Of a UNet with a ControlNet, freeze what the control gave from a share of the steps on, `gate`; and hold, by the
    coarse grain "blocks", what lies inside of its skip connections but for every `interval`-th step, or by the fine one
    "prompts" what cross-attention gave from the gate on. Raises ModeError for another grain.
    """
    if grain not in ("blocks", "prompts"):
        raise ModeError(f'hgc has grain={grain!r}. Expected "blocks" or "prompts".')
    inside = Skips(level, layers) if grain == "blocks" else Sublayers((Kind.CROSS_ATTENTION,))
    rule = Interval(interval) if grain == "blocks" else Gate(Interval(1), gate)
    return Config(rule, ClosedLoop(), (Reuse(),), NO_PROBE, inside, control=Gate(Interval(1), gate))


@published(
    "FasterCache, its CFG-Cache",
    "2410.19355",
    differs="its attention is `fastercache_attention`: a configuration has sites of one sort",
    default="every fifth step; the window is that of diffusers",
)
def fastercache(interval: int = 5, *, high: float = 0.781, gain: float = 1.1) -> Config:
    """Compute the weaker guidance branch every `interval`-th step, and in between hold its difference to the stronger
    one in two bands of frequency.
    """
    rule = NoiseWindow(Interval(interval), high=high)
    return Config(rule, ClosedLoop(), (Bands(gain, gain),), NO_PROBE, Branches())


@published(
    "FasterCache, its attention",
    "2410.19355",
    differs="its CFG-Cache is `fastercache`; the weight is its code's constant one",
    default="every third step after 18 of 50",
)
def fastercache_attention(interval: int = 3, *, first: float = 0.36, weight: float = 0.3) -> Config:
    """Compute attention every `interval`-th step, and in between add the last difference again with a weight."""
    rule = Clip(Interval(interval), first=first)
    return Config(rule, ClosedLoop(), (Gained(weight),), NO_PROBE, Sublayers((Kind.ATTENTION,)))
