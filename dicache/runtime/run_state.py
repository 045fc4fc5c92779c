"""What a session remembers: of a trajectory, of every site in it, of the denoiser call that is going on.

Estimator and controller keep typed states of their own, one per site; the session hands them in and takes them back.
Nothing is kept on a module, a class or a global.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dicache.approximators.base import Histories
from dicache.controllers.base import Controller
from dicache.errors import DicacheError
from dicache.estimators.base import Evidence
from dicache.models.conditioning import Prints
from dicache.models.watched_inputs import Conditions
from dicache.probes.base import View
from dicache.ranks.sums import ALONE, SharedSums
from dicache.runtime.guidance import Guided
from dicache.runtime.module_call import ModuleCall, RowsToRun
from dicache.runtime.trace import Record, SideWork, Trace, not_finite_of
from dicache.tensors.mac_meter import Meter
from dicache.tensors.tree import Tree
from dicache.tensors.written import Unwritten
from dicache.types import Decision, Grid, Quote, Rows, RunFacts, Site, Step


class Marks(NamedTuple):
    """What a call is made with: objects by name, none of which was written to where `facts` are equal."""

    facts: tuple[tuple[str, int, int], ...]
    """Of each its name, `id`, and how often it was written to."""
    objects: tuple[object, ...]
    """Held, so that no other object gets the `id` of one."""


class Inputs(NamedTuple):
    """What the denoiser is called with, as far as a session reads it."""

    latent: Tensor
    """(R, ...)."""
    timestep: Tensor | float | None
    branch: str | None
    """Its name, where the pipeline gives one."""
    key: tuple[Hashable, ...]
    """Calls of one key have inputs of the same shapes and run the same parts."""
    gathered: bool = True
    """Whether parts may run for some of the rows."""
    other_weights: str = ""
    """What was changed of the model since the call before ("the LoRA was changed"), costs with it; or empty."""
    conditioning: Mapping[str, Tree] = MappingProxyType({})
    """What else it is called with, but for the time, by name."""
    marks: Marks | None = None
    """Which tell by themselves that all of it is as before; None where only a closer look does."""
    conditions: Callable[[], Prints] = dict
    """Tells the fingerprint of what else it is called with; asked for in a run's first step."""


class Judgement(NamedTuple):
    """What was known of a site and decided at one step."""

    evidence: Evidence
    predicted: Grid
    """(B, A)."""
    decision: Decision
    """Of this site: action and reason are (B, 1)."""
    quote: Quote
    controller_before: Any
    """The controller's state when it was asked."""
    best: Rows
    """The approximator that fills in, or would, (B,)."""
    computed: Rows
    """Whose value is computed, (B,) bool."""
    stored: Rows
    """Whose value, once computed, is to be remembered, (B,) bool."""


@dataclass
class SiteState:
    """What a run remembers of one site."""

    site: Site
    rule: Controller[Any]
    inside: bool
    """Whether it lies inside the denoiser."""
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
    """How many exact values are remembered; None for as many as the approximators read."""
    share: Rows | None = None
    """||value|| / ||output|| when last computed, (B,); None for the whole evaluation."""
    tokens: Any = None
    """What is remembered of its tokens (`dicache.tokens`)."""


