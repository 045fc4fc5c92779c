"""The whole evaluation as one site: the denoiser's output is remembered and guessed.

block    the probe's blocks run for all rows; then, once per step, decide per sample; the others for computing rows
end      rows that skipped get the approximator's guess; exact rows enter the history, and say what the guesses of
         all approximators were wrong by
"""

import time
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from dicache.approximators.base import Histories, Target
from dicache.approximators.noise import noise_of, predicted
from dicache.approximators.pricing import Priced
from dicache.config import Config
from dicache.estimators.base import Evidence
from dicache.extension import combine
from dicache.ranks.branches import BranchOutputs
from dicache.runtime.decide import (
    approximators_to_fill,
    decide_site,
    rows_to_compute,
    rows_to_remember,
)
from dicache.runtime.evidence import Probing, evidence_of, foresee, guesses
from dicache.runtime.memory_plan import MemoryPlan
from dicache.runtime.module_call import ModuleCall
from dicache.runtime.run_state import Call, SiteState
from dicache.tensors import history
from dicache.tensors.mac_meter import Meter
from dicache.tensors.recall import Recall
from dicache.tensors.tree import Tree, shapes_of
from dicache.types import Rows

ALL = slice(None)
PricedEvidence = tuple[Evidence, Priced]
"""What is known of a site, and what skipping it costs."""
Deciding = Callable[[Call], Rows | None]
"""Which rows of a call compute, (R,) bool; None for all."""


