"""What a session remembers: of a trajectory, of the step that is going on, of the denoiser call that is going on.

Estimator and controller keep typed states of their own (`estimator`, `controller` below); the session hands them in and
takes them back. Nothing is kept on a module, a class or a global.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dicache.approximators.base import Past
from dicache.estimators.base import Evidence
from dicache.guided import Guided
from dicache.probes.base import View
from dicache.trace import Record
from dicache.types import Action, Decision, Grid, Rows, Step


@dataclass
class Judgement:
    """What was known and decided at one step."""

    evidence: Evidence
    predicted: Grid
    """(B, A)."""
    decision: Decision

    @property
    def best(self) -> Rows:
        """The approximator that was proposed, (B,)."""
        return self.predicted.min(1).indices

    @property
    def computed(self) -> Rows:
        return self.decision.action[:, 0] == Action.COMPUTE


@dataclass
class Run:
    """One trajectory: the typed states of estimator and controller, the histories, and what was noted down."""

    key: object
    step: Step
    latent: Tensor
    """The denoiser's input at the step that is going on, (R, ...)."""
    before: float
    """Progress before the run's first step: a second expert begins half-way."""
    guided: Guided = field(default_factory=Guided)
    judgement: Judgement | None = None
    past: dict[str, Past] = field(default_factory=dict)
    samples: int = 0
    """0 during the first step."""
    estimator: Any = None
    controller: Any = None
    scale: Rows | None = None
    """||v|| / ||x_N|| at the last computed step, (B,)."""
    records: list[Record] = field(default_factory=list)
    bytes: int = 0
    overhead: float = 0.0
    complete: bool = False

    def go_on(self, step: Step, latent: Tensor) -> None:
        """The next step begins."""
        self.step, self.latent, self.guided, self.judgement = step, latent, self.guided.next_step(), None


@dataclass
class Call:
    """The denoiser call that is going on."""

    branch: str
    rows: int
    key: tuple[torch.Size, ...]
    """The shapes of all inputs."""
    device: torch.device
    position: int = 0
    view: View | None = None
    """What the first block was called with, until the probe has looked."""
    feature: Tensor | None = None
    computed: Rows | None = None
    """(R,) bool where some row skips, None while all rows compute."""
    some: Tensor | None = None
    """Indices of the rows that compute where some do and some do not."""

    def decide(self, computed: Rows | None) -> None:
        if computed is not None and not bool(computed.all()):
            self.computed = computed
            self.some = computed.nonzero().flatten().to(self.device) if bool(computed.any()) else None
