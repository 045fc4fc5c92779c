"""What a session remembers: of a trajectory, of every site in it, of the denoiser call that is going on.

Estimator and controller keep typed states of their own, one per site; the session hands them in and takes them back.
Nothing is kept on a module, a class or a global.
"""

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dicache.approximators.base import Histories
from dicache.controllers.base import Controller
from dicache.estimators.base import Evidence
from dicache.models.conditioning import Prints
from dicache.probes.base import View
from dicache.runtime.guidance import Guided
from dicache.runtime.module_call import ModuleCall, RowsToRun
from dicache.runtime.trace import Record
from dicache.tensors.tree import tensors
from dicache.types import Action, Decision, Grid, Quote, Rows, RunFacts, Site, Step


@dataclass
class Judgement:
    """What was known and decided at one step."""

    evidence: Evidence
    predicted: Grid
    """(B, A)."""
    decision: Decision
    """Of this site: action and reason are (B, 1)."""
    quote: Quote
    before: Any
    """The controller's state when it was asked."""
    best: Rows
    """The approximator that fills in, or would, (B,)."""

    @property
    def computed(self) -> Rows:
        action = self.decision.action[:, 0]
        return (action == Action.COMPUTE) | (action == Action.UNSTORED)

    @property
    def unstored(self) -> Rows:
        """Whose value is not to be remembered, (B,) bool."""
        return self.decision.action[:, 0] == Action.UNSTORED


