"""Sites inside the denoiser: spans of blocks and sublayers, one call at a time.

    open     the site's first module is called: what goes in is noted, the site is decided once per step
    run      its modules run for the rows that compute
    close    rows that skip get input + guess; exact rows say what the guesses were wrong by and enter the history

The sites' histories are per branch, their decisions per sample: the branch that is called first decides for all. The
evaluation's output is what the denoiser then gives.
"""

import time
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from dicache.approximators.base import Histories
from dicache.config import Config
from dicache.errors import UnsupportedModelError
from dicache.estimators.base import Evidence
from dicache.extension import combine, residual_sums
from dicache.probes.base import View
from dicache.runtime.decide import (
    approximators_to_fill,
    decide_all,
    decide_rejected,
    decide_together,
    rows_at_sites,
    rows_to_remember,
)
from dicache.runtime.evidence import Probing, evidence_of, feature_of, guesses, target_at
from dicache.runtime.memory_plan import MemoryPlan
from dicache.runtime.module_call import ModuleCall, RowsToRun
from dicache.runtime.run_state import Call, OpenSite, Run, SiteState
from dicache.sites import Drafted
from dicache.tensors import history
from dicache.tensors.block_output import OutputLayout, entering, layout_of, output_of, value_of
from dicache.tensors.mac_meter import Meter
from dicache.tensors.tree import Tree, shapes_of, tensors
from dicache.tensors.written import Unwritten
from dicache.types import Kind, Rows, Site

Key = tuple[tuple[Hashable, ...], str]
"""A call's key and a path."""


