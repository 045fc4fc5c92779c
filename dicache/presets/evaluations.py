"""Methods that skip whole denoiser evaluations.

What is held or extrapolated is the denoiser's output per guidance branch, where the papers keep the residual of a
block, a sublayer or all blocks and run the model's head at every step. `fora` and `taylorseer` take the papers' sites
with `sites=Sublayers()`.

Methods that count ask the closed loop what a gap costs, so that the report can say it and an unknown error computes;
until it has once compared a guess with the truth, a step or two more than published compute.
"""

from collections.abc import Sequence

from dicache.approximators.alignment import Align
from dicache.approximators.base import Approximator
from dicache.approximators.hold import Reuse
from dicache.approximators.taylor import Taylor
from dicache.config import Config
from dicache.controllers.clip import Clip
from dicache.controllers.interval import Interval
from dicache.controllers.threshold import Threshold
from dicache.estimators.accumulated import Accumulated
from dicache.estimators.closed_loop import ClosedLoop
from dicache.estimators.relative_change import RelativeChange
from dicache.presets.method_table import published
from dicache.presets.parts.adacache import FAST, Codebook
from dicache.presets.parts.easycache import OnlineRate, ReuseResidual
from dicache.presets.parts.foca import FoCa
from dicache.presets.parts.hicache import Hermite
from dicache.presets.parts.magcache import MagnitudeRatios
from dicache.presets.parts.racer import Chebyshev, Disagreement, Repaid, Shrunk
from dicache.presets.parts.seacache import SpectrumFiltered
from dicache.presets.parts.sencache import EARLY, Sensitivities, SensitivityTable, threshold_for
from dicache.presets.parts.teacache import TEACACHE_FLUX, Polynomial
from dicache.probes.first_blocks import FirstBlocks
from dicache.probes.first_blocks_residual import FirstBlocksResidual
from dicache.probes.modulated_input import ModulatedInput
from dicache.probes.raw_latent import RawLatent
from dicache.probes.stream_and_added import ADDED, STREAM, StreamAndAdded
from dicache.sites import Evaluation, Sites

NO_PROBE = FirstBlocks(depth=0)
EVERYTHING = Evaluation()


def counted(approximator: Approximator, interval: int, first: int, sites: Sites = EVERYTHING) -> Config:
    """Every `interval`-th step computes after the first ones, whatever is predicted."""
    return Config(Interval(interval, first), ClosedLoop(), (approximator,), NO_PROBE, sites)


@published(
    "FORA",
    "2407.01425",
    differs="the paper reuses what every attention and MLP gave, with the current gate: that is `sites=Sublayers()`",
    default="every third step computes",
)
def fora(interval: int = 3, sites: Sites = EVERYTHING) -> Config:
    """Compute every `interval`-th step and reuse its value in between."""
    return counted(Reuse(), interval, first=1, sites=sites)


@published(
    "TaylorSeer",
    "2503.06923",
    differs="the paper predicts every attention and MLP, that is `sites=Sublayers()`, in step counts for time; here "
    "true time, and `order + 2` steps compute before the first skip",
    default="FLUX",
)
def taylorseer(interval: int = 6, order: int = 2, *, first: int = 3, sites: Sites = EVERYTHING) -> Config:
    """Compute every `interval`-th step and extrapolate by finite differences in between."""
    return counted(Taylor(order), interval, first, sites)


@published(
    "HiCache",
    "2508.16984",
    differs="the sign of its basis is mended (forward is +k)",
    default="on TaylorSeer's schedule",
)
def hicache(interval: int = 6, order: int = 2, *, first: int = 3, contraction: float = 0.5) -> Config:
    """Compute every `interval`-th step and extrapolate on Hermite polynomials in between."""
    return counted(Hermite(order, contraction), interval, first)


@published(
    "FoCa",
    "2508.16211",
    differs="from exact values only, and without its damping of far horizons",
    default="on TaylorSeer's schedule: its own was never released",
)
def foca(interval: int = 6, *, first: int = 3) -> Config:
    """Compute every `interval`-th step and solve an ordinary differential equation in between."""
    return counted(FoCa(), interval, first)


@published(
    "TeaCache",
    "2411.19108",
    differs="the polynomial is clamped to its support and to 0",
    default="FLUX.1-dev",
)
def teacache(
    threshold: float = 0.6,
    coefficients: Sequence[float] = TEACACHE_FLUX,
    *,
    support: tuple[float, float] = (0.0, float("inf")),
) -> Config:
    """Add up what a polynomial makes of the change of the first block's modulated input, and compute at `threshold`."""
    estimator = Accumulated(Polynomial(RelativeChange(), coefficients, support))
    return Config(Clip(Threshold(threshold), first=0.0, last=1), estimator, (Reuse(),), ModulatedInput())


@published(
    "SeaCache",
    "2602.18993",
    differs="the scale of the filter's spectrum is ours",
    default="FLUX at 2x",
)
def seacache(threshold: float = 0.3, power: float = 2.0, *, size: tuple[int, int] | None = None) -> Config:
    """Add up the change of the first block's modulated input without its noise, and compute at `threshold`. `size` is
    the picture's in tokens where it is not square.
    """
    probe = SpectrumFiltered(ModulatedInput(), power, size)
    return Config(Clip(Threshold(threshold), first=0.0, last=1), Accumulated(RelativeChange()), (Reuse(),), probe)


