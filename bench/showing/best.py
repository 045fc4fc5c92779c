"""Who is best at an error: among all arms of some kinds, alike, those whose sweep ended before it counting as what they
certainly reach.

Searched schedules are no rivals: the per-prompt oracle cannot be run, and the static one costs a search. They stand in
tables of their own kind.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dicache.bench.harness.curves import Curve, Reach

OURS = frozenset({"dicache"})
RIVALS = frozenset({"peer", "preset", "baseline", "entrant"})
KINDS = {
    "best peer": frozenset({"peer"}),
    "best published method": frozenset({"preset"}),
    "best baseline": frozenset({"baseline"}),
    "best rival": RIVALS,
}
"""Words of the tables, and whom they mean."""


@dataclass(frozen=True)
class Best:
    name: str
    reach: Reach

    @property
    def speedup(self) -> float:
        """What it counts as."""
        return self.reach.speedup


def best(drawn: Sequence[Curve], kinds: Collection[str], target: float) -> Best | None:
    """The arm of these kinds with the largest speed-up at this median error."""
    return next(iter(_ranked(drawn, kinds, target)), None)


def ahead(drawn: Sequence[Curve], speedup: float, target: float) -> list[Best]:
    """Rivals that are faster than this at the median error, the fastest first."""
    return [rival for rival in _ranked(drawn, RIVALS, target) if rival.speedup > speedup]


def _ranked(drawn: Sequence[Curve], kinds: Collection[str], target: float) -> list[Best]:
    reaches = [(curve, curve.reach(target)) for curve in drawn if curve.kind in kinds]
    counting = [Best(curve.name, reach) for curve, reach in reaches if reach is not None and reach.counted is not None]
    return sorted(counting, key=lambda entry: -entry.speedup)
