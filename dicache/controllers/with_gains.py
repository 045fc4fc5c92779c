"""A rule for sites below the whole evaluation, quoted what an error at its site adds to the final latent:

cost  <-  gain(site, half log SNR) * cost
"""

from dataclasses import dataclass, replace
from typing import Any

from dicache.controllers.base import Around, Controller
from dicache.planning.gains import Gains
from dicache.types import Decision, Quote, Site, Step


@dataclass(frozen=True)
class WithGains(Around):
    gains: Gains
    """Those of a profile, whose `rule` is made so, or Gains() for the assumption that errors reach the output as they
    are.
    """
    site: int = 0
    """Whose they are, by its index."""

    @property
    def known_gains(self) -> Gains:
        return self.gains

    @property
    def spends_unpriced(self) -> bool:
        return False

    def at(self, site: Site, sites: int) -> Controller[Any]:
        return replace(self, inner=self.inner.at(site, sites), site=site.index)

    def decide(self, quote: Quote, step: Step, state: Any) -> tuple[Decision, Any]:  # noqa: ANN401
        gain = self.gains.at(self.site, step.half_log_snr)
        return self.inner.decide(quote._replace(cost=quote.cost * gain), step, state)
