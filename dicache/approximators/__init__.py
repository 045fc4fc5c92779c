"""What fills in for what was not computed."""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.approximators.alignment import Align as Align
    from dicache.approximators.base import Approximator as Approximator
    from dicache.approximators.base import Histories as Histories
    from dicache.approximators.base import Target as Target
    from dicache.approximators.gained import Gained as Gained
    from dicache.approximators.hold import Reuse as Reuse
    from dicache.approximators.linear import Extrapolate as Extrapolate
    from dicache.approximators.newton import Newton as Newton
    from dicache.approximators.noise import ExtrapolateNoise as ExtrapolateNoise
    from dicache.approximators.noise import HoldNoise as HoldNoise
    from dicache.approximators.taylor import Taylor as Taylor
    from dicache.approximators.zero import Zero as Zero

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.approximators.alignment": ("Align",),
        "dicache.approximators.base": ("Approximator", "Histories", "Target"),
        "dicache.approximators.gained": ("Gained",),
        "dicache.approximators.hold": ("Reuse",),
        "dicache.approximators.linear": ("Extrapolate",),
        "dicache.approximators.newton": ("Newton",),
        "dicache.approximators.noise": ("ExtrapolateNoise", "HoldNoise"),
        "dicache.approximators.taylor": ("Taylor",),
        "dicache.approximators.zero": ("Zero",),
    },
)
