"""The words that all of dicache speaks: steps, rows, actions and reasons.

B counts samples (prompts), R the rows of one denoiser call (samples times the branches that share the call), A the
approximators to choose from, S the sites. Everything the controller thinks with is small and lives on the host in
float64; only features, outputs and histories live on the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

Rows = Tensor
"""One number per sample, (B,)."""
Grid = Tensor
"""One number per sample and site, (B, S), or per sample and approximator, (B, A), as said where it is used."""


class Kind(StrEnum):
    """What a site is."""

    EVALUATION = "evaluation"
    BRANCH = "branch"
    SPAN = "span"
    ATTENTION = "attention"
    CROSS_ATTENTION = "cross-attention"
    FEED_FORWARD = "feed-forward"
    LINEAR = "linear"
    CHECK = "check"
    CONTROL = "control"


class Site(NamedTuple):
    """A place where work can be saved: the whole evaluation, a guidance branch, a span of blocks, a sublayer."""

    path: str
    """That of its module, or first and last one, `blocks.0..blocks.3`."""
    kind: Kind
    modules: tuple[str, ...] = ()
    """The hooked modules that it skips, in order of execution."""
    index: int = 0  # type: ignore[assignment]  # shadows tuple.index
    """Its own among the sites."""
    added: bool = True
    """Whether what the site adds to its inputs is remembered, or its outputs."""

    @property
    def inside_denoiser(self) -> bool:
        """Whether it is less than a whole denoiser call."""
        return self.kind not in (Kind.EVALUATION, Kind.BRANCH)


class Action(IntEnum):
    """What happens to one sample at one site and step."""

    COMPUTE = 0
    REUSE = 1
    EXTRAPOLATE = 2
    ALIGN = 3
    CORRECT = 4
    ZERO = 5
    """Nothing is put in place."""
    UNSTORED = 6
    """Computed, and what was remembered before stays."""
    DYNAMIC = 7
    """Only in schedules: what happens is decided in the run."""


MARKS = {
    Action.COMPUTE: "#",
    Action.REUSE: "=",
    Action.EXTRAPOLATE: "/",
    Action.ALIGN: "~",
    Action.CORRECT: "*",
    Action.ZERO: "0",
    Action.UNSTORED: "^",
    Action.DYNAMIC: "?",
}


class Reason(IntEnum):
    """Why."""

    WARM_UP = 0
    UNKNOWN = 1
    OVER_BUDGET = 2
    WITHIN_BUDGET = 3
    TOO_LONG = 4
    NO_BUDGET = 5
    SCHEDULED = 6
    PLANNED = 7
    REJECTED = 8
    OVER_THRESHOLD = 9
    CHANGED = 10


REASONS = {
    Reason.WARM_UP: "warm-up: the first steps, and the last where asked for, are always computed",
    Reason.UNKNOWN: "unknown: no error estimate yet, or not a finite one",
    Reason.OVER_BUDGET: "over budget: skipping would have spent more than was released so far",
    Reason.OVER_THRESHOLD: "over threshold: the change was more than the rule's threshold",
    Reason.WITHIN_BUDGET: "within budget: skipped",
    Reason.TOO_LONG: "too long: the gap reached its longest allowed length",
    Reason.NO_BUDGET: "no budget: the budget is zero",
    Reason.SCHEDULED: "scheduled: fixed before the run",
    Reason.PLANNED: "planned: the way that was chosen through the run computes here",
    Reason.REJECTED: "rejected: the draft did not stand verification, and was computed after all",
    Reason.CHANGED: "changed: what the denoiser is called with was changed, and what is remembered is of before",
}


LATENT = "latent"
"""The metric that needs no profile: ||x - x_ref|| / ||x_ref|| of the final latent."""


class Wanted(NamedTuple):
    """What the user asks for: a loss in this metric of at most `bound` (`dicache.promise.metrics`)."""

    metric: str
    bound: float


class Timetable(NamedTuple):
    """What is known of a whole run before it begins; all per step."""

    sigmas: tuple[float, ...]
    coefficients: tuple[float, ...]
    half_log_snrs: tuple[float, ...]
    """Half the logarithm of signal over noise, the time in which models turn evenly. Empty where that is not known."""
    begin: int
    """The run's first step: image-to-image starts half-way."""
    solver: str = ""
    """The scheduler's class, and those of its options that change what it does with the same sigmas."""
    gains: tuple[float, ...] = ()
    """How far an output moves with the velocity of the straight path that it stands for, the latent as it is; empty
    where the outputs are velocities.
    """
    random: bool = False
    """Whether the solver draws new noise."""

    def gain(self, index: int) -> float:
        return self.gains[index] if self.gains else 1.0


