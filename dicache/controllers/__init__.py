"""Who may skip, and when."""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.controllers.base import Around as Around
    from dicache.controllers.base import Controller as Controller
    from dicache.controllers.budgeted import Budgeted as Budgeted
    from dicache.controllers.by_kind import ByKind as ByKind
    from dicache.controllers.clip import Clip as Clip
    from dicache.controllers.counted import Counted as Counted
    from dicache.controllers.counted import Evaluations as Evaluations
    from dicache.controllers.fixed import Fixed as Fixed
    from dicache.controllers.fixed import FixedAt as FixedAt
    from dicache.controllers.fixed import centred as centred
    from dicache.controllers.fixed import every as every
    from dicache.controllers.fixed import masks as masks
    from dicache.controllers.gap import PerGap as PerGap
    from dicache.controllers.gate import Gate as Gate
    from dicache.controllers.interval import Interval as Interval
    from dicache.controllers.noise_window import NoiseWindow as NoiseWindow
    from dicache.controllers.planned import Planned as Planned
    from dicache.controllers.threshold import Threshold as Threshold
    from dicache.controllers.with_gains import WithGains as WithGains
    from dicache.planning.gains import Gains as Gains

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.controllers.base": ("Around", "Controller"),
        "dicache.controllers.budgeted": ("Budgeted",),
        "dicache.controllers.by_kind": ("ByKind",),
        "dicache.controllers.clip": ("Clip",),
        "dicache.controllers.counted": ("Counted", "Evaluations"),
        "dicache.controllers.fixed": ("Fixed", "FixedAt", "centred", "every", "masks"),
        "dicache.controllers.gap": ("PerGap",),
        "dicache.controllers.gate": ("Gate",),
        "dicache.controllers.interval": ("Interval",),
        "dicache.controllers.noise_window": ("NoiseWindow",),
        "dicache.controllers.planned": ("Planned",),
        "dicache.controllers.threshold": ("Threshold",),
        "dicache.controllers.with_gains": ("WithGains",),
        "dicache.planning.gains": ("Gains",),
    },
)
