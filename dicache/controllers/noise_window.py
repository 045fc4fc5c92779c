"""A controller that may skip only between two levels of noise; outside, every step computes (the timestep windows of
PAB and FasterCache).

The level is 1 at pure noise and 0 at the end: sigma over its value at the start of a whole run in a flow, elsewhere the
timestep over the number that the model was trained at. Timesteps from 0 to 1000, as papers give them, are thousandths
of it. In a hand-written loop it is the share of noise, or of the time still to go where nothing else is known.
"""

from dataclasses import dataclass
from typing import Any

import torch

from dicache.controllers.base import Around, overruled, refused
from dicache.errors import ModeError
from dicache.solvers.timeline import noise_share
from dicache.types import Decision, Quote, Reason, Step


@dataclass(frozen=True)
class NoiseWindow(Around):
    low: float = 0.0
    high: float = 1.0
    """Steps with low < level <= high may be skipped: windows tile the run."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ModeError(f"NoiseWindow({self.low}, {self.high}): expected low below high, as shares of the noise.")

    def decide(self, quote: Quote, step: Step, state: Any) -> tuple[Decision, Any]:  # noqa: ANN401
        if self.low < level(step) <= self.high:
            return self.inner.decide(quote, step, state)
        everything = torch.ones_like(quote.error, dtype=torch.bool)
        decision, state = self.inner.decide(refused(quote, everything), step, state)
        return overruled(decision, everything, Reason.WARM_UP), state


def level(step: Step) -> float:
    """How much noise there is before the step, from 1 down to 0."""
    if step.timetable is None:
        return step.time_left if step.half_log_snr is None else noise_share(step.half_log_snr)
    if step.sigma == step.half_log_snr:  # off the straight path steps are placed along that
        return step.time_left
    return step.sigma / max(step.timetable.sigmas)