@dataclass
class SiteState:
    """What a run remembers of one site."""

    site: Site
    rule: Controller[Any]
    estimator: Any = None
    """The estimator's state."""
    controller: Any = None
    """That of the rule."""
    histories: dict[str, Histories] = field(default_factory=dict)
    """By branch."""
    judgement: Judgement | None = None
    """This step's."""
    sums: Tensor | None = None
    """Squares of this step, (B, A + 2), on the device: of every approximator's miss, of the value, of the output."""
    value: Tensor | None = None
    """What the site gave in the branch that was called first, (B, ...)."""
    depth: int | None = None
    """How many exact values are kept; None for as many as the approximators read."""
    share: Rows | None = None
    """||value|| / ||output|| when last computed, (B,); None for the whole evaluation."""

    @property
    def used(self) -> list[int]:
        """The approximators that fill in at this step."""
        return [] if self.judgement is None else sorted(set(self.judgement.best.tolist()))

    def remembered(self, exact: Rows) -> Rows:
        """Of the rows that are exact, (R,) bool, those whose value enters the history."""
        if self.judgement is None:
            return exact
        unstored = self.judgement.unstored
        return exact & ~unstored.repeat(len(exact) // len(unstored))

    def next_step(self) -> None:
        self.judgement = self.sums = self.value = None


@dataclass
class Run:
    """One trajectory: its sites, the mixture of its branches, and what was noted down."""

    key: object
    step: Step
    latent: Tensor
    """The denoiser's input in the first call of the step that is going on, (R, ...)."""
    before: float
    """Progress before the run's first step: a second expert begins half-way."""
    states: list[SiteState]
    guided: Guided = field(default_factory=Guided)
    samples: int = 0
    """0 during the first step."""
    scale: Rows | None = None
    """||v|| / ||x_N|| at the last computed step, (B,)."""
    prints: dict[str, Prints] = field(default_factory=dict)
    """By branch: what it was conditioned by at the first step."""
    strongest: Tensor | None = None
    """What the strongest branch gave at this step, where the others are sites."""
    records: list[Record] = field(default_factory=list)
    bytes: int = 0
    overhead: float = 0.0
    complete: bool = False
    gone: bool = False
    """Whether the model's tensors were let go: nothing is learned any more."""
    begun: float = field(default_factory=time.perf_counter)
    facts: RunFacts = field(init=False)

    def __post_init__(self) -> None:
        self.facts = RunFacts(self.step.timetable)

    def chunks(self, rows: int) -> int:
        """How many guidance branches a call of that many rows holds."""
        return rows // self.samples

    def know_mixture(self, guided: Guided) -> None:
        """The guidance branches were told apart: that of the largest weight, and the others."""
        assert guided.strongest is not None and guided.strength is not None
        others = [stream for stream in guided.streams if stream != guided.strongest] if guided.told_apart else []
        conditions = [self._conditions(*stream) for stream in (guided.strongest, *others)]
        self.guided = guided
        self.facts = RunFacts(self.step.timetable, float(guided.strength.median()), conditions[0], conditions[1:])

    def forget_mixture(self) -> None:
        """Other branches came."""
        self.guided.mixture, self.scale = None, None
        self.facts = replace(self.facts, guidance=None)

    def _conditions(self, branch: str, chunk: int) -> Prints:
        """Of one branch, (B, 32) each."""
        prints = self.prints.get(branch, {}).items()
        return {name: each.reshape(-1, self.samples, each.shape[1])[chunk] for name, each in prints}

    @property
    def at_end(self) -> bool:
        """Whether its last step has begun: many pipelines do not say that their run is over."""
        return self.step.index == self.step.total - 1

    @property
    def held(self) -> int:
        """Bytes that are kept at this moment: histories, and what estimators hold of the model (numbers per sample
        aside).
        """
        kept = [held.nbytes for state in self.states for histories in state.histories.values() for held in histories]
        states = [t for state in self.states for t in tensors(state.estimator) if t.ndim > 2]
        return sum(kept) + sum(t.nbytes for t in states)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What happens inside is the controller's own time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.overhead += time.perf_counter() - started

    def let_go(self) -> None:
        """Of the model's tensors."""
        self.guided, self.strongest, self.prints, self.gone = Guided(), None, {}, True
        self.forget()

    def forget(self) -> None:
        """What sites have remembered, once nothing reads it any more; what rules know and the mixture stay."""
        for state in self.states:
            state.histories, state.sums, state.value, state.judgement, state.estimator = {}, None, None, None, None

    def go_on(self, step: Step, latent: Tensor) -> None:
        """The next step begins."""
        self.step, self.latent, self.guided, self.strongest = step, latent, self.guided.next_step(step.calls), None
        for state in self.states:
            state.next_step()


@dataclass
class OpenSite:
    """The site that is being run."""

    site: Site
    inputs: list[Tensor]
    versions: list[int]
    """Of the inputs: where they change, the site works in place."""
    module_call: ModuleCall
    """The call of its first module."""
    rows_to_run: RowsToRun
    feature: Tensor | None = None

    @property
    def changed(self) -> bool:
        """Whether the site has worked in place."""
        return any(t._version != version for t, version in zip(self.inputs, self.versions, strict=True))


@dataclass
class Call:
    """The denoiser call that is going on."""

    branch: str
    latent: Tensor
    """What it is called with, (r, ...); calls of one step may differ in their rows."""
    key: tuple[Hashable, ...]
    """The shapes of all inputs, and what says which parts run."""
    rows_to_run: RowsToRun
    first: bool
    """Whether no other branch was called before in this step."""
    position: int = 0
    view: View | None = None
    """What the first block was called with, until the probe has looked."""
    feature: Tensor | None = None
    open_site: OpenSite | None = None
    drafted: Rows | None = None
    """Rows, (R,) bool, in which a site below the evaluation was skipped."""
    rejected: Rows | None = None
    """Rows, (R,) bool, whose draft failed; they compute when the call runs again."""
    again: bool = False

    @property
    def rows(self) -> int:
        return self.latent.shape[0]

    @property
    def device(self) -> torch.device:
        return self.latent.device

    def repeat(self) -> None:
        """The call begins again; what was rejected stays so."""
        self.again, self.position, self.drafted, self.open_site = True, 0, None, None
        self.rows_to_run, self.feature = RowsToRun(self.rows, gathered=self.rows_to_run.gathered), None
