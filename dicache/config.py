"""One configuration: which parts decide, and what fills in. An option is an object, not a string."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dicache.approximators.alignment import Align
from dicache.approximators.base import Approximator
from dicache.approximators.hold import Reuse
from dicache.approximators.noise import ExtrapolateNoise
from dicache.budget import validate
from dicache.controllers.base import Controller
from dicache.controllers.planned import Planned
from dicache.errors import ModeError
from dicache.estimators.amplitude import Amplitude
from dicache.estimators.base import Estimator
from dicache.probes.base import Probe
from dicache.probes.first_blocks import FirstBlocks


@dataclass(frozen=True)
class Config:
    """A composition: at each step the approximator with the least predicted error is proposed, per sample, and the
    controller accepts or computes.
    """

    controller: Controller[Any]
    estimator: Estimator[Any] = field(default_factory=lambda: Amplitude())
    approximators: tuple[Approximator, ...] = (ExtrapolateNoise(), ExtrapolateNoise(memory=math.inf), Reuse())
    probe: Probe = field(default_factory=lambda: FirstBlocks(depth=0))

    def __post_init__(self) -> None:
        if not isinstance(self.controller, Controller):
            raise ModeError(f"controller is {self.controller!r}. Expected a controller such as Budgeted(0.05).")
        if not self.approximators:
            raise ModeError("Config has no approximator. Expected at least one, for example approximators=(Reuse(),).")
        if self.probe == FirstBlocks(0) and any(isinstance(a, Align) for a in self.approximators):
            raise ModeError(
                "Align reads a probe, but Config has probe=FirstBlocks(depth=0). Use depth=1 or another approximator."
            )

    @property
    def depth(self) -> int:
        """How many exact values are remembered."""
        return max(2, *(a.needs for a in self.approximators))


def budgeted(error_budget: float | Sequence[float]) -> Config:
    """What `enable(pipe, error_budget=...)` uses: what did best on the bench, without a probe (bench/README.md)."""
    return Config(Planned(validate(error_budget)))
