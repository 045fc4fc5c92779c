"""Which blocks may be skipped depends on how far the run is (Delta-DiT, arXiv 2406.01125): the rear ones while the
outline is drawn, the front ones later, when details are.

    rear block      while level > gate        front block     while level <= gate

of n blocks the first and the last `share` n; where the share is above a half, the blocks in the middle are both. For
sites of one block each: what a span of blocks adds is the sum of what they add.
"""

from dataclasses import dataclass
from typing import Any

from dicache.controllers.base import Around, Controller
from dicache.controllers.interval import Interval
from dicache.controllers.noise_window import NoiseWindow
from dicache.errors import ModeError
from dicache.types import Site


@dataclass(frozen=True)
class Staged(Around):
    """Sites decided together, or a single one, follow the inner rule at all times."""

    share: float = 0.75
    gate: float = 0.5
    """Level of noise, `dicache.controllers.noise_window`."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0 < self.gate < 1:
            raise ModeError(f"{self}: expected a share above 0 and up to 1, and a gate between 0 and 1.")

    def at(self, site: Site, sites: int) -> Controller[Any]:
        rule, blocks = self.inner.at(site, sites), round(self.share * sites)
        front, rear = site.index < blocks, site.index >= sites - blocks
        if front and rear:
            return rule
        if not front and not rear:
            return Interval(1)
        return NoiseWindow(rule, high=self.gate) if front else NoiseWindow(rule, low=self.gate)
