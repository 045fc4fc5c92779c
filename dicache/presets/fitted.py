"""Methods with coefficients that are fitted on the model (`dicache.fit`), at the sites that they were fitted on."""

from typing import Any

from dicache.approximators.fitted.coefficients import Fitted
from dicache.config import Config
from dicache.controllers.base import Controller
from dicache.controllers.fixed import FixedAt, accumulated
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
    differs="the paper corrects every linear layer by the cut of its own weights and computes what lies between; here "
    "blocks or, nearer to it, sublayers, by maps fitted to them",
    default="every second step computes",
)
def icc(fitted: Fitted, interval: int = 2) -> Config:
    """Compute every `interval`-th step, and in between correct what is held by a map of low rank. `fitted` is of kind
    "low_rank", best with sites Sublayers().
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


def _composed(controller: Controller[Any], estimator: Estimator[Any], fitted: Fitted, kind: str) -> Config:
    """Raises ModeError for coefficients of another kind."""
    if fitted.about.kind != kind:
        raise ModeError(
            f"the coefficients are of kind {fitted.about.kind!r}. Make them with dicache.fit(.., kind={kind!r})."
        )
    return Config(controller, estimator, (fitted.approximator(),), fitted.probe, fitted.sites)
