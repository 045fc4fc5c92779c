"""One denoising step, top to bottom. A session is of one denoiser and one `enable`; what it remembers is in `Run`.

    begin    which run, step and branch is this? the step before is ended: what its guesses were wrong by is read off
    block    the denoiser's blocks run, or are skipped, as the strategy says
    end      rows that skipped get the approximator's guess; exact rows enter the history

The strategy is that of the sites: `evaluation_site`, `branch_site`, or `inner_sites`, which decides where they run.
The rows of one call are samples, or, where the pipeline puts its guidance branches into one batch, a multiple of them:
row c * B + b is chunk c of sample b; calls of one step may hold different numbers of chunks. Branches in calls of their
own are told apart by the name the pipeline gives them, else by their place within the step. All branches of a sample
are decided together, at the step's first call. A run's first step computes: the second shows which rows are branches.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from dicache.config import Config
from dicache.errors import DicacheError
from dicache.models.watched_inputs import controls_among
from dicache.ranks.sums import SharedSums, alone
from dicache.runtime import watched_loop
from dicache.runtime.branch_site import BranchSite
from dicache.runtime.end_of_step import Listener, begin_anew, end_step, remembered_bytes, tell
from dicache.runtime.evaluation_site import EvaluationSite
from dicache.runtime.guidance import Guided
from dicache.runtime.inner_sites import InnerSites
from dicache.runtime.memory_plan import MemoryPlan
from dicache.runtime.module_call import RowsToRun
from dicache.runtime.owner import Owner
from dicache.runtime.run_state import Call, Inputs, Run, SiteState, Strategy
from dicache.runtime.trace import Trace
from dicache.solvers.loop_clock import LoopClock
from dicache.solvers.timeline import Clock, Reading
from dicache.tensors.mac_meter import Meter
from dicache.types import Kind, Site, Step

Make = Callable[[Config, Meter, MemoryPlan], Strategy]


class Session:
    def __init__(
        self, config: Config, clock: Clock, sites: tuple[Site, ...], owner: Owner | None = None, of: Make | None = None
    ) -> None:
        self.config: Config = config
        self.clock: Clock = clock
        self.sites: tuple[Site, ...] = sites
        self.meter: Meter = Meter()
        self.owner: Owner = owner or Owner()
        self.on_step: list[Listener] = []
        self.on_over: list[Listener] = []
        """Called when a step is over and noted down, and when a run is over."""
        self.on_call: Callable[[Session], object] = bool
        """Called when the first call of a run has begun, and when the next one has if it is `expected`."""
        self.expected: bool = False
        self.sums_of: Callable[[Tensor, Step], SharedSums] = alone
        """What a run that begins adds up by, over the ranks that compute it."""
        self.run: Run | None = None
        self.call: Call | None = None
        self.notes: dict[str, bool] = {}
        """What the report must say, and whether of the last run alone."""
        self.memory: MemoryPlan = MemoryPlan(config, self.note)
        self.strategy: Strategy = (of or self._strategy)(config, self.meter, self.memory)

    def _strategy(self, config: Config, meter: Meter, memory: MemoryPlan) -> Strategy:
        if config.sites.inside_denoiser:
            return InnerSites(config, self.sites, meter, memory, self.note)
        of_branches = any(site.kind is Kind.BRANCH for site in self.sites)
        return (BranchSite if of_branches else EvaluationSite)(config, meter, memory)

    def begin(self, inputs: Inputs) -> None:
        """The denoiser is about to run."""
        self.call = None  # whatever became of the one before: a forward that raised never ended it
        if torch.is_grad_enabled():
            self.reset()
            self.note("gradients were on, so everything was computed: run under torch.no_grad() to cache.", of_run=True)
            self.on_call(self)
            return
        started = time.perf_counter()
        reading = self.clock.read(inputs.timestep)
        if self.run is not None and self.run.latent.dtype != inputs.latent.dtype:
            inputs = inputs._replace(latent=self.run.as_begun(inputs.latent))
        continued = self._with_these_weights(self._continued(reading, inputs), inputs)
        run = continued or self._begun(reading, inputs)
        self.go_on(run, reading, inputs.latent)
        if run.step.index == 0:
            self.owner.claim()
        if run.samples == 0 and reading.part == 0 and watched_loop.holds_others(run, inputs.latent):
            self._take_apart(run, "calls of one step hold different latents, as tiles and windows do")
        self.call = self._opened(run, reading.part, inputs)
        if self.expected or continued is None:
            self.expected = False
            self.on_call(self)
        run.overhead += time.perf_counter() - started

    def _continued(self, reading: Reading, inputs: Inputs) -> Run | None:
        """The run this call belongs to; None if it begins a new one: other timesteps, another size, a step back or a
        leap, a branch that was called already.
        """
        run, latent = self.run, inputs.latent
        if run is None or run.complete or run.gone or reading.run is not run.key:
            return None
        ahead = reading.step.index - run.step.index
        came = ahead == 0 and run.guided.came(inputs.branch, reading.part)
        if ahead not in (0, 1) or (came and not watched_loop.tries_a_step(run, self.clock, latent)):
            return None
        if resized := watched_loop.is_resized(run, latent, ahead):
            self.note(resized, of_run=True)
            return None
        # Time may stand still between two loops of one step each; the branches of one step share their latent.
        if ahead == 0 and isinstance(self.clock, LoopClock) and not watched_loop.share_latent(run, latent):
            if run.step.index == 0:
                return None
            self._take_apart(run, "calls at one time hold different latents, as solvers do that try a step")
        return run

    def _take_apart(self, run: Run, why: str) -> None:
        run.apart = True
        self.note(f"{why}, so everything was computed.", of_run=True)

    def _with_these_weights(self, run: Run | None, inputs: Inputs) -> Run | None:
        if not inputs.other_weights:
            return run
        self.meter.forget()
        if run is not None:
            self.note(f"{inputs.other_weights} half-way: the cache began anew there.", of_run=True)
        return None

    def _begun(self, reading: Reading, inputs: Inputs) -> Run:
        self.config.controller.check(reading.step)
        if self.run and (reading.run is not self.run.key or (reading.run is None and reading.step.index == 0)):
            self.notes = {text: of_run for text, of_run in self.notes.items() if not of_run}
        if self.run is not None and self.run.at_last_step and self.run.guided.outputs:
            self._end_run(self.run)  # nobody said that it was over; the owner is that of the run that begins
        self.note(*watched_loop.broken_off(self.run, reading.run), of_run=True)
        self.strategy.forget()
        self.meter.begin_run()
        self.memory.begin_run()
        displaced = self.run.key if self.run and not (self.run.complete or self.run.at_last_step) else None
        if self.run:
            self.run.forget()
        before = reading.step.progress - reading.share
        states = [SiteState(site, self.config.rule_at(site, self.sites), site.inside_denoiser) for site in self.sites]
        step = reading.step.released(before)
        guided = Guided(watched=isinstance(self.clock, LoopClock))
        sums = self.sums_of(inputs.latent, reading.step)
        self.run = Run(reading.run, step, step.time, inputs.latent, before, states, guided, sums, displaced)
        if inputs.timestep is not None or not guided.watched:  # that there is none is noted where it is looked for
            self._note_unpriced()
        return self.run

    def _note_unpriced(self) -> None:
        if self.clock.reason:
            self.note(f"{self.clock.reason}, so no error can be priced.", of_run=True)

    def go_on(self, run: Run, reading: Reading, latent: Tensor) -> None:
        """To this step, where it is another than that of the call before; the one before is over then."""
        step = reading.step
        if step.index == run.step.index:
            return
        self._end_step(run, latent)
        if isinstance(self.clock, LoopClock) and run.samples:
            step = watched_loop.step_seen(self.config, run, self.clock, latent)
            self._note_unpriced()
        run.step, run.latent = step.released(run.before), latent
        run.time = step.sigma if step.half_log_snr is None else step.half_log_snr
        run.guided, run.strongest, run.anew = run.guided.next_step(len(step.weights)), None, False
        for state in run.states:
            state.judgement, state.sums, state.value = None, None, None
        self._tell(run, self.on_step)

    def _opened(self, run: Run, part: int, inputs: Inputs) -> Call:
        """`part` says which of the calls it is that the solver makes in this step."""
        rows = inputs.latent.shape[0]
        self.meter.begin_call(inputs.key, rows)
        branch = run.guided.branch(inputs.branch, part)
        if run.samples == 0:
            run.prints[branch] = inputs.conditions()
            run.controls = run.controls.union(controls_among(inputs.conditioning))
        marks, before = inputs.marks, run.marks.get(branch)
        if marks is None or before is None or marks.facts != before.facts:
            changed = run.conditions.changed(branch, inputs.conditioning)
            run.marks[branch] = inputs.marks if run.conditions.settled(branch) else None
            if changed and not run.apart and not run.anew:
                self.note(*begin_anew(self.config, run, branch, changed), of_run=True)
        everything = RowsToRun(rows, gathered=inputs.gathered)
        return Call(run, branch, inputs.latent, inputs.key, everything, first=not run.guided.outputs)

    def end(self, output: Tensor) -> Tensor:
        """The denoiser's output, (R, ...), with guesses in the rows that skipped."""
        call, started = self.call, time.perf_counter()
        if call is None:
            return output
        self.call = None
        result = self.strategy.end(call, output)
        call.run.overhead += time.perf_counter() - started
        return result

    def repeat(self) -> None:
        """The call is about to run again, computing what was rejected."""
        assert self.call is not None
        self.call.repeat()
        self.meter.again()

    def _end_step(self, run: Run, after: Tensor | None) -> None:
        """`after` is the next step's latent, if there is one."""
        remembered = remembered_bytes(run)
        run.bytes = max(run.bytes, remembered + (self.memory.fixed if remembered else 0))
        try:
            self.note(*end_step(self.config, run, after), of_run=True)
        except DicacheError as error:
            run.refuse(error)
            raise
        if self.memory.planned is None:
            self.memory.plan(run, self.meter.of_sites(self.sites))

    def finish(self) -> None:
        """The pipeline said that its run is over. Nobody may begin one until it is: they would end it as well."""
        run, self.call = self.run, None
        if run is None or not self._end_run(run, self.owner.free):
            self.owner.free()

    def _end_run(self, run: Run, free: Callable[[], object] = lambda: None) -> bool:
        if run.complete or run.gone:
            return False
        try:
            self._end_step(run, None)  # no latent comes after the last one
            run.complete = True
            run.forget()
        finally:
            free()  # before anybody is told, whatever was raised
        self._tell(run, self.on_step + self.on_over)
        return True

    def _tell(self, run: Run, listeners: list[Listener]) -> None:
        """Where one of them raises, the run is over."""
        try:
            tell(listeners)
        except BaseException:
            run.let_go()
            self.strategy.forget()
            self.owner.free()
            raise

    def reset(self) -> None:
        """Forget the run that is going on; the next call begins a new one. Raises BusyError as `check_idle`."""
        self.check_idle()
        if self.run:
            self.run.forget()
        self.run = self.call = None
        self.strategy.forget()
        self.owner.free()

    def check_idle(self) -> None:
        """Raises BusyError where another thread is in a call of the denoiser: what was skipped must still be filled."""
        if self.call is not None:
            self.owner.check("reset or disabled")

    def release(self) -> None:
        """Let go of the model and its pipeline; what was noted down stays."""
        tell([self._end_unsaid, self._let_go])

    def _end_unsaid(self) -> None:
        self.trace()  # ends a run that is over
        if isinstance(self.clock, LoopClock) and self.clock.ends_unseen and self.run and self.run.guided.outputs:
            self.finish()

    def _let_go(self) -> None:
        self.call, self.clock, self.owner = None, LoopClock(), Owner()  # the pipeline's refer to it
        self.strategy.forget()
        if self.run:
            self.run.let_go()

    def shares_its_run_with(self, other: "Session") -> bool:
        """Whether both took part in one run of the scheduler: two experts of a model do."""
        mine, its = self.run, other.run
        return mine is its or (mine is not None and its is not None and mine.key is its.key and mine.key is not None)

    def note(self, *texts: str, of_run: bool = False) -> None:
        """Something the report must say, of every run or of this one."""
        for text in texts:
            self.notes.setdefault(text, of_run)

    def trace(self, *, waits: bool = True) -> Trace | None:
        """The last run, or the one going on; None before the first. After a call of its last step it is over: many
        pipelines do not say that their run is. `waits`: until the device has told what it knows.
        """
        run = self.run
        if run is None:
            return None
        going_on = self.call is None and not run.gone and not run.complete and not self.owner.elsewhere
        if going_on and isinstance(self.clock, LoopClock) and self.clock.ends_unseen and run.guided.outputs:
            run = watched_loop.as_it_stands(self.config, run)
        elif going_on and run.at_last_step and run.guided.outputs:
            self.finish()
        if waits:
            run.look()
        return run.trace(self.meter, self.sites, tuple(self.meter.of_sites(self.sites)), self.memory.planned)
