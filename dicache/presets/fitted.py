"""Methods with coefficients that are fitted on the model (`dicache.fit`), at the sites that they were fitted on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dicache.approximators.fitted.coefficients import Fitted
from dicache.approximators.fitted.sublayer_gates import Gated, Gates
from dicache.config import Config
from dicache.controllers.base import Controller
from dicache.controllers.fixed import Fixed, FixedAt, accumulated
from dicache.controllers.interval import Interval
from dicache.controllers.threshold import Threshold
from dicache.errors import ModeError
from dicache.estimators.base import Estimator
from dicache.estimators.closed_loop import ClosedLoop
from dicache.estimators.relative_change import RelativeChange
from dicache.presets.method_table import published


@published(
    "FastCache",
    "2505.20353",
    differs="the map is fitted, of the change since the block last computed; its code leaves it random. Left out: that "
    "tokens which stand still are decided apart, and the chi-square test, which accepts any change",
    default="as published, changes are not added up, so slow drift is never seen: at 0.05 no block of the reference "
    "model computes after its second step (error 1.06 at 0.150 of the work, 28 steps)",
)
def fastcache(fitted: Fitted, threshold: float = 0.05) -> Config:
    """Put a linear map in the place of a block whose input moved by less than `threshold` since the step before.
    `fitted` is of kind "ridge", on blocks.
    """
    return _composed(Threshold(threshold), RelativeChange(norm="l2"), fitted, "ridge")


@published(
    "ICC",
    "2505.05829",
    differs="layers that read the time are computed, not held; with coefficients of other sites than `Linears()` whole "
    "sublayers or blocks are corrected, by maps fitted to them",
    default="every second step computes",
)
def icc(fitted: Fitted, interval: int = 2) -> Config:
    """Compute every `interval`-th step, and in between correct what is held by a map of low rank. `fitted` is of kind
    "low_rank", as published with sites Linears().
    """
    return _composed(Interval(interval), ClosedLoop(), fitted, "low_rank")


@published(
    "Block Caching",
    "2312.03209",
    differs="scale and shift are fitted by least squares where the paper distils",
    default="20 to 50 steps",
)
def block_caching(fitted: Fitted, threshold: float = 0.5) -> Config:
    """Give every block a schedule of its own, from the changes measured where its scale and shift were fitted. `fitted`
    is of kind "scale_shift".
    """
    changes = {site: named["change"].tolist() for site, named in fitted.coefficients.items() if "change" in named}
    schedules = {site: accumulated(change, threshold) for site, change in changes.items()}
    controller = FixedAt((frozenset(range(len(fitted.about.sigmas))),), schedules)
    return _composed(controller, ClosedLoop(), fitted, "scale_shift")


@published(
    "CacheQuant",
    "2503.01323",
    differs="what is held is the denoiser's output, where the paper holds one feature; its correction is per step and "
    "gap. Its 8-bit half is `dicache.int8`, which quantises before: schedule and coefficients are then those of the "
    "quantised model",
    default="every second step computes. Every third, with 8 bits: error 0.0324, without 0.0285, 8 bits alone 0.0112, "
    "at 0.360 of the work (reference model, 28 steps)",
)
def cachequant(fitted: Fitted, computed: Sequence[int] | None = None, interval: int = 2) -> Config:
    """Correct what is held by a line per channel. `fitted` is of kind "affine". `computed` are the steps that its
    dynamic programming chose (`Schedule`, from `dicache.finders.DynamicProgramming(weighted=False, norm="l1",
    fitted=fitted)`); without them every `interval`-th step computes.
    """
    rule = Interval(interval) if computed is None else Fixed((frozenset(computed),))
    return _composed(rule, ClosedLoop(), fitted, "affine")


@published(
    "LazyDiT",
    "2412.12444",
    differs="gates are logistic regressions of recorded errors (`dicache.fit(kind='gate')`), the paper's are trained "
    "with the images' loss; theirs know nothing of how long a value was held, and have no longest gap",
    default="the odds of the paper. Fitted to errors of 0.1: error 0.050 at 0.724 of the work of the reference model; "
    "SmoothCache, the same for all samples, 0.042 at 0.726",
)
def lazydit(fitted: Fitted, threshold: float = 0.5) -> Config:
    """Hold what attention and feed-forward gave where a gate says that this errs little, for each sample by its own
    input. `fitted` is of kind "gate"; `threshold` is the odds from which a sublayer computes.
    """
    config = _composed(Threshold(threshold), ClosedLoop(), fitted, "gate")
    (gates,) = config.approximators
    assert isinstance(gates, Gates)
    return replace(config, estimator=Gated(gates))


def _composed(controller: Controller[Any], estimator: Estimator[Any], fitted: Fitted, kind: str) -> Config:
    """Raises ModeError for coefficients of another kind."""
    if fitted.about.kind != kind:
        raise ModeError(
            f"the coefficients are of kind {fitted.about.kind!r}. Make them with dicache.fit(.., kind={kind!r})."
        )
    return Config(controller, estimator, (fitted.approximator(),), fitted.probe, fitted.sites)