class InnerSites:
    config: Config
    meter: Meter
    memory: MemoryPlan
    note: Callable[[str], None]

    def __init__(
        self, config: Config, sites: tuple[Site, ...], meter: Meter, memory: MemoryPlan, note: Callable[[str], None]
    ) -> None:
        self.config, self.meter, self.memory, self.note = config, meter, memory, note
        self.site_of: dict[str, Site] = {path: site for site in sites for path in site.modules}
        self.probing: Probing = Probing(config, meter)
        self.looks: bool = config.probe.local or self.probing.looks
        """Whether sites are decided by what is seen on the way to them."""
        self.drafts: bool = any(site.kind is Kind.CHECK for site in sites)
        self.forget()

    def forget(self) -> None:
        self.shapes: dict[Key, Tree] = {}
        """Of what each module gives."""
        self.layouts: dict[Key, OutputLayout | None] = {}
        """Of what each site gives; None where it cannot be taken apart into rows."""

    # One module.

    def block(self, call: Call, module_call: ModuleCall) -> Tree:
        """One block, or one sublayer that is a site; the order is that of execution."""
        site = self.site_of.get(module_call.path)
        if self.probing.looks:
            self.probing.before(call, module_call)
        if site is not None:
            call.position += not call.inside_block
            return self._module(call, site, module_call)
        call.position += 1
        call.inside_block = True
        output = module_call.run_for(call.rows_to_run, self.meter, None)
        call.inside_block = False
        if self.probing.looks:
            self.probing.after(call, output)
        return output

    def end(self, call: Call, output: Tensor) -> Tensor:
        """The denoiser's output, (R, ...), in which the sites' guesses are."""
        return call.run.guided.passed(call.branch, output, call.latent)

    def _module(self, call: Call, site: Site, module_call: ModuleCall) -> Tree:
        """One module of a site."""
        run, path, started = call.run, module_call.path, time.perf_counter()
        state = run.states[site.index]
        if path == site.modules[0]:
            call.open_site = self._opened(call, state, module_call)
            run.overhead += time.perf_counter() - started
        open_site = call.open_site
        if open_site is None or open_site.site != site:
            raise UnsupportedModelError(
                f"{path} ran outside its site {site.path}: this denoiser does not run its blocks in the order it "
                "lists them. Use sites=Spans(1) or Evaluation()."
            )
        # What lies in a block costs a part of it, which was booked when the block was called.
        key, inside = (call.key, path), call.inside_block
        # Of a site that no row computes its last module gives what is filled in, and needs no stand-in.
        filled = open_site.rows_to_run.none and path == site.modules[-1]
        shapes = None if filled else self.shapes.get(key)
        output = module_call.run_for(open_site.rows_to_run, self.meter, shapes, inside=inside)
        if key not in self.shapes:
            self.shapes[key] = shapes_of(output)
        if path != site.modules[-1]:
            return output
        call.open_site, started = None, time.perf_counter()
        output = self._closed(call, state, open_site, output)
        run.overhead += time.perf_counter() - started
        return output

    # Opening.

    def _opened(self, call: Call, state: SiteState, module_call: ModuleCall) -> OpenSite:
        inputs, key = tensors((module_call.args, module_call.kwargs)), (call.key, state.site.path)
        layout, new = self.layouts.get(key), key not in self.layouts
        # Whether the site writes to its inputs tells how its outputs lie, and whether they can be looked at later.
        unwritten = Unwritten(inputs, copied=new) if self.looks or new else None
        open_site = OpenSite(state.site, inputs, unwritten, module_call, call.rows_to_run)
        if layout is None:
            return open_site
        open_site.feature = self._feature(call, open_site, layout)
        if state.site.kind is not Kind.CHECK:
            if state.site.index not in call.sites:
                self._decide(call, state, open_site.feature)
            open_site.rows_to_run = call.sites[state.site.index]
        return open_site

    def _feature(self, call: Call, open_site: OpenSite, layout: OutputLayout) -> Tensor | None:
        """What the probe sees of this site: its own input, or what all sites share."""
        probe = self.config.probe
        if not probe.local:
            return call.feature
        first, stream = open_site.module_call, entering(layout, open_site.inputs)
        view = View(call.latent, stream, stream, first.module, first.args, first.kwargs, call.run.step)
        return self.meter.added(("the probe", first.path), lambda: feature_of(probe, view))

    def _decide(self, call: Call, state: SiteState, feature: Tensor | None) -> None:
        """Which rows of this site compute, and of those that open later in this call where they can be decided now.
        Rows whose draft failed compute everywhere.
        """
        run, states = call.run, self._decided_now(call, state)
        undecided = [each for each in states if each.judgement is None] if run.samples and not run.apart else []
        if undecided and self.config.together:
            evidences = [self._evidence(call, each) for each in run.states]
            judgements, run.states[0].controller = decide_together(self.config, run, evidences)
            for each, judgement in zip(run.states, judgements, strict=True):
                each.judgement = judgement
        elif undecided:
            decided = decide_all(self.config, run, self.meter, call.branch, undecided, feature)
            for each, (judgement, controller) in zip(undecided, decided, strict=True):
                each.judgement, each.controller = judgement, controller
        self._note_rows(call, states)

    def _decided_now(self, call: Call, state: SiteState) -> list[SiteState]:
        """The site that opens, and all that will, where nothing is seen on the way that they are decided by. Calls of
        one key run the same parts.
        """
        if self.looks:
            return [state]
        sites = (each for each in call.run.states if each.site.kind is not Kind.CHECK)
        return [each for each in sites if self.layouts.get((call.key, each.site.path)) is not None]

    def _note_rows(self, call: Call, states: list[SiteState]) -> None:
        run, same = call.run, dict[tuple[bool, ...], RowsToRun]()
        rows = [None] * len(states) if run.apart else rows_at_sites(self.config, run, states, call.branch)
        for state, computed in zip(states, rows, strict=True):
            if computed is not None and call.rejected is not None:
                computed = computed | call.rejected
            pattern = () if computed is None else tuple(computed.tolist())
            if pattern not in same:
                same[pattern] = call.rows_to_run.of(computed, call.latent.device)
            call.sites[state.site.index] = same[pattern]

    def _evidence(self, call: Call, state: SiteState) -> Evidence:
        histories, target = state.histories.get(call.branch), target_at(call.run, state, call.feature)
        return evidence_of(self.config, call.run, self.meter, histories, target)

    # Closing.

    def _closed(self, call: Call, state: SiteState, open_site: OpenSite, output: Tree) -> Tree:
        layout = self._layout(call, open_site, output)
        if layout is None:
            return output
        if open_site.feature is None and not (open_site.unwritten and open_site.unwritten.changed):
            open_site.feature = self._feature(call, open_site, layout)  # what it continues was not known when it opened
        run, rows_to_run, inputs = call.run, open_site.rows_to_run, open_site.inputs
        histories = state.histories.get(call.branch) or self.memory.nothing(state, rows_to_run.rows)
        every = range(len(self.config.approximators))
        indices = approximators_to_fill(state) if rows_to_run.none else every
        target = target_at(run, state, open_site.feature)
        guessed = guesses(self.config, self.meter, histories, target, indices)
        # No row computed: what the modules handed on was a stand-in, and there is nothing to learn.
        if rows_to_run.none:
            call.drafted = torch.ones(rows_to_run.rows, dtype=torch.bool) if self.drafts else None
            return output_of(layout, inputs, _combined(state, guessed))
        value, computed = value_of(layout, inputs, output), rows_to_run.computed
        exact = torch.ones(rows_to_run.rows, dtype=torch.bool) if computed is None else computed
        if state.site.kind is Kind.CHECK and call.drafted is not None:
            self._verify(call, value, guessed)
            exact = ~call.drafted  # what ran on a draft is not exact
        self._measure(run, state, value, guessed, output)
        self._remember(call, state, histories, value, open_site.feature, exact)
        if computed is None:
            return output
        call.drafted = ~computed if call.drafted is None else call.drafted | ~computed
        return output_of(layout, inputs, _combined(state, guessed), output, computed)

    def _layout(self, call: Call, open_site: OpenSite, output: Tree) -> OutputLayout | None:
        key, site, inputs = (call.key, open_site.site.path), open_site.site, open_site.inputs
        if key not in self.layouts:
            assert open_site.unwritten is not None
            rows, in_place = call.rows_to_run.rows, open_site.unwritten.changed
            self.layouts[key] = layout_of(inputs, output, rows, site.added, in_place=in_place)
            if self.layouts[key] is None:
                self.note(f"{site.path} always computes: what it gives has not the batch on its first axis.")
        return self.layouts[key]

    def _measure(self, run: Run, state: SiteState, value: Tensor, guessed: dict[int, Tensor], output: Tree) -> None:
        """Add this branch's squares to the step's; they stay on the device until the step is over."""
        if run.samples == 0:
            return
        unknown = torch.full((len(value),), torch.nan, device=value.device)
        missed = {i: residual_sums(value, guess) for i, guess in guessed.items()}
        columns = [missed[i][:, 2] if i in missed else unknown for i in range(len(self.config.approximators))]
        own = next(iter(missed.values())) if missed else residual_sums(value, value)
        outputs = [residual_sums(t, t)[:, 5] for t in tensors(output)]
        columns += [own[:, 5], torch.stack(outputs).sum(0)]
        sums = torch.stack(columns, dim=1).unflatten(0, (len(value) // run.samples, -1)).sum(0)
        state.sums = sums if state.sums is None else state.sums + sums
        if state.value is None:
            state.value = value[: run.samples]

    def _remember(
        self, call: Call, state: SiteState, histories: Histories, value: Tensor, feature: Tensor | None, exact: Rows
    ) -> None:
        run, features = call.run, histories.features
        sigma, exact = run.step.sigma, rows_to_remember(run, state, exact)
        if self.config.probe.local and feature is None:
            return  # values and features stay pairs
        self.memory.saw(state, call.branch, value, feature, None)
        if feature is not None:
            features = history.push(features, feature, sigma, exact, run.time)
        outputs = history.push(histories.outputs, value, sigma, exact, run.time)
        state.histories[call.branch] = Histories(outputs, features, histories.noises)

    # Verifying.

    def _verify(self, call: Call, value: Tensor, guessed: dict[int, Tensor]) -> None:
        """Hold what the last blocks gave on the draft against what they were expected to give. A draft that fails is
        rejected for the whole sample, and the call runs again.
        """
        rule, drafted, run = self.config.sites, call.drafted, call.run
        assert isinstance(rule, Drafted) and drafted is not None
        first = run.states[0]
        if not call.first or call.again or first.judgement is None:
            return
        sums = run.sums.of(_combined(first, guessed), value)
        error = (sums[:, 2] / sums[:, 3]).sqrt().double().cpu()
        failed = drafted & ~(error <= rule.tolerance(run.step.progress))  # nan fails
        chunks = len(failed) // run.samples
        samples = failed.view(chunks, -1).any(0)
        if not bool(samples.any()):
            return
        call.rejected = samples.repeat(chunks)
        first.judgement, first.controller = decide_rejected(run, first, first.judgement, samples)


def _combined(state: SiteState, guessed: dict[int, Tensor]) -> Tensor:
    """Every row's guess by the approximator that was decided on, (R, ...)."""
    assert state.judgement is not None
    used = list(guessed) if len(guessed) == 1 else [i for i in approximators_to_fill(state) if i in guessed]
    if len(used) == 1:
        return guessed[used[0]]
    best = state.judgement.best.repeat(len(guessed[used[0]]) // len(state.judgement.best))
    return combine([guessed[i] for i in used], torch.stack([best == i for i in used], dim=1).float())
