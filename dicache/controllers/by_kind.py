"""A rule of its own for every kind of site (PAB, arXiv 2408.12588, holds cross-attention for longer than attention)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dicache.controllers.base import Controller
from dicache.controllers.interval import Interval
from dicache.planning.gains import Gains
from dicache.types import Decision, Kind, Quote, Rows, Site, Step


@dataclass(frozen=True)
class ByKind(Controller[Any]):
    """Sites of other kinds follow `otherwise`, which computes everything unless said otherwise; so does a run whose
    sites are all decided together.
    """

    rules: Mapping[Kind, Controller[Any]]
    otherwise: Controller[Any] = field(default_factory=lambda: Interval(1))

    def at(self, site: Site, sites: int) -> Controller[Any]:
        return self.rules.get(site.kind, self.otherwise).at(site, sites)

    @property
    def known_gains(self) -> Gains | None:
        """Of the first rule that has some: those of one composition are alike for all its kinds."""
        every = (rule.known_gains for rule in (self.otherwise, *self.rules.values()))
        return next((gains for gains in every if gains is not None), None)

    @property
    def spends_unpriced(self) -> bool:
        return any(rule.spends_unpriced for rule in (self.otherwise, *self.rules.values()))

    def init(self, samples: int) -> Any:  # noqa: ANN401
        return self.otherwise.init(samples)

    def decide(self, quote: Quote, step: Step, state: Any) -> tuple[Decision, Any]:  # noqa: ANN401
        return self.otherwise.decide(quote, step, state)

    def settle(self, ratio: Rows, computed: Rows, state: Any) -> Any:  # noqa: ANN401
        return self.otherwise.settle(ratio, computed, state)
