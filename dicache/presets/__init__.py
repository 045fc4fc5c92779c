"""Published methods, composed of parts, with their published defaults: `enable(pipe, config=presets.teacache())`.

Those that skip whole evaluations differ from their papers in one way that they share. What is held or extrapolated is
the denoiser's output per guidance branch, where the papers keep the residual of a block, a sublayer or all blocks and
run the model's head at every step. So the head's fresh time embedding does not reach a skipped step, one output is kept
in place of many residuals, and skipping saves more. Those that the papers make of blocks or sublayers and that mean
nothing without them have headings of their own, and skip what their papers skip; `fora` and `taylorseer` do so with
`sites=Sublayers()`. All decide per sample where the papers decide per batch; the first guidance branch decides for all.
Sums of L1 changes are no errors: thresholds, and what the report calls predicted and spent, are in the method's own
unit. Warm-ups are shares of the steps where papers count steps.

Methods that count ask the closed loop what a gap costs, so that the report can say it and an unknown error computes;
until it has once held a guess against the truth, a step or two more than published compute. Thresholds belong to a
model and a step count: those here are for the models named, and to be swept on any other.
"""

from collections.abc import Sequence
from typing import Any

from dicache.approximators.alignment import Align
from dicache.approximators.bands import Bands
from dicache.approximators.base import Approximator
from dicache.approximators.chebyshev import Chebyshev
from dicache.approximators.fitted.coefficients import Fitted
from dicache.approximators.foca import FoCa
from dicache.approximators.gained import Gained
from dicache.approximators.hermite import Hermite
from dicache.approximators.hold import Reuse
from dicache.approximators.residual import ReuseResidual
from dicache.approximators.shrunk import Shrunk
from dicache.approximators.taylor import Taylor
from dicache.config import Config
from dicache.controllers.base import Controller
from dicache.controllers.by_kind import ByKind
from dicache.controllers.clip import Clip
from dicache.controllers.fixed import FixedAt, accumulated
from dicache.controllers.interval import Interval
from dicache.controllers.repaid import Repaid
from dicache.controllers.staged import Staged
from dicache.controllers.stretch import Stretch
from dicache.controllers.threshold import Threshold
from dicache.controllers.within import Within
from dicache.errors import ModeError
from dicache.estimators.accumulated import Accumulated
from dicache.estimators.base import Estimator
from dicache.estimators.closed_loop import ClosedLoop
from dicache.estimators.codebook import FAST, Codebook
from dicache.estimators.computed_change import ComputedChange
from dicache.estimators.disagreement import Disagreement
from dicache.estimators.magnitude_ratios import MagnitudeRatios
from dicache.estimators.online_rate import OnlineRate
from dicache.estimators.polynomial import Polynomial
from dicache.estimators.relative_change import RelativeChange
from dicache.estimators.sensitivities import Sensitivities, Table
from dicache.probes.first_blocks import FirstBlocks
from dicache.probes.first_blocks_residual import FirstBlocksResidual
from dicache.probes.modulated_input import ModulatedInput
from dicache.probes.raw_latent import RawLatent
from dicache.probes.spectrum_filtered import SpectrumFiltered
from dicache.sites import Branches, Drafted, Evaluation, Sites, Spans, Sublayers
from dicache.types import Kind

NO_PROBE = FirstBlocks(depth=0)
EVERYTHING = Evaluation()
TEACACHE_FLUX = (498.65, -283.78, 55.86, -3.82, 0.264)
"""Highest power first; fitted on FLUX.1-dev."""


def _counted(approximator: Approximator, interval: int, first: int, sites: Sites = EVERYTHING) -> Config:
    return Config(Interval(interval, first), ClosedLoop(), (approximator,), NO_PROBE, sites)


def fora(interval: int = 3, sites: Sites = EVERYTHING) -> Config:
    """FORA (arXiv 2407.01425). The paper reuses what every attention and MLP gave, with the current gate: that is
    `sites=Sublayers()`.
    """
    return _counted(Reuse(), interval, first=1, sites=sites)


