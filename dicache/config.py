"""One configuration: which parts decide, and what fills in. An option is an object, not a string."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dicache.approximators.base import Approximator
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.approximators.noise import ExtrapolateNoise
from dicache.controllers.base import Controller
from dicache.controllers.planned import cautious
from dicache.errors import ModeError, ProfileError
from dicache.estimators.amplitude import Amplitude
from dicache.estimators.base import Estimator
from dicache.planning.budget import validate
from dicache.probes.base import Probe
from dicache.probes.first_blocks import FirstBlocks
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.keep_budget import Aim, Promised
from dicache.promise.sample_difficulty import Calibrated
from dicache.sites import Evaluation, Sites

EVALUATION: tuple[Approximator, ...] = (ExtrapolateNoise(), ExtrapolateNoise(memory=math.inf), Reuse())
INNER: tuple[Approximator, ...] = (Extrapolate(), Reuse())


@dataclass(frozen=True)
class Config:
    """A composition: at each step the approximator with the least predicted error is proposed, per sample, and the
    controller accepts or computes. With sites below the whole evaluation every site is decided so, on its own.
    """

    controller: Controller[Any]
    estimator: Estimator[Any] = field(default_factory=lambda: Amplitude())
    approximators: tuple[Approximator, ...] = EVALUATION
    """By default, for a whole evaluation a line in the noise with fading memory, one without, and reuse; for other
    sites a line and reuse.
    """
    probe: Probe = field(default_factory=lambda: FirstBlocks(depth=0))
    sites: Sites = field(default_factory=Evaluation)
    together: bool = False
    """Whether all sites are decided as one, on the mean of what is predicted of them (BWCache)."""
    memory_limit: int | None = None
    """Most bytes to keep. Lower orders and fewer sites are what it costs; the report says which."""

    def __post_init__(self) -> None:
        if not isinstance(self.controller, Controller):
            raise ModeError(f"controller is {self.controller!r}. Expected a controller such as Budgeted(0.05).")
        if self.approximators is EVALUATION and type(self.sites) is not Evaluation:
            object.__setattr__(self, "approximators", INNER)
        if not self.approximators:
            raise ModeError("Config has no approximator. Expected at least one, for example approximators=(Reuse(),).")
        reading = [type(a).__name__ for a in self.approximators if a.reads_feature]
        if self.probe == FirstBlocks(0) and reading:
            raise ModeError(
                f"{reading[0]} reads a probe, but Config has probe=FirstBlocks(depth=0). Give one that looks, for "
                "example FirstBlocks(1), or SiteInput() with sites inside the denoiser; or another approximator."
            )
        if type(self.sites) is not Evaluation and any(a.reads_noise for a in self.approximators):
            raise ModeError(
                "ExtrapolateNoise guesses the denoiser's output, these sites are parts of one. Use Extrapolate()."
            )
        if self.probe.local and not self.sites.inside_denoiser:
            raise ModeError(f"{self.probe} looks at sites inside the denoiser. Give sites, for example Spans().")
        if self.memory_limit is not None and not self.memory_limit > 0:
            raise ModeError(f"memory_limit is {self.memory_limit!r}. Expected a number of bytes above 0.")

    @property
    def depth(self) -> int:
        """How many exact values are remembered."""
        return max(a.history_depth for a in self.approximators)

    @property
    def feature_depth(self) -> int:
        """How many of the probe's features."""
        return max(*(a.needs for a in self.approximators), 2 if self.estimator.reads_innovation else 1)


def budgeted(error_budget: float | Sequence[float]) -> Config:
    """What `enable(pipe, error_budget=...)` uses without a profile: what did best on the bench (bench/README.md)."""
    return Config(cautious(validate(error_budget)))


def calibrated(choice: ProfileChoice, aim: Aim) -> Config:
    """The same parts, with measured prices in the place of the law where a profile of the shelf fits the run."""
    return Config(Promised(choice, aim), estimator=Calibrated(choice))


def measured_with_other_adapters(config: Config, note: Callable[[str], None]) -> None:
    """LoRA was loaded, scaled or fused since `enable`: a profile or fitted coefficients are of the weights before.

    Raises ProfileError where a profile was named or promises something; otherwise the report says it.
    """
    rule = config.controller
    if isinstance(rule, Promised) and rule.choice.profiles:
        if rule.aim.needed or rule.choice.kind == "named":
            raise ProfileError(
                "the LoRA was changed after dicache.enable, and the profile was measured without that change. Set the "
                "LoRA, calibrate with it, and enable with that profile; or enable without profile and confidence."
            )
        note("the LoRA was changed after dicache.enable: the profile was measured without that change.")
    if any(getattr(approximator, "model", None) is not None for approximator in config.approximators):
        note("the LoRA was changed after dicache.enable: the coefficients were fitted without that change.")