@published(
    "First-Block Cache",
    "ParaAttention",
    differs="the original adds the cached tail to the fresh first block; here the output is held",
    default="that of diffusers",
)
def first_block_cache(threshold: float = 0.05) -> Config:
    """Compute where what the first block adds changed by `threshold` since the last computed step."""
    return Config(Threshold(threshold), RelativeChange("computed"), (Reuse(),), FirstBlocksResidual())


@published(
    "DBCache",
    "cache-dit",
    differs="the original adds the cached middle to the fresh front blocks; here the output is held, and no block at "
    "the back computes",
    default="8 warm-up steps of 50",
)
def dbcache(
    threshold: float = 0.08, front: int = 8, *, first: float = 0.16, approximator: Approximator | None = None
) -> Config:
    """Compute where what `front` blocks add changed by `threshold` since the last computed step. Pass `Taylor()` or
    `FoCa()` for its calibrators.
    """
    controller = Clip(Threshold(threshold), first=first)
    return Config(controller, RelativeChange("computed"), (approximator or Reuse(),), FirstBlocksResidual(front))


@published(
    "DiCache",
    "2508.17356",
    differs="the paper aligns along what the first blocks add; here along the stream after them, on which it also "
    "decides, unless `added=True`. `signed=True` follows it backwards too",
    default="FLUX",
)
def dicache(
    threshold: float = 0.4,
    depth: int = 1,
    *,
    first: float = 0.2,
    limit: float = 1.5,
    added: bool = False,
    signed: bool = False,
) -> Config:
    """Add up the change of what the first `depth` blocks give, compute at `threshold`, and follow them in between;
    where `added`, what they add.
    """
    controller = Clip(Threshold(threshold), first=first, last=1)
    if not added:
        return Config(controller, Accumulated(RelativeChange()), (Align(limit, signed),), FirstBlocks(depth))
    change, aligned = RelativeChange(part=STREAM), Align(limit, signed, part=ADDED)
    return Config(controller, Accumulated(change), (aligned,), StreamAndAdded(depth))


@published(
    "EasyCache",
    "2507.02860",
    differs="its rate is of the conditional output, here of the guided one; outputs must be shaped like the latent",
    default="Wan: 10 warm-up steps of 50",
)
def easycache(threshold: float = 0.05, *, first: float = 0.2) -> Config:
    """Add up how far the latent moved times how fast the output follows it, and compute at `threshold`."""
    controller = Clip(Threshold(threshold), first=first, last=1)
    return Config(controller, Accumulated(OnlineRate()), (ReuseResidual(),), RawLatent())


@published(
    "MagCache",
    "2506.09045",
    differs="the ratios are of the output where the paper takes the residual; its excluded step is left out",
    default="FLUX",
)
def magcache(ratios: Sequence[float], threshold: float = 0.24, *, longest: int = 5, first: float = 0.1) -> Config:
    """Compute where the magnitudes of a table have drifted by `threshold`. `ratios` are the model's own:
    `dicache.presets.measure_ratios`.
    """
    controller = Clip(Threshold(threshold), first=first, longest=longest)
    return Config(controller, MagnitudeRatios(tuple(ratios)), (Reuse(),), NO_PROBE)


@published(
    "SenCache",
    "2602.24208",
    differs="the table is made along the model's sampler where the paper noises real data",
    default="those of its code for Wan; paper, code and README disagree",
)
def sencache(
    table: SensitivityTable,
    threshold: float = 0.07,
    *,
    early: float = 0.005,
    longest: int = 10,
    work: float | None = None,
) -> Config:
    """Compute where latent and time have moved the output by `threshold`. `table` is the model's own:
    `dicache.presets.measure_sensitivities`. With `work` both thresholds are scaled until this share of the steps
    computes on the run that the table was made on.
    """
    if work is not None:
        scaled = threshold_for(table, work, early / threshold, longest)
        threshold, early = scaled, scaled * early / threshold
    controller = Clip(Threshold(threshold, early=early, share=EARLY), first=0.0, longest=longest)
    return Config(controller, Sensitivities(table), (Reuse(),), NO_PROBE)


@published(
    "AdaCache",
    "2411.02397",
    differs="without its motion term; the paper measures the residual of one attention, here the output itself, at "
    "computed steps",
    default="30 steps, fast",
)
def adacache(entries: tuple[tuple[float, int], ...] = FAST) -> Config:
    """Look up how many steps to skip by how much the last two computed outputs differ."""
    controller = Clip(Threshold(1.0), first=0.0, last=2)
    return Config(controller, Codebook(entries), (Reuse(),), NO_PROBE)


@published(
    "RACER",
    "2608.01740",
    differs="threshold and kappa are the same for all steps, and five steps compute before the first forecast",
    default="about 10 of 50 steps; its threshold and its kappa could not be had: pass your own",
)
def racer(threshold: float, kappa: float, *, interval: int = 5) -> Config:
    """Compute every `interval`-th step, out of turn where two forecasts part by `threshold`, and skip one later for it.
    `kappa` shrinks the forecast.
    """
    base = Chebyshev()
    approximators = (Shrunk(base, kappa), base, Taylor())
    controller = Repaid(threshold, interval, first=base.needs)
    return Config(controller, Disagreement(base=1, observer=2), approximators, NO_PROBE)