def taylorseer(interval: int = 6, order: int = 2, first: int = 3, sites: Sites = EVERYTHING) -> Config:
    """TaylorSeer (arXiv 2503.06923), FLUX. The paper predicts every attention and MLP, that is `sites=Sublayers()`, in
    step counts for time; here true time, and `order + 2` steps compute before the first skip.
    """
    return _counted(Taylor(order), interval, first, sites)


def hicache(interval: int = 6, order: int = 2, first: int = 3, contraction: float = 0.5) -> Config:
    """HiCache (arXiv 2508.16984), on TaylorSeer's schedule, with the sign of its basis mended (forward is +k)."""
    return _counted(Hermite(order, contraction), interval, first)


def foca(interval: int = 6, first: int = 3) -> Config:
    """FoCa (arXiv 2508.16211), from exact values only and without its damping of far horizons; schedule of TaylorSeer,
    its own was never released.
    """
    return _counted(FoCa(), interval, first)


def teacache(
    threshold: float = 0.6,
    coefficients: Sequence[float] = TEACACHE_FLUX,
    support: tuple[float, float] = (0.0, float("inf")),
) -> Config:
    """TeaCache (arXiv 2411.19108), FLUX. The polynomial is clamped to its support and to 0."""
    estimator = Accumulated(Polynomial(RelativeChange(), coefficients, support))
    return Config(Clip(Threshold(threshold), first=0.0, last=1), estimator, (Reuse(),), ModulatedInput())


def seacache(threshold: float = 0.3, power: float = 2.0, size: tuple[int, int] | None = None) -> Config:
    """SeaCache (arXiv 2602.18993), FLUX at 2x. `size` is the picture's in tokens where it is not square; the scale of
    the filter's spectrum is ours.
    """
    probe = SpectrumFiltered(ModulatedInput(), power, size)
    return Config(Clip(Threshold(threshold), first=0.0, last=1), Accumulated(RelativeChange()), (Reuse(),), probe)


def first_block_cache(threshold: float = 0.05) -> Config:
    """First-Block Cache (ParaAttention; default of diffusers). The original adds the cached tail to the fresh first
    block; here the output is held.
    """
    return Config(Threshold(threshold), RelativeChange("computed"), (Reuse(),), FirstBlocksResidual())


def dbcache(
    threshold: float = 0.08, front: int = 8, first: float = 0.16, approximator: Approximator | None = None
) -> Config:
    """DBCache (cache-dit): `front` blocks compute at every step and none at the back; 8 warm-up steps of 50. Pass
    `Taylor()` or `FoCa()` for its calibrators.
    """
    controller = Clip(Threshold(threshold), first=first)
    return Config(controller, RelativeChange("computed"), (approximator or Reuse(),), FirstBlocksResidual(front))


def dicache(threshold: float = 0.4, depth: int = 1, first: float = 0.2, limit: float = 1.5) -> Config:
    """DiCache (arXiv 2508.17356), FLUX. The paper aligns along what the first blocks add; here along the stream after
    them, on which it also decides.
    """
    controller = Clip(Threshold(threshold), first=first, last=1)
    return Config(controller, Accumulated(RelativeChange()), (Align(limit),), FirstBlocks(depth))


def easycache(threshold: float = 0.05, first: float = 0.2) -> Config:
    """EasyCache (arXiv 2507.02860), Wan: 10 warm-up steps of 50. Its rate is of the guided output, the paper's of the
    conditional one. Needs outputs shaped like the latent.
    """
    controller = Clip(Threshold(threshold), first=first, last=1)
    return Config(controller, Accumulated(OnlineRate()), (ReuseResidual(),), RawLatent())