class Step(NamedTuple):
    """One call of the scheduler, in host numbers."""

    index: int  # type: ignore[assignment]  # shadows tuple.index
    total: int
    sigma: float
    """Position on the axis along which outputs are extrapolated: sigma, or the timestep where a scheduler has none."""
    coefficient: float
    """|d latent / d output|: how much of the denoiser's output this step adds to the latent."""
    progress: float
    """Share of the trajectory that lies behind once this step is done, in (0, 1]."""
    clean: tuple[float, float]
    """(a, b) such that a * latent + b * output estimates the final latent."""
    noise: tuple[float, float] = (0.0, 1.0)
    """(a, b) such that a * latent + b * output estimates the noise in the latent."""
    timetable: Timetable | None = None
    """None in a hand-written loop, where nobody knows what comes."""
    weights: tuple[float, ...] = (1.0,)
    """Of each of the calls that the solver makes in it, guidance aside: its output's share in what the step makes."""
    solved: tuple[float, float] | None = None
    """(p, c) such that p * latent + c * output is the next step's latent but for older outputs and for noise, as the
    denoiser sees latents; None where that is not known.
    """
    alone: bool = False
    """Whether there are no older outputs and no noise in that: what the step makes is of latent and output alone."""
    half_log_snr: float | None = None
    """Where errors grow evenly; None where nobody knows how much noise is in the latent."""
    gain: float = 1.0
    """As those of a timetable."""
    time_left: float = 1.0
    """Share of the model's time that is to come when the step begins; of the loop's in one written by hand."""

    @property
    def time(self) -> float:
        """Along which errors grow evenly: half log SNR where it is known, else sigma."""
        return self.sigma if self.half_log_snr is None else self.half_log_snr

    def released(self, before: float) -> "Step":
        """In a run that began when this share of the trajectory lay behind."""
        return self._replace(progress=self.progress - before)


@dataclass(frozen=True, eq=False)
class RunFacts:
    """What a run shows of itself: whether something that was measured on other runs holds for it. The runtime fills it
    once the guidance branches were told apart, and anew where others come half-way.
    """

    timetable: Timetable | None = None
    guidance: float | None = None
    """Weight of the strongest branch, the median over samples; None until it was measured."""
    own_conditions: Mapping[str, Tensor] = field(default_factory=dict)
    """What that branch was conditioned by at the first step (`dicache.models.conditioning`), (B, 32) each, by input."""
    other_conditions: Sequence[Mapping[str, Tensor]] = ()
    """The same of the branches that it is told apart from."""
    size: tuple[int, ...] = ()
    """Of a sample's latent, as the denoiser gets it; empty where nobody looked."""
    controls: tuple[str, ...] = ()
    """Inputs that steer it beside the prompt."""

    @cached_property
    def negative_conditions(self) -> Mapping[str, Tensor]:
        """What the other branches are conditioned by and the strongest is not, (B, 32) on the host, as "0.name",
        "1.name", ... The host waits for the device when this is first asked for.
        """
        own = {name: each.cpu() for name, each in self.own_conditions.items()}
        rest = [
            (f"{i}.{name}", name, each.cpu())
            for i, conditions in enumerate(self.other_conditions)
            for name, each in conditions.items()
        ]
        return {key: each for key, name, each in rest if name not in own or not torch.equal(each, own[name])}


class Quote(NamedTuple):
    """What skipping a step would do to each sample, by the best approximator. Unknown is inf."""

    error: Rows
    """Relative error of this step's output, as the estimator predicts it."""
    cost: Rows
    """The same as a relative error of the final latent."""
    action: Rows
    """How it would be filled in."""
    facts: RunFacts = RunFacts()
    """What the run has shown of itself so far; the same object at every step until it shows more."""
    fills: Rows | None = None
    """Whether something can fill in, whatever it costs, (B,) bool; None for where the cost is known."""


class Decision(NamedTuple):
    action: Grid
    """(B, S), values of Action."""
    reason: Grid
    """(B, S), values of Reason."""
    spent: Rows
    """(B,): the error estimated so far, including what this decision spends."""