@dataclass
class Run:
    """One trajectory: its sites, the mixture of its branches, and what was noted down."""

    key: object
    step: Step
    time: float
    """Where the step lies in the time along which errors grow evenly: half log SNR where it is known, else sigma."""
    latent: Tensor
    """The denoiser's input in the first call of the step that is going on, (R, ...)."""
    before: float
    """Progress before the run's first step: a second expert begins half-way."""
    states: list[SiteState]
    guided: Guided = field(default_factory=Guided)
    sums: SharedSums = ALONE
    displaced: object = None
    """The key of the run that was going on when this one began, where there was one."""
    samples: int = 0
    """0 during the first step."""
    scale: Rows | None = None
    """||v|| / ||x_N|| at the last computed step, (B,)."""
    prints: dict[str, Prints] = field(default_factory=dict)
    """By branch: what it was conditioned by at the first step."""
    controls: frozenset[str] = frozenset()
    """What steers it beside the prompt, by the branches of the first step."""
    conditions: Conditions = field(default_factory=Conditions)
    marks: dict[str, Marks | None] = field(default_factory=dict)
    """By branch: those of its last call."""
    anew: bool = False
    """Whether they were found changed at this step: it computes."""
    strongest: Tensor | None = None
    """What the strongest branch gave at this step, where the others are sites."""
    records: list[Record] = field(default_factory=list)
    bytes: int = 0
    """The most that was remembered at once."""
    overhead: float = 0.0
    """Seconds that deciding and filling in took on the host."""
    first_not_finite: Tensor | None = None
    """The step at which each sample was first not finite, -1 for none, (B,), on the device."""
    not_finite: Mapping[int, int] = field(default_factory=dict)
    """The same on the host, by sample, as far as the host has waited for the device."""
    complete: bool = False
    apart: bool = False
    """Whether the calls of one step hold different latents: everything computes."""
    refusal: str = ""
    """Why it was refused, where it was."""
    gone: bool = False
    """Whether the model's tensors were let go: nothing is learned any more."""
    side_work: dict[str, SideWork] = field(default_factory=dict)
    """Of networks beside the denoiser, by name, times the number of samples, which is not known at first."""
    begun: float = field(default_factory=perf_counter)
    facts: RunFacts = field(init=False)
    """What the run has shown of itself."""

    def __post_init__(self) -> None:
        self.facts = RunFacts(self.step.timetable, size=tuple(self.latent.shape[1:]))

    @property
    def at_last_step(self) -> bool:
        return self.step.index == self.step.total - 1

    def as_begun(self, latent: Tensor) -> Tensor:
        """In the precision that the run began in: under autocast schedulers go on in that of the model's outputs."""
        begun = self.latent.dtype
        lower = latent.dtype != begun and torch.promote_types(latent.dtype, begun) == begun
        return latent.to(begun) if lower and torch.is_autocast_enabled(latent.device.type) else latent

    def look(self) -> None:
        """Wait for what the device knows of samples that are not finite."""
        if self.first_not_finite is not None:
            self.not_finite = not_finite_of(self.first_not_finite)

    def know_mixture(self, guided: Guided) -> None:
        """The guidance branches were told apart: that of the largest weight, and the others."""
        assert guided.strongest is not None and guided.strength is not None
        rest = [stream for stream in guided.streams if stream != guided.strongest] if guided.told_apart else []
        conditions = [self._conditions(*stream) for stream in (guided.strongest, *rest)]
        self.guided = guided
        scale, controls = float(guided.strength.median()), tuple(sorted(self.controls))
        self.facts = RunFacts(self.step.timetable, scale, conditions[0], conditions[1:], self.facts.size, controls)

    def forget_mixture(self) -> None:
        """Other branches came."""
        self.guided, self.scale = self.guided.unmixed(), None
        self.facts = replace(self.facts, guidance=None)

    def trace(self, meter: Meter, sites: tuple[Site, ...], site_macs: tuple[float, ...], planned: int | None) -> Trace:
        """Of what was recorded so far; `planned` bytes are the most that is to be remembered."""
        samples = self.samples or len(meter.executed)
        executed, uncached, int8 = (macs.view(-1, samples).sum(0) for macs in meter.totals)
        facts = (self.bytes, self.overhead, self.complete, sites, site_macs, planned, self.not_finite, self.refusal)
        side = tuple(work.over(samples) for work in self.side_work.values())
        return Trace(tuple(self.records), executed, uncached, *facts, side, int8)

    def _conditions(self, branch: str, chunk: int) -> Prints:
        """Of one branch, (B, 32) each."""
        prints = self.prints.get(branch, {}).items()
        return {name: each.reshape(-1, self.samples, each.shape[1])[chunk] for name, each in prints}

    def undecide(self) -> None:
        """What was decided ahead of the denoiser's call does not hold; rules are as before."""
        for state in [] if self.guided.outputs else self.states:
            judgement, state.judgement = state.judgement, None
            state.controller = state.controller if judgement is None else judgement.controller_before

    def refuse(self, error: DicacheError) -> None:
        """Nothing more is learned of it, also when the model is let go."""
        self.refusal = str(error)
        self.let_go()

    def let_go(self) -> None:
        """Of the model's tensors."""
        self.look()
        self.guided, self.strongest, self.prints, self.gone = Guided(), None, {}, True
        self.first_not_finite = None
        self.forget()

    def forget(self) -> None:
        """What sites have remembered, once nothing reads it any more; what rules know and the mixture stay."""
        self.conditions, self.marks = Conditions(), {}
        for state in self.states:
            state.histories, state.sums, state.value, state.judgement = {}, None, None, None
            state.estimator = state.tokens = None


class Strategy(Protocol):
    """What happens to the modules of a call, and to its output."""

    def forget(self) -> None: ...

    def block(self, call: "Call", module_call: ModuleCall) -> Tree: ...

    def end(self, call: "Call", output: Tensor) -> Tensor: ...


@dataclass
class OpenSite:
    """The site that is being run."""

    site: Site
    inputs: list[Tensor]
    unwritten: Unwritten | None
    """The inputs as they came, where it matters: if they change, the site works in place."""
    module_call: ModuleCall
    """The call of its first module."""
    rows_to_run: RowsToRun
    feature: Tensor | None = None


@dataclass
class Call:
    """The denoiser call that is going on."""

    run: Run
    branch: str
    latent: Tensor
    """What it is called with, (r, ...); calls of one step may differ in their rows."""
    key: tuple[Hashable, ...]
    """The shapes of all inputs, and what says which parts run."""
    rows_to_run: RowsToRun
    first: bool
    """Whether no other branch was called before in this step."""
    position: int = 0
    """How many blocks have run."""
    inside_block: bool = False
    """Whether a block that is no site of its own is running."""
    around: dict[str, int] = field(default_factory=dict)
    """How often each module around the blocks has run."""
    view: View | None = None
    """What the first block was called with, until the probe has looked."""
    feature: Tensor | None = None
    open_site: OpenSite | None = None
    drafted: Rows | None = None
    """Rows, (R,) bool, in which a site below the evaluation was skipped."""
    sites: dict[int, RowsToRun] = field(default_factory=dict)
    """The rows that compute at those that were decided, by index."""
    rejected: Rows | None = None
    """Rows, (R,) bool, whose draft failed; they compute when the call runs again."""
    again: bool = False
    tokens: Any = None
    """Those that run of rows that skip (`dicache.tokens`)."""

    def repeat(self) -> None:
        """The call begins again; what was rejected stays so."""
        self.again, self.position, self.drafted, self.open_site, self.around = True, 0, None, None, {}
        self.inside_block, self.sites, self.feature = False, {}, None
        self.rows_to_run = RowsToRun(self.rows_to_run.rows, gathered=self.rows_to_run.gathered)
