"""One configuration: which parts decide, and what fills in. It is data: an option is an object, not a string. What
`enable` composes by itself is said in `dicache.defaults`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, check_attributes
from dicache.approximators.hold import Reuse
from dicache.controllers.base import Controller
from dicache.controllers.interval import Interval
from dicache.errors import ModeError, PartError
from dicache.estimators.amplitude import Amplitude
from dicache.estimators.base import Estimator
from dicache.probes.base import Probe, check_depth
from dicache.probes.first_blocks import FirstBlocks
from dicache.sites import Control, Evaluation, Sites
from dicache.tensors.contract import is_users
from dicache.types import Kind, Site


@dataclass(frozen=True)
class Config:
    """A composition: at each step the approximator with the least predicted error is proposed, per sample, and the
    controller accepts or computes. With sites below the whole evaluation every site is decided so, on its own.

    Raises ModeError for parts that do not go together, PartError for one that is none or leaves out what it must say.
    """

    controller: Controller[Any]
    estimator: Estimator[Any] = field(default_factory=lambda: Amplitude())
    approximators: tuple[Approximator, ...] = None  # type: ignore[assignment]  # always a tuple once this is made
    """By default what the sites say (`dicache.sites`)."""
    probe: Probe = field(default_factory=lambda: FirstBlocks(depth=0))
    sites: Sites = field(default_factory=Evaluation)
    together: bool = False
    """Whether all sites are decided as one, on the mean of what is predicted of them (BWCache)."""
    control: Controller[Any] | None = None
    """When the networks that feed the denoiser alone (ControlNets) run while it computes: a rule that counts steps or
    goes by the noise. Elsewhere they give what they gave before. None: always.
    """
    memory_limit: int | None = None
    """Most bytes to keep. Lower orders and fewer sites are what it costs; the report says which."""

    def __post_init__(self) -> None:
        if self.approximators is None:
            object.__setattr__(self, "approximators", self.sites.approximators)
        if not isinstance(self.controller, Controller):
            raise ModeError(f"controller is {self.controller!r}. Expected a controller such as Budgeted(0.05).")
        if not self.approximators:
            raise ModeError("Config has no approximator. Expected at least one, for example approximators=(Reuse(),).")
        if self.memory_limit is not None and not self.memory_limit > 0:
            raise ModeError(f"memory_limit is {self.memory_limit!r}. Expected a number of bytes above 0.")
        self._check_parts()
        self._check_control()
        self._check_probe()
        self._check_sites()

    def _check_parts(self) -> None:
        for approximator in self.approximators:
            if not isinstance(approximator, Approximator):
                raise PartError(f"approximators has {approximator!r}. Expected approximators such as Reuse().")
            check_attributes(approximator)
        if not isinstance(self.estimator, Estimator):
            raise PartError(f"estimator is {self.estimator!r}. Expected an estimator such as ClosedLoop().")
        if not isinstance(self.probe, Probe):
            raise PartError(f"probe is {self.probe!r}. Expected a probe such as FirstBlocks(1).")
        check_depth(self.probe)

    def _check_control(self) -> None:
        rule = self.control_rule
        if self.control is not None and isinstance(self.sites, Control):
            raise ModeError("Config has sites=Control() and control=. Give the rule once, as the controller.")
        if rule is not None and (not isinstance(rule, Controller) or rule.reads_error):
            raise ModeError(
                f"{rule!r} goes by an error, and how far one of a network beside the denoiser reaches the picture is "
                "not known. Give a rule that counts or goes by the noise, such as Interval(3) or "
                "NoiseWindow(Interval(1000), 0.0, 0.5)."
            )

    def _check_probe(self) -> None:
        reading = [type(a).__name__ for a in self.approximators if a.reads_feature]
        if self.probe == FirstBlocks(0) and reading:
            raise ModeError(
                f"{reading[0]} reads a probe, but Config has probe=FirstBlocks(depth=0). Give one that looks, for "
                "example FirstBlocks(1), or SiteInput() with sites inside the denoiser; or another approximator."
            )
        if self.probe.local and not self.sites.inside_denoiser:
            raise ModeError(f"{self.probe} looks at sites inside the denoiser. Give sites, for example Spans().")

    def _check_sites(self) -> None:
        reading = [type(a).__name__ for a in self.approximators if a.reads_noise]
        if reading and not self.sites.holds_output:
            raise ModeError(
                f"{reading[0]} guesses the denoiser's output, these sites are parts of one. Use Extrapolate()."
            )
        if self.sites.inside_denoiser and self.controller.spends_unpriced:
            raise ModeError(
                f"Config has an error budget over {self.sites}, and how far an error there reaches the picture is not "
                "known. Measure it: profile = dicache.calibrate(pipe, prompts, steps=..., config=dicache.Config("
                "Interval(1), sites=...)), and give profile.rule(0.05) as the controller. Or give a rule that counts, "
                "such as Interval(2), or sites=Evaluation()."
            )
        gains = self.controller.known_gains
        if gains is not None and gains.parts not in ("", self.parts):
            raise ModeError(
                f"the gains were measured with {gains.parts}, and Config has {self.parts}. Measure them with these "
                "parts: dicache.calibrate(pipe, prompts, steps=..., config=...)."
            )

    @property
    def parts(self) -> str:
        """What an error that is predicted here comes from, in words: all parts but the rules."""
        parts = (self.sites, self.probe, self.estimator, *self.approximators)
        return ", ".join(repr(part) if is_dataclass(part) else type(part).__name__ for part in parts)

    @property
    def needs(self) -> Tensor:
        """Of each approximator how many exact values it needs, (A,)."""
        return _on_host(tuple(a.needs for a in self.approximators))

    @property
    def actions(self) -> Tensor:
        """What each of them counts as, (A,)."""
        return _on_host(tuple(int(a.action) for a in self.approximators))

    @property
    def judged_by_others(self) -> list[str]:
        """Classes that do not ship with dicache and say what an error will be."""
        parts = (*self.approximators, self.estimator)
        return sorted({type(part).__name__ for part in parts if is_users(type(part))})

    def rule_at(self, site: Site, sites: Sequence[Site]) -> Controller[Any]:
        """What decides there, of all `sites`; checks always compute."""
        if site.kind is Kind.CHECK or isinstance(self.sites, Control):
            return Interval(1)
        return self.controller.at(site, sum(other.kind is not Kind.CHECK for other in sites))

    @property
    def control_rule(self) -> Controller[Any] | None:
        """When networks beside the denoiser run while it computes; None for always."""
        return self.controller if isinstance(self.sites, Control) else self.control

    @property
    def control_fill(self) -> Approximator:
        """What stands in their place where they do not."""
        return self.approximators[0] if isinstance(self.sites, Control) else Reuse()

    @property
    def depth(self) -> int:
        """How many exact values are remembered."""
        return max(a.history_depth for a in self.approximators)

    @property
    def feature_depth(self) -> int:
        """How many of the probe's features."""
        return max(*(a.needs for a in self.approximators), 2 if self.estimator.reads_innovation else 1)

    def on_other_weights(self, change: str) -> list[str]:
        """What to say of a run on weights that were changed since `enable` ("the LoRA was changed"). Raises
        ProfileError where a profile was named or promises something.
        """
        texts = [self.controller.on_other_weights(change), *(a.on_other_weights(change) for a in self.approximators)]
        return [text for text in texts if text is not None]


@lru_cache(maxsize=64)
def _on_host(numbers: tuple[int, ...]) -> Tensor:
    """Asked for at every step of every slot, and never written to."""
    return torch.tensor(numbers, device="cpu")