def magcache(ratios: Sequence[float], threshold: float = 0.24, longest: int = 5, first: float = 0.1) -> Config:
    """MagCache (arXiv 2506.09045), FLUX, without its excluded step. `ratios` are the model's own, of its output where
    the paper takes the residual: `estimators.magnitude_ratios.measure_ratios`.
    """
    controller = Clip(Threshold(threshold), first=first, longest=longest)
    return Config(controller, MagnitudeRatios(tuple(ratios)), (Reuse(),), NO_PROBE)


def sencache(table: Table, threshold: float = 0.07, early: float = 0.005, longest: int = 10) -> Config:
    """SenCache (arXiv 2602.24208), its code's defaults for Wan; paper, code and README disagree. `table` is the model's
    own, along its sampler where the paper noises real data: `estimators.sensitivities.measure_sensitivities`.
    """
    controller = Clip(Threshold(threshold, early=early), first=0.0, longest=longest)
    return Config(controller, Sensitivities(table), (Reuse(),), NO_PROBE)


def adacache(entries: tuple[tuple[float, int], ...] = FAST) -> Config:
    """AdaCache (arXiv 2411.02397), 30 steps, fast, without its motion term. The paper measures the residual of one
    attention; here the output itself, at computed steps.
    """
    controller = Clip(Threshold(1.0), first=0.0, last=2)
    return Config(controller, Codebook(entries), (Reuse(),), NO_PROBE)


def racer(threshold: float, kappa: float, interval: int = 5) -> Config:
    """RACER (arXiv 2608.01740), about 10 of 50 steps. Its threshold and its kappa, which shrinks the guess, could not
    be had: pass your own. Here both are the same for all steps, and five steps compute before the first forecast.
    """
    base = Chebyshev()
    approximators = (Shrunk(base, kappa), base, Taylor())
    return Config(
        Repaid(threshold, interval, first=base.needs), Disagreement(base=1, observer=2), approximators, NO_PROBE
    )


# Below the whole evaluation.


def speca(interval: int = 9, order: int = 2, threshold: float = 0.3, decay: float = 0.05, floor: float = 0.1) -> Config:
    """SpeCa (arXiv 2509.11628), FLUX: TaylorSeer's draft of all blocks but the last, at most 8 in a row, verified by
    the last one. As in the paper a draft that fails is computed, at its own step (its code only changes the next one);
    every draft is verified, where the code begins after three; the error is that of the whole block, not the mean of
    elements'.
    """
    sites = Drafted(threshold, decay, floor)
    return Config(Interval(interval, first=3), ClosedLoop(), (Taylor(order),), NO_PROBE, sites)


def bwcache(threshold: float = 0.15, share: float = 0.1, tail: float = 0.5) -> Config:
    """BWCache (arXiv 2509.13789): outputs of all blocks, for a tenth of the steps after a computed step at which they
    changed little. A change is told against the last computed step, which after a stretch of reuse lies further back.
    """
    sites = Spans(added=False)
    return Config(Stretch(threshold, share, tail), ComputedChange(), (Reuse(),), NO_PROBE, sites, together=True)


def gradient_optimized_cache(interval: int = 2, weight: float = 1.2, begin: float = 0.15, end: float = 0.5) -> Config:
    """Gradient-optimised caching (arXiv 2503.05156), DiT at 20 steps. Its list of steps that have the gain, 3, 5, 7 and
    9, is the window here; its differences are of exact values, where the code also takes extrapolated ones. Which half
    of the blocks its "50 %" caches is not told: here all sublayers, every second step.
    """
    return _counted(Gained(weight, begin, end), interval, first=1, sites=Sublayers())


def delta_dit(interval: int = 2, share: float = 0.75, gate: float = 0.5) -> Config:
    """Delta-DiT (arXiv 2406.01125). `share` of the blocks is what its 1.60x on PixArt-alpha at an interval of 2 comes
    to, `gate` half-way as for its 4-step model: no code was released. Each block counts from its own last computed
    step.
    """
    rule = Staged(Interval(interval), share, gate)
    return Config(rule, ClosedLoop(), (Reuse(),), NO_PROBE, Spans())


