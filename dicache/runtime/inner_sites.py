"""Sites inside the denoiser: spans of blocks and sublayers, one call at a time.

    open     the site's first module is called: what goes in is noted, the site is decided once per step
    run      its modules run for the rows that compute
    close    rows that skip get input + guess; exact rows say what the guesses were wrong by and enter the history

The sites' histories are per branch, their decisions per sample: the branch that is called first decides for all.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from dicache.approximators.base import Histories, Target
from dicache.config import Config
from dicache.errors import UnsupportedModelError
from dicache.estimators.base import Evidence
from dicache.extension import combine, residual_sums
from dicache.probes.base import View
from dicache.runtime.decide import decide_site, decide_together, reject, rows_to_compute
from dicache.runtime.evidence import gather, guesses
from dicache.runtime.memory_plan import Memory
from dicache.runtime.module_call import ModuleCall
from dicache.runtime.run_state import Call, OpenSite, Run, SiteState
from dicache.sites import Drafted
from dicache.tensors import history
from dicache.tensors.block_output import OutputLayout, entering, layout_of, output_of, value_of
from dicache.tensors.mac_meter import Meter
from dicache.tensors.tree import Tree, shapes_of, tensors
from dicache.types import Kind, Rows, Site

Key = tuple[tuple[Hashable, ...], str]


class InnerSites:
    def __init__(
        self, config: Config, sites: tuple[Site, ...], meter: Meter, memory: Memory, note: Callable[[str], None]
    ) -> None:
        self.config, self.meter, self.memory, self.note = config, meter, memory, note
        self.of = {part: site for site in sites for part in site.modules}
        self.shapes: dict[Key, Tree] = {}
        self.forms: dict[Key, OutputLayout | None] = {}

    def forget(self) -> None:
        self.shapes, self.forms = {}, {}

    def run(self, run: Run, call: Call, part: ModuleCall) -> Tree:
        """One module of a site."""
        site = self.of[part.path]
        if part.path == site.modules[0]:
            with run.timed():
                call.open_site = self._opened(run, call, run.states[site.index], part)
        open_site = call.open_site
        if open_site is None or open_site.site != site:
            raise UnsupportedModelError(
                f"{part.path} ran outside its site {site.path}: this denoiser does not run its blocks in the order it "
                "keeps them. Use sites=Spans(1) or Evaluation()."
            )
        inside = site.kind not in (Kind.SPAN, Kind.CHECK)
        key = (call.key, part.path)
        output = part.run_for(open_site.rows_to_run, self.meter, self.shapes.get(key), inside=inside)
        if key not in self.shapes:
            self.shapes[key] = shapes_of(output)
        if part.path != site.modules[-1]:
            return output
        call.open_site = None
        with run.timed():
            return self._closed(run, call, run.states[site.index], open_site, output)

    # Opening.

    def _opened(self, run: Run, call: Call, state: SiteState, part: ModuleCall) -> OpenSite:
        inputs = tensors((part.args, part.kwargs))
        form = self.forms.get((call.key, state.site.path))
        versions = [t._version for t in inputs]
        open_site = OpenSite(state.site, inputs, versions, part, call.rows_to_run)
        if form is None:
            return open_site
        open_site.feature = self._feature(run, call, open_site, form)
        if state.site.kind is not Kind.CHECK:
            computed = self._decide(run, call, state, open_site)
            open_site.rows_to_run = call.rows_to_run.of(computed, call.device)
        return open_site

    def _feature(self, run: Run, call: Call, open_site: OpenSite, form: OutputLayout) -> Tensor | None:
        """What the probe sees of this site: its own input, or what all sites share."""
        probe = self.config.probe
        if not probe.local:
            return call.feature
        part, stream = open_site.module_call, entering(form, open_site.inputs)
        view = View(call.latent, stream, stream, part.module, part.args, part.kwargs, run.step)
        return self.meter.added(("the probe", part.path), lambda: probe(view))

    def _decide(self, run: Run, call: Call, state: SiteState, open_site: OpenSite) -> Rows | None:
        if run.samples and state.judgement is None:
            if self.config.together:
                evidences = [self._evidence(run, call, p, call.feature) for p in run.states]
                decide_together(self.config, run, evidences)
            else:
                decide_site(self.config, run, state, self._evidence(run, call, state, open_site.feature))
        computed = rows_to_compute(self.config, run, state, call.branch)
        return computed if computed is None or call.rejected is None else computed | call.rejected

    def _evidence(self, run: Run, call: Call, state: SiteState, feature: Tensor | None) -> Evidence:
        return gather(self.config, run, self.meter, state.histories.get(call.branch), _now(run, state, feature))

    # Closing.

    def _closed(self, run: Run, call: Call, state: SiteState, open_site: OpenSite, output: Tree) -> Tree:
        form = self._form(call, open_site, output)
        if form is None:
            return output
        if open_site.feature is None and not open_site.changed:  # what it continues was not known when it opened
            open_site.feature = self._feature(run, call, open_site, form)
        histories = state.histories.get(call.branch) or self.memory.nothing(state, call.rows)
        computed, target = open_site.rows_to_run.computed, _now(run, state, open_site.feature)
        wanted = state.used if open_site.rows_to_run.none else range(len(self.config.approximators))
        found = guesses(self.config, self.meter, histories, target, wanted)
        if open_site.rows_to_run.none:
            call.drafted = torch.ones(call.rows, dtype=torch.bool)
            return output_of(form, open_site.inputs, self._chosen(run, state, found))
        value = value_of(form, open_site.inputs, output)
        exact = torch.ones(call.rows, dtype=torch.bool) if computed is None else computed
        if state.site.kind is Kind.CHECK and call.drafted is not None:
            self._verify(run, call, state, value, found)
            exact = ~call.drafted
        self._measure(run, call, state, value, found, output)
        self._remember(run, call, state, histories, value, open_site, exact)
        if computed is None:
            return output
        call.drafted = ~computed if call.drafted is None else call.drafted | ~computed
        return output_of(form, open_site.inputs, self._chosen(run, state, found), output, computed)

    def _form(self, call: Call, open_site: OpenSite, output: Tree) -> OutputLayout | None:
        key, site = (call.key, open_site.site.path), open_site.site
        if key not in self.forms:
            self.forms[key] = layout_of(open_site.inputs, open_site.versions, output, call.rows, site.added)
            if self.forms[key] is None:
                self.note(f"{site.path} always computes: what it gives has not the batch on its first axis.")
        return self.forms[key]

    def _chosen(self, run: Run, state: SiteState, guesses: dict[int, Tensor]) -> Tensor:
        """Every row's guess by the approximator that was proposed, (R, ...)."""
        assert state.judgement is not None
        best = state.judgement.best.repeat(run.chunks(len(next(iter(guesses.values())))))
        found = [i for i in guesses if bool((best == i).any())]
        if len(found) == 1:
            return guesses[found[0]]
        return combine([guesses[i] for i in found], torch.stack([best == i for i in found], dim=1).float())

    def _measure(
        self, run: Run, call: Call, state: SiteState, value: Tensor, guesses: dict[int, Tensor], output: Tree
    ) -> None:
        """Add this branch's squares to the step's."""
        if run.samples == 0:
            return
        unknown = torch.full((call.rows,), torch.nan, device=value.device)
        found = {i: residual_sums(value, guess) for i, guess in guesses.items()}
        columns = [found[i][:, 2] if i in found else unknown for i in range(len(self.config.approximators))]
        size = next(iter(found.values())) if found else residual_sums(value, value)
        outputs = [residual_sums(t, t)[:, 5] for t in tensors(output)]
        columns += [size[:, 5], torch.stack(outputs).sum(0)]
        sums = torch.stack(columns, dim=1).unflatten(0, (run.chunks(call.rows), -1)).sum(0)
        state.sums = sums if state.sums is None else state.sums + sums
        if state.value is None:
            state.value = value[: run.samples]

    def _remember(
        self,
        run: Run,
        call: Call,
        state: SiteState,
        histories: Histories,
        value: Tensor,
        open_site: OpenSite,
        exact: Rows,
    ) -> None:
        sigma, features, exact = run.step.sigma, histories.features, state.remembered(exact)
        if self.config.probe.local and open_site.feature is None:
            return  # values and features stay pairs
        self.memory.saw(state, call.branch, value, open_site.feature, None)
        if open_site.feature is not None:
            features = history.push(features, open_site.feature, sigma, exact)
        state.histories[call.branch] = Histories(
            history.push(histories.outputs, value, sigma, exact), features, histories.noises
        )

    # Verifying.

    def _verify(self, run: Run, call: Call, state: SiteState, value: Tensor, guesses: dict[int, Tensor]) -> None:
        """Hold what the last blocks gave on the draft against what they were expected to give."""
        rule, drafted = self.config.sites, call.drafted
        assert isinstance(rule, Drafted) and drafted is not None
        first = run.states[0]
        if not call.first or call.again or first.judgement is None:
            return
        guess = self._chosen(run, first, guesses)
        sums = residual_sums(guess, value)
        error = (sums[:, 2] / sums[:, 3]).sqrt().double().cpu()
        failed = drafted & ~(error <= rule.tolerance(run.step.progress))
        samples = failed.view(run.chunks(call.rows), -1).any(0)
        if not bool(samples.any()):
            return
        call.rejected = samples.repeat(run.chunks(call.rows))
        reject(run, first, samples)


def _now(run: Run, state: SiteState, feature: Tensor | None) -> Target:
    return Target(run.step.sigma, feature, timetable=run.step.timetable, site=state.site.path)