class EvaluationSite:
    config: Config
    meter: Meter
    memory: MemoryPlan
    probing: Probing
    depth: int
    reads_noise: bool

    def __init__(self, config: Config, meter: Meter, memory: MemoryPlan) -> None:
        self.config, self.meter, self.memory, self.probing = config, meter, memory, Probing(config, meter)
        self.depth, self.reads_noise = config.probe.depth, any(a.reads_noise for a in config.approximators)
        self.shapes: dict[tuple[tuple[Hashable, ...], str], Tree] = {}
        """Of what each block gives, by the call's key and the block's path."""
        self.recall: Recall | None = None
        """What the same samples gave in runs before."""
        self.costs: dict[tuple[Hashable, ...], float] = {}
        """Of whole calls of this run, for one row, by their keys."""

    def forget(self) -> None:
        self.costs = {}
        self.shapes = {} if self.recall is None else self.recall.shapes

    def recalling(self, recall: Recall) -> None:
        """From now on what other runs of these samples computed is not computed again."""
        recall.begin_run()
        self.recall, self.shapes, self.meter.costs_by_key = recall, recall.shapes, recall.costs

    # One block.

    def block(self, call: Call, module_call: ModuleCall, deciding: Deciding | None = None) -> Tree:
        """Blocks come in the order of execution."""
        key = (call.key, module_call.path)
        if self.probing.looks:
            self.probing.before(call, module_call)
        # Where a block runs with inputs of these shapes for the first time, all rows run, and what it gives is noted.
        if call.position == self.depth and key in self.shapes:
            started = time.perf_counter()
            computed = (deciding or self.decide)(call)
            if computed is not None:
                call.rows_to_run = call.rows_to_run.of(computed, call.latent.device)
            call.run.overhead += time.perf_counter() - started
        if call.position == self.depth and self.recall is not None:
            of, rows = (call.run.step.index, call.branch), call.rows_to_run
            call.rows_to_run = rows.sparing(self.recall.recalled(of, call.latent, rows.computed), call.latent.device)
        call.position += 1
        output = self.run(call, module_call)
        if self.probing.looks:
            self.probing.after(call, output)
        return output

    def run(self, call: Call, module_call: ModuleCall) -> Tree:
        """One block, for the rows that compute."""
        key, rows_to_run = (call.key, module_call.path), call.rows_to_run.running or call.rows_to_run
        if rows_to_run.computed is None and key in self.shapes:
            # The common case, without a look at rows.
            self.meter.ran(module_call.path)
            return module_call.forward(*module_call.args, **module_call.kwargs)
        if self.recall is not None and call.rows_to_run.running and module_call.spares(rows_to_run, self.meter):
            self.recall.spare(self.meter.costs[module_call.path])
        output = module_call.run_for(rows_to_run, self.meter, self.shapes.get(key))
        if key not in self.shapes:
            self.shapes[key] = shapes_of(output)
        return output

    # Deciding.

    def leaves_out(self, call: Call) -> bool:
        """Whether no row of a call that has begun computes, so that the denoiser need not be entered: asked before."""
        ran = call.key in self.costs
        if not ran or self.depth or self.probing.looks or call.run.sums.shared or self.recall is not None:
            return False
        started = time.perf_counter()
        rows_to_run = call.rows_to_run.of(self.decide(call), call.latent.device)
        if rows_to_run.none:
            call.rows_to_run = rows_to_run
        call.run.overhead += time.perf_counter() - started
        return rows_to_run.none

    def left_out(self, call: Call, output: Tree) -> Tree:
        """In the place of the denoiser's own, `output`, which nobody reads."""
        self.meter.left_out(self.costs[call.key])
        return output

    def decide(
        self, call: Call, rows: slice = ALL, *, difference: bool = False, priced: PricedEvidence | None = None
    ) -> Rows | None:
        """Which rows compute, (R,) bool; None for all. The first call of a step decides, by its first samples from
        `rows` on; by what is `priced`, where that was asked for already.
        """
        run, state = call.run, call.run.states[0]
        if run.samples == 0 or run.apart:
            return None
        # What requests that step together are told at once is what each would be told here.
        if state.judgement is None and priced is not None:
            state.judgement, state.controller = decide_site(self.config, run, state, *priced)
        if state.judgement is None:
            histories = state.histories.get(call.branch)
            if histories is not None and rows != ALL:
                histories = _rows_of(histories, rows)
            target = target_of(call, rows, difference)
            evidence = evidence_of(self.config, run, self.meter, histories, target)
            # Where tokens lie on several ranks, all that is going to be read of them is added up in one exchange.
            foresee(self.config, state, evidence, histories, target)
            state.judgement, state.controller = decide_site(self.config, run, state, evidence)
        return rows_to_compute(self.config, run, state, call.branch)

    def coming(self, call: Call) -> Rows | None:
        """The same, of what was decided before the denoiser was called; asked before its blocks run."""
        run = call.run
        if all(key != call.key for key, _ in self.shapes):
            run.undecide()  # all rows run where its blocks get inputs of these shapes for the first time
        if run.samples == 0 or run.apart or run.states[0].judgement is None:
            return None
        return rows_to_compute(self.config, run, run.states[0], call.branch)

    # Filling in and remembering.

    def end(self, call: Call, output: Tensor, base: Tensor | None = None, fresh: Rows | None = None) -> Tensor:
        """The denoiser's output, (R, ...), with guesses in the rows that skipped. Where a `base`, (R, ...), is given,
        it is by how much the output differs from it that is guessed and remembered, but for rows that are always
        `fresh`, (R,) bool.
        """
        state, rows_to_run = call.run.states[0], call.rows_to_run
        if self.recall is not None:
            output = self.recall.complete(output)
        if call.key not in self.costs:
            self.costs[call.key] = self.meter.of_call
        exact = torch.ones(len(output), dtype=torch.bool) if rows_to_run.computed is None else rows_to_run.computed
        histories = state.histories.get(call.branch) or self.memory.nothing(state, len(output))
        # Exact rows ask all approximators: that is what the next predictions are learned from.
        indices = approximators_to_fill(state) if rows_to_run.none else range(len(self.config.approximators))
        difference = base is not None or fresh is not None
        guessed = guesses(self.config, self.meter, histories, target_of(call, ALL, difference), indices)
        if base is not None:
            guessed = {i: base + guess for i, guess in guessed.items()}
        result = output if rows_to_run.computed is None else self._filled(state, guessed, output, exact)
        self._tell(call, result, output, {} if rows_to_run.none else guessed)
        if not rows_to_run.none:
            value = output if base is None else output - base
            self._remember(call, histories, value, exact if fresh is None else exact & ~fresh)
        return result

    def _tell(self, call: Call, result: Tensor, output: Tensor, guessed: dict[int, Tensor]) -> None:
        """What the mixture is made of: of this branch, and of those that other ranks called at the same time."""
        run, computed, apart = call.run, not call.rows_to_run.none, call.run.sums.apart
        own = {i: predicted(guess, call.latent) for i, guess in guessed.items()}
        handed = [BranchOutputs(call.branch, predicted(result, call.latent), predicted(output, call.latent), own)]
        if apart is not None and run.samples == 0:
            for rank, (prints, controls) in enumerate(apart.all_prints(run.prints[call.branch], run.controls)):
                run.prints[apart.name(rank)], run.controls = prints, run.controls | controls
        if apart is not None:
            contents = run.guided.mixture is None or run.guided.watched
            handed = apart.all_of(handed[0], computed=computed, contents=contents)
        for each in handed:
            if computed:
                run.guided.add(each.branch, each.output, dict(each.guesses))
            run.guided.handed(each.branch, each.result)

    def _filled(self, state: SiteState, guessed: dict[int, Tensor], output: Tensor, exact: Rows) -> Tensor:
        """`output` where computed, else the guess that was decided on."""
        assert state.judgement is not None
        if len(guessed) == 1 and not bool(exact.any()):
            return next(iter(guessed.values()))
        best = state.judgement.best.repeat(len(output) // len(state.judgement.best))
        columns = torch.stack([exact, *(~exact & (best == i) for i in guessed)], dim=1)
        return combine((output, *guessed.values()), columns.float())

    def _remember(self, call: Call, histories: Histories, value: Tensor, exact: Rows) -> None:
        run, state = call.run, call.run.states[0]
        step, features, noises = run.step, histories.features, histories.noises
        exact = rows_to_remember(run, state, exact)
        noise = noise_of(call.latent, value, step.noise) if self.reads_noise else None
        if self.memory.planned is None:
            self.memory.saw(state, call.branch, value, call.feature, noise)
        outputs = history.push(histories.outputs, value, step.sigma, exact, run.time)
        if call.feature is not None:
            features = history.push(features, call.feature, step.sigma, exact, run.time)
        if noise is not None:
            noises = history.push(noises, noise, step.sigma, exact, run.time)
        state.histories[call.branch] = Histories(outputs, features, noises)


def target_of(call: Call, rows: slice = ALL, difference: bool = False) -> Target:
    """What its guesses are for."""
    feature, step = call.feature, call.run.step
    feature = feature if feature is None or rows == ALL else feature[rows]
    latent, sums = call.latent[rows], call.run.sums
    return Target(
        step.sigma, feature, latent, step.noise, step.timetable, call.run.time, difference=difference, sums=sums
    )


def _rows_of(histories: Histories, rows: slice) -> Histories:
    return Histories(
        *(
            history.History(h.sigmas[:, rows], tuple(value[rows] for value in h.values), h.times[:, rows])
            for h in histories
        )
    )
