"""One denoising step, top to bottom. A session belongs to one denoiser and one `enable`; everything it remembers of a
trajectory is in `Run`.

    begin    which run, step and branch is this? the step before is closed: what its guesses were wrong by is read off
    block    the probe's blocks run for all rows; then, once per step, decide per sample; the others for computing rows
    end      rows that skipped get the approximator's guess; exact rows enter the history

This is the way of a whole evaluation (`dicache.runtime.evaluation_site`); sites inside the denoiser are decided, filled
and remembered where they run (`dicache.runtime.inner_sites`), and the evaluation's output is then what it gives.

The rows of one call are samples, or, where the pipeline puts its guidance branches into one batch, a multiple of them:
row c * B + b is chunk c of sample b. Calls of one step may hold different numbers of chunks. Branches in calls of their
own are told apart by the name the pipeline gives them, else by their place within the step. All branches of a sample
are decided together, at the step's first call. A run's first step computes: only the second shows which rows are
branches of one sample.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dicache.config import Config
from dicache.controllers.base import Controller
from dicache.controllers.interval import Interval
from dicache.errors import DicacheError
from dicache.models.conditioning import Prints
from dicache.probes.base import View
from dicache.runtime.end_of_step import end_step
from dicache.runtime.evaluation_site import EvaluationSite
from dicache.runtime.inner_sites import InnerSites
from dicache.runtime.memory_plan import Memory
from dicache.runtime.module_call import ModuleCall, RowsToRun, stream
from dicache.runtime.run_state import Call, Run, SiteState
from dicache.runtime.trace import Trace
from dicache.solvers.clock import TimestepClock
from dicache.solvers.timeline import Reading
from dicache.tensors.mac_meter import Meter
from dicache.tensors.tree import Tree, shapes_of, tensors
from dicache.types import Kind, Site, Step


class Clock(Protocol):
    def read(self, timestep: Tensor | float | None) -> Reading: ...


class Session:
    def __init__(self, config: Config, clock: Clock, sites: tuple[Site, ...]) -> None:
        self.config, self.clock, self.sites, self.meter = config, clock, sites, Meter()
        self.run: Run | None = None
        self.call: Call | None = None
        self.shapes: dict[tuple[tuple[Hashable, ...], str], Tree] = {}
        self.notes: list[str] = []
        self.memory = Memory(config, self.note)
        self.inner = (
            InnerSites(config, sites, self.meter, self.memory, self.note) if config.sites.inside_denoiser else None
        )
        self.whole = EvaluationSite(config, self.meter, self.memory, self.note)

    # The life of a run.

    def reset(self) -> None:
        """Forget the run that is going on; the next call begins a new one."""
        if self.run:
            self.run.forget()
        self.run = self.call = None
        self._forget_shapes()

    def _forget_shapes(self) -> None:
        self.shapes = {}
        if self.inner:
            self.inner.forget()

    def release(self) -> None:
        """Let go of the model and its pipeline; what was noted down stays."""
        self.trace()  # closes a run that is over
        self.call, self.clock = None, TimestepClock()  # the pipeline's clock holds it
        self._forget_shapes()
        if self.run:
            self.run.let_go()

    def finish(self) -> None:
        """The pipeline said that its run is over."""
        if self.run and not self.run.complete and not self.run.gone:
            self._close(self.run, None)
            self.run.complete = True
            self.run.forget()
        self.call = None

    def begin(
        self,
        latent: Tensor,
        timestep: Tensor | float | None,
        name: str | None,
        key: tuple[Hashable, ...],
        *,
        gathered: bool,
        other_weights: bool = False,
        conditions: Callable[[], Prints] = dict,
    ) -> None:
        """The denoiser is about to run on `latent`, (R, ...); `name` is the branch's name where the pipeline gives one.
        Calls of one `key` have inputs of the same shapes and run the same parts. Parts may run for some of the rows
        where those can be `gathered`. `other_weights`: what is remembered is of another model, and costs may be others.
        `conditions` tells the fingerprint of what else it is called with; it is asked for in the first step.
        """
        self.call = None
        if torch.is_grad_enabled():
            self.reset()
            self.note("gradients were on, so everything was computed: run under torch.no_grad() to cache.")
            return
        started = time.perf_counter()
        reading = self.clock.read(timestep)
        run = self._continued(reading, latent, name)
        if other_weights:
            self.meter.forget()
            if run is not None:
                self.note("the LoRA was changed half-way: the cache began anew there.")
                run = None
        run = run or self._begun(reading, latent)
        if reading.step.index != run.step.index:
            self._close(run, latent)
            run.go_on(self._released(reading.step, run.before), latent)
        self.meter.begin_call(key, latent.shape[0])
        branch = run.guided.branch(name, reading.part)
        if run.samples == 0:
            run.prints[branch] = conditions()
        whole = RowsToRun(latent.shape[0], gathered=gathered)
        self.call = Call(branch, latent, key, whole, first=not run.guided.outputs)
        run.overhead += time.perf_counter() - started

    def _continued(self, reading: Reading, latent: Tensor, name: str | None) -> Run | None:
        """The run this call belongs to; None if it begins a new one: other timesteps, another size, a step back or a
        leap, a branch that was called already.
        """
        run = self.run
        if run is None or run.complete or reading.run is not run.key:
            return None
        ahead = reading.step.index - run.step.index
        if ahead not in (0, 1) or (ahead == 0 and name is not None and run.guided.came(name, reading.part)):
            return None
        then = run.latent if ahead else run.latent[: len(latent)]  # calls of one step may differ in their rows
        now = latent if ahead else latent[: len(run.latent)]
        if (then.shape, then.dtype, then.device) != (now.shape, now.dtype, now.device):
            self.note(
                f"the batch changed from {tuple(run.latent.shape)} to {tuple(latent.shape)} half-way: "
                "the cache began anew there."
            )
            return None
        if ahead == 0 and reading.run is None and not torch.equal(now, then):
            return None
        return run

    def _begun(self, reading: Reading, latent: Tensor) -> Run:
        self.config.controller.check(reading.step)
        self._forget_shapes()
        self.meter.begin_run()
        self.memory.begin_run()
        if self.run:
            self.run.forget()
        before = reading.step.progress - reading.share
        states = [SiteState(site, self._rule(site)) for site in self.sites]
        self.run = Run(reading.run, self._released(reading.step, before), latent, before, states)
        return self.run

    def _rule(self, site: Site) -> Controller[Any]:
        if site.kind is Kind.CHECK:
            return Interval(1)
        return self.config.controller.at(site, sum(s.kind is not Kind.CHECK for s in self.sites))

    def _released(self, step: Step, before: float) -> Step:
        return step._replace(progress=step.progress - before)

    # One call.

    def block(
        self,
        path: str,
        module: nn.Module,
        forward: Callable[..., Tree],
        args: tuple[Tree, ...],
        kwargs: Mapping[str, Tree],
    ) -> Tree:
        """One block, or one sublayer that is a site; the order is that of execution."""
        call, run, module_call = self.call, self.run, ModuleCall(path, module, forward, args, kwargs)
        if call is None or run is None:
            return module_call.run()
        started, depth = call.position == 0, self.config.probe.depth
        if started:
            call.view = _view(run, call, module_call)
            if depth == 0:
                self._look(run, call, None)
        if self.inner is not None and path in self.inner.of:
            call.position += self.inner.of[path].kind in (Kind.SPAN, Kind.CHECK)
            return self.inner.run(run, call, module_call)
        if self.inner is None and call.position == depth:
            known = (call.key, path) in self.shapes
            with run.timed():
                call.rows_to_run = call.rows_to_run.of(self.whole.decide(run, call) if known else None, call.device)
        call.position += 1
        output = module_call.run_for(call.rows_to_run, self.meter, self.shapes.get((call.key, path)))
        if self.inner is None and (call.key, path) not in self.shapes:
            self.shapes[call.key, path] = shapes_of(output)
        if call.position == depth:
            self._look(run, call, stream(output))
        return output

    def _look(self, run: Run, call: Call, after: Tensor | None) -> None:
        """Let the probe measure, after `depth` blocks. What it computes itself is counted."""
        assert call.view is not None
        view, probe = call.view if after is None else call.view._replace(after=after), self.config.probe
        call.view = None
        if probe.local:
            return
        with run.timed():
            call.feature = self.meter.added("the probe", lambda: probe(view))

    def around(
        self,
        path: str,
        module: nn.Module,
        forward: Callable[..., Tree],
        args: tuple[Tree, ...],
        kwargs: Mapping[str, Tree],
    ) -> Tree:
        """A module around the blocks: always runs, and is counted."""
        module_call = ModuleCall(path, module, forward, args, kwargs)
        if self.call is None:
            return module_call.run()
        sized = (path, *(t.shape for t in tensors((args, kwargs))))  # one module may serve streams of several sizes
        output = self.meter.counted(sized, module_call.run)
        self.meter.ran(sized)
        return output

    def end(self, output: Tensor) -> Tensor:
        """The denoiser's output, (R, ...), with guesses in the rows that skipped."""
        call, run = self.call, self.run
        if call is None or run is None:
            return output
        self.call = None
        with run.timed():
            result = self.whole.end(run, call, output) if self.inner is None else self.whole.passed(run, call, output)
            held = run.held
            run.bytes = max(run.bytes, held + (self.memory.fixed if held else 0))
        return result

    def repeat(self) -> None:
        """The call is about to run again, computing what was rejected."""
        assert self.call is not None
        self.call.repeat()
        self.meter.again()

    @property
    def rejected(self) -> bool:
        """Whether the call that just ran drafted something that failed, and has not run again."""
        return self.call is not None and self.call.rejected is not None and not self.call.again

    # Learning.

    def _close(self, run: Run, after: Tensor | None) -> None:
        try:
            end_step(self.config, run, after)
        except DicacheError:  # nothing more is learned of this run, also when the model is let go
            run.let_go()
            raise
        if self.memory.planned is None:
            self.memory.plan(run, self.site_macs())

    def site_macs(self) -> list[float]:
        return [sum(self.meter.costs.get(module_call, 0.0) for module_call in site.modules) for site in self.sites]

    def shares_its_run_with(self, other: "Session") -> bool:
        """Whether both took part in one run of the scheduler: two experts of a model do."""
        mine, its = self.run, other.run
        return mine is its or (mine is not None and its is not None and mine.key is its.key and mine.key is not None)

    def note(self, text: str) -> None:
        """Something the report must say."""
        if text not in self.notes:
            self.notes.append(text)

    def trace(self) -> Trace | None:
        """The last run, or the one going on; None before the first. After a call of its last step it is over."""
        run = self.run
        if run is None:
            return None
        if self.call is None and not run.gone and run.at_end:
            self.finish()
        samples = run.samples or len(self.meter.executed)
        executed, uncached = (macs.view(-1, samples).sum(0) for macs in (self.meter.executed, self.meter.uncached))
        told = (tuple(run.records), executed, uncached, run.bytes, run.overhead, run.complete)
        return Trace(*told, self.sites, tuple(self.site_macs()), self.memory.planned)


def _view(run: Run, call: Call, module_call: ModuleCall) -> View:
    """What the first block is called with."""
    before = stream((module_call.args, module_call.kwargs))
    return View(call.latent, before, before, module_call.module, module_call.args, module_call.kwargs, run.step)
