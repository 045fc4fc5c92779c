"""What an output that is not computed will be wrong by."""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.estimators.accumulated import Accumulated as Accumulated
    from dicache.estimators.amplitude import Amplitude as Amplitude
    from dicache.estimators.base import Estimator as Estimator
    from dicache.estimators.base import Evidence as Evidence
    from dicache.estimators.closed_loop import ClosedLoop as ClosedLoop
    from dicache.estimators.relative_change import RelativeChange as RelativeChange

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.estimators.accumulated": ("Accumulated",),
        "dicache.estimators.amplitude": ("Amplitude",),
        "dicache.estimators.base": ("Estimator", "Evidence"),
        "dicache.estimators.closed_loop": ("ClosedLoop",),
        "dicache.estimators.relative_change": ("RelativeChange",),
    },
)
