"""One denoising step, top to bottom. A session belongs to one denoiser and one `enable`; everything it remembers of a
trajectory is in `Run`.

    begin    which run, step and branch is this? the step before is closed: what its guesses were wrong by is read off
    block    the probe's blocks run for all rows; then, once per step, decide per sample; the others for computing rows
    end      rows that skipped get the approximator's guess; exact rows enter the history

The rows of one call are samples, or, where the pipeline puts its guidance branches into one batch, `chunks` times as
many: row c * B + b is chunk c of sample b. Branches in calls of their own are told apart by the name the pipeline gives
them, else by their place within the step. All branches of a sample are decided together, at the step's first call. A
run's first step computes: only the second shows which rows are branches of one sample.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from dicache import history
from dicache.approximators.base import Past
from dicache.approximators.noise import noise_of
from dicache.clock import Reading
from dicache.config import Config
from dicache.estimators.base import Evidence
from dicache.evidence import gather, known, nothing, now_of
from dicache.guided import Guided, chunks_of
from dicache.law import remaining
from dicache.macs import Meter
from dicache.probes.base import View
from dicache.rows import Tree, scatter, shapes_of, stand_in, take, tensors
from dicache.run import Call, Judgement, Run
from dicache.trace import Record, Trace
from dicache.types import Grid, Quote, Rows, Step


class Clock(Protocol):
    def read(self, timestep: Tensor | float | None) -> Reading: ...


class Session:
    def __init__(self, config: Config, clock: Clock) -> None:
        self.config, self.clock, self.meter = config, clock, Meter()
        self.run: Run | None = None
        self.call: Call | None = None
        self.shapes: dict[tuple[tuple[torch.Size, ...], str], Tree] = {}
        self.notes: list[str] = []

    # The life of a run.

    def reset(self) -> None:
        """Forget the run that is going on; the next call begins a new one."""
        self.run = self.call = None
        self.shapes = {}

    def release(self) -> None:
        """Let go of the model's tensors; what was noted down stays."""
        self.trace()  # closes a run that is over
        self.call, self.shapes = None, {}
        if self.run:
            self.run.past, self.run.guided = {}, Guided()
        if self.run and self.run.complete:
            self.run.judgement = self.run.estimator = None

    def finish(self) -> None:
        """The pipeline said that its run is over."""
        if self.run and not self.run.complete:
            self._close(self.run, None)
            self.run.complete = True
        self.call = None

    def begin(
        self, latent: Tensor, timestep: Tensor | float | None, name: str | None, shapes: tuple[torch.Size, ...]
    ) -> None:
        """The denoiser is about to run on `latent`, (R, ...); `name` is the branch's name where the pipeline gives one,
        `shapes` those of all its inputs.
        """
        self.call = None
        if torch.is_grad_enabled():
            self.reset()
            self.note("gradients were on, so everything was computed: run under torch.no_grad() to cache.")
            return
        started = time.perf_counter()
        reading = self.clock.read(timestep)
        run = self._continued(reading, latent, name) or self._begun(reading, latent)
        if reading.step.index != run.step.index:
            self._close(run, latent)
            run.go_on(self._released(reading.step, run.before), latent)
        self.meter.begin_call(shapes)
        self.call = Call(name or f"call {len(run.guided.outputs)}", latent.shape[0], shapes, latent.device)
        run.overhead += time.perf_counter() - started

    def _continued(self, reading: Reading, latent: Tensor, name: str | None) -> Run | None:
        """The run this call belongs to; None if it begins a new one: other timesteps, another size, a step back or a
        leap, a branch that was called already.
        """
        run = self.run
        if run is None or run.complete or reading.run is not run.key:
            return None
        ahead = reading.step.index - run.step.index
        if ahead not in (0, 1) or (ahead == 0 and name in run.guided.outputs):
            return None
        if (run.latent.shape, run.latent.dtype, run.latent.device) != (latent.shape, latent.dtype, latent.device):
            self.note(
                f"the batch changed from {tuple(run.latent.shape)} to {tuple(latent.shape)} half-way: "
                "the cache began anew there."
            )
            return None
        if ahead == 0 and reading.run is None and not torch.equal(latent, run.latent):
            return None
        return run

    def _begun(self, reading: Reading, latent: Tensor) -> Run:
        self.shapes = {}
        self.meter.begin_run(latent.shape[0])
        before = reading.step.progress - reading.share
        self.run = Run(reading.run, self._released(reading.step, before), latent, before)
        return self.run

    def _released(self, step: Step, before: float) -> Step:
        return step._replace(progress=step.progress - before)

    # One call.

    def block(
        self, part: str, forward: Callable[..., Tree], args: tuple[Tree, ...], kwargs: Mapping[str, Tree]
    ) -> Tree:
        """One block; the order is that of execution."""
        call, run = self.call, self.run
        if call is None or run is None:
            return forward(*args, **kwargs)
        position, call.position = call.position, call.position + 1
        depth = self.config.probe.depth
        if position == 0:
            call.view = _view(run, forward, args, kwargs)
        if position == depth:
            if depth == 0:
                self._look(call, None)
            call.decide(self._decide(run, call) if (call.key, part) in self.shapes else None)
        cost = self.meter.measure(part, forward, args, kwargs, call.rows)
        if call.some is None and call.computed is not None:
            self.meter.skipped += cost
            return stand_in(self.shapes[call.key, part], args, kwargs)
        if call.some is not None and _batched(args, kwargs, call.rows):
            self.meter.chosen += cost
            some_args, some_kwargs = take(args, kwargs, call.some, call.rows)
            return scatter(forward(*some_args, **some_kwargs), call.some, call.rows)
        self.meter.everywhere += cost
        output = forward(*args, **kwargs)
        if (call.key, part) not in self.shapes:
            self.shapes[call.key, part] = shapes_of(output)
        if position == depth - 1:
            self._look(call, _stream(output))
        return output

    def _look(self, call: Call, after: Tensor | None) -> None:
        """Let the probe measure, after `depth` blocks. What it computes itself is counted."""
        assert call.view is not None
        view = call.view if after is None else call.view._replace(after=after)
        self.meter.probing += self.meter.measure("the probe", self.config.probe, (view,), {}, call.rows)
        call.feature, call.view = self.config.probe(view), None

    def around(
        self, part: str, forward: Callable[..., Tree], args: tuple[Tree, ...], kwargs: Mapping[str, Tree]
    ) -> Tree:
        """A module around the blocks: always runs, and is counted."""
        if self.call is not None:
            self.meter.everywhere += self.meter.measure(part, forward, args, kwargs, self.call.rows)
        return forward(*args, **kwargs)

    def end(self, output: Tensor) -> Tensor:
        """The denoiser's output, (R, ...), with guesses in the rows that skipped."""
        call, run = self.call, self.run
        if call is None or run is None:
            return output
        started = time.perf_counter()
        self.call = None
        self.meter.end_call(call.computed)
        computed = torch.ones(call.rows, dtype=torch.bool) if call.computed is None else call.computed
        past = run.past.get(call.branch) or _nothing(self.config.depth, call.rows)
        now = now_of(run, call)
        forms = self.config.approximators
        learning = call.computed is None or call.some is not None
        wanted = range(len(forms)) if learning else self._used(run)
        guesses = {i: forms[i].guess(past, now) for i in wanted if len(past.outputs.values) >= forms[i].needs}
        result = output if call.computed is None else self._filled(run, guesses, output, computed)
        if learning:
            run.guided.add(call.branch, output, guesses)
            self._remember(run, call, past, output, computed)
        run.guided.handed(call.branch, result)
        run.overhead += time.perf_counter() - started
        return result

    def _used(self, run: Run) -> list[int]:
        return [] if run.judgement is None else sorted(set(run.judgement.best.tolist()))

    def _filled(self, run: Run, guesses: dict[int, Tensor], output: Tensor, computed: Rows) -> Tensor:
        """`output` where computed, else the guess that was decided on."""
        assert run.judgement is not None
        best, result = run.judgement.best.repeat(run.guided.chunks), output.clone()
        for i, guess in guesses.items():
            rows = (~computed & (best == i)).nonzero().flatten().to(output.device)
            result.index_copy_(0, rows, guess[rows])
        return result

    def _remember(self, run: Run, call: Call, past: Past, output: Tensor, computed: Rows) -> None:
        outputs = history.push(past.outputs, output, run.step.sigma, computed)
        features = (
            past.features
            if call.feature is None
            else history.push(past.features, call.feature, run.step.sigma, computed)
        )
        noises = past.noises
        if any(a.reads_noise for a in self.config.approximators):
            noise = noise_of(run.latent, output, run.step.noise)
            noises = history.push(noises, noise, run.step.sigma, computed)
        run.past[call.branch] = Past(outputs, features, noises)
        kept = [held.nbytes for past in run.past.values() for held in past]
        run.bytes = max(run.bytes, sum(kept) + sum(t.nbytes for t in tensors(run.estimator)))

    # Deciding and learning.

    def _decide(self, run: Run, call: Call) -> Rows | None:
        """Which rows compute, (R,) bool; None for all. A branch with too short a past computes whatever was decided."""
        if run.samples == 0:
            return None
        started = time.perf_counter()
        if run.judgement is None:
            run.judgement = self._judge(run, gather(self.config, run, call))
        run.overhead += time.perf_counter() - started
        if call.branch not in run.past:
            return None
        needs = torch.tensor([a.needs for a in self.config.approximators])[run.judgement.best].repeat(run.guided.chunks)
        return run.judgement.computed.repeat(run.guided.chunks) | ~known(run.past[call.branch], needs)

    def _judge(self, run: Run, evidence: Evidence) -> Judgement:
        predicted = self.config.estimator.predict(evidence, run.estimator)
        error, best = predicted.min(1)
        scale = torch.full_like(error, torch.nan) if run.scale is None else run.scale
        guidance = torch.ones_like(error) if run.guided.strength is None else run.guided.strength
        cost = (error * run.step.coefficient * scale * remaining(guidance)).nan_to_num(torch.inf, torch.inf)
        actions = torch.tensor([int(a.action) for a in self.config.approximators])
        quote = Quote(error, cost, actions[best])
        decision, run.controller = self.config.controller.decide(quote, run.step, run.controller)
        return Judgement(evidence, predicted, decision)

    def _close(self, run: Run, after: Tensor | None) -> None:
        """The step is over: learn from what was computed, and note down what happened.

        `after` is the next step's latent, if there is one.
        """
        if run.samples == 0:
            run.guided.chunks = chunks_of(
                [run.latent] if after is None else [run.latent, after], list(run.guided.outputs.values())
            )
            run.samples = run.latent.shape[0] // run.guided.chunks
            run.controller = self.config.controller.init(run.samples)
            self._forget(run)
        if run.judgement is None:
            run.judgement = self._judge(run, nothing(self.config, run))
        judged, computed = run.judgement, run.judgement.computed
        realised, evidence = torch.full_like(judged.predicted, torch.nan), judged.evidence
        if run.guided.complete:
            realised, scale = run.guided.measure(run.latent[: run.samples], run.step.clean, realised.shape[1])
            run.scale = scale if run.scale is None else torch.where(computed, scale, run.scale)
            evidence = evidence._replace(output=run.guided.truth)
            ratio = (realised / judged.predicted).gather(1, judged.best[:, None])[:, 0]
            run.controller = self.config.controller.settle(ratio, computed, run.controller)
        run.estimator = self.config.estimator.observe(realised, evidence, computed, run.estimator)
        run.records.append(_record(run, judged, realised))
        if run.guided.changed:
            self._forget(run)
        elif run.guided.mixture is None and after is not None:
            run.guided = run.guided.fitted(run.latent, after)

    def _forget(self, run: Run) -> None:
        """The branches are not those that were learned about: nothing is known of the errors of their mixture."""
        run.guided.mixture, run.scale = None, None
        run.estimator = self.config.estimator.init(run.samples, len(self.config.approximators))

    def note(self, text: str) -> None:
        """Something the report must say."""
        if text not in self.notes:
            self.notes.append(text)

    def trace(self) -> Trace | None:
        """The last run, or the one going on; None before the first.

        Many pipelines do not say that their run is over: after the last step's call it is.
        """
        run = self.run
        if run is None:
            return None
        if self.call is None and run.step.index == run.step.total - 1:
            self.finish()
        samples = run.samples or len(self.meter.executed)
        executed, uncached = (macs.view(-1, samples).sum(0) for macs in (self.meter.executed, self.meter.uncached))
        return Trace(tuple(run.records), executed, uncached, run.bytes, run.overhead, run.complete)