def pab(attention: int = 2, cross: int = 6, window: tuple[float, float] = (0.1, 0.85)) -> Config:
    """Pyramid Attention Broadcast (arXiv 2408.12588), Open-Sora-Plan, without its hand-listed MLPs. Spatial and
    temporal attention are one kind here. Ranges count from the last computed step, not from the run's first.
    """
    rule = ByKind({Kind.ATTENTION: Interval(attention), Kind.CROSS_ATTENTION: Interval(cross)})
    sites = Sublayers((Kind.ATTENTION, Kind.CROSS_ATTENTION))
    return Config(Within(rule, *window), ClosedLoop(), (Reuse(),), NO_PROBE, sites)


def fastercache(interval: int = 5, high: float = 0.781, gain: float = 1.1) -> Config:
    """FasterCache (arXiv 2410.19355), its CFG-Cache: the weaker guidance branch every fifth step, between them held by
    its difference to the stronger one in two bands of frequency. The window is that of diffusers. Its attention is
    `fastercache_attention`: a configuration has sites of one sort.
    """
    rule = Within(Interval(interval), high=high)
    return Config(rule, ClosedLoop(), (Bands(gain, gain),), NO_PROBE, Branches())


def fastercache_attention(interval: int = 3, first: float = 0.36, weight: float = 0.3) -> Config:
    """FasterCache (arXiv 2410.19355), its attention alone: every third step after 18 of 50, between them the last
    difference again with its code's constant weight.
    """
    rule = Clip(Interval(interval), first=first)
    return Config(rule, ClosedLoop(), (Gained(weight),), NO_PROBE, Sublayers((Kind.ATTENTION,)))


# With coefficients fitted on the model (`dicache.fit`), at the sites they were fitted on.


def fastcache(fitted: Fitted, threshold: float = 0.05) -> Config:
    """FastCache (arXiv 2505.20353): a block whose input moved by less than `threshold` since the step before is
    replaced by a linear map. Ours is fitted (kind "ridge", blocks) and of the change since the block last computed; its
    code leaves the map random. Left out: that tokens which stand still are decided apart, and the chi-square test,
    which accepts any change. As published, changes are not added up, so slow drift is never seen: at 0.05 no block of
    the reference model computes after its second step (error 1.06 at 0.150 of the work, 28 steps).
    """
    return _fitted(Threshold(threshold), RelativeChange(norm="l2"), fitted, "ridge")


def icc(fitted: Fitted, interval: int = 2) -> Config:
    """ICC (arXiv 2505.05829). The paper corrects every linear layer by the cut of its own weights and computes what
    lies between; here blocks or, nearer to it, sublayers (kind "low_rank", sites Sublayers()), by maps fitted to them.
    """
    return _fitted(Interval(interval), ClosedLoop(), fitted, "low_rank")


def block_caching(fitted: Fitted, threshold: float = 0.5) -> Config:
    """Block Caching (arXiv 2312.03209), 20 to 50 steps: every block has a schedule of its own, from the changes
    measured where its scale and shift were fitted (kind "scale_shift"), by least squares where the paper distils.
    """
    changes = {site: named["change"].tolist() for site, named in fitted.coefficients.items() if "change" in named}
    schedules = {site: accumulated(change, threshold) for site, change in changes.items()}
    controller = FixedAt((frozenset(range(len(fitted.about.sigmas))),), schedules)
    return _fitted(controller, ClosedLoop(), fitted, "scale_shift")


def _fitted(controller: Controller[Any], estimator: Estimator[Any], fitted: Fitted, kind: str) -> Config:
    if fitted.about.kind != kind:
        raise ModeError(
            f"the coefficients are of kind {fitted.about.kind!r}. Make them with dicache.fit(.., kind={kind!r})."
        )
    return Config(controller, estimator, (fitted.approximator(),), fitted.probe, fitted.sites)