def _record(run: Run, judged: Judgement, realised: Grid) -> Record:
    real = realised.gather(1, judged.best[:, None])[:, 0]
    return Record(
        index=run.step.index,
        sigma=run.step.sigma,
        branches=tuple(run.guided.outputs),
        action=judged.decision.action,
        reason=judged.decision.reason,
        predicted=judged.predicted.min(1).values,
        realised=torch.where(judged.computed, real, torch.nan),
        spent=judged.decision.spent,
    )


def _view(run: Run, forward: Callable[..., Tree], args: tuple[Tree, ...], kwargs: Mapping[str, Tree]) -> View:
    """What the first block is called with."""
    block, stream = getattr(forward, "__self__", None), _stream((args, kwargs))
    assert isinstance(block, nn.Module)
    return View(run.latent, stream, stream, block, args, kwargs, run.step)


def _nothing(depth: int, rows: int) -> Past:
    return Past(*(history.empty(depth, rows) for _ in Past._fields))


def _stream(tree: Tree) -> Tensor:
    """The picture's stream among a block's tensors: the largest."""
    return max(tensors(tree), key=Tensor.numel)


def _batched(args: tuple[Tree, ...], kwargs: Mapping[str, Tree], rows: int) -> bool:
    """Whether a block's main input has the rows on its first axis.

    Where a model folds frames into the batch, its blocks run for all rows or none.
    """
    return _stream((args, kwargs)).shape[0] == rows
