"""Sites inside the denoiser: spans of blocks and sublayers, one call at a time.

    open     the site's first module is called: what goes in is noted, the site is decided once per step
    run      its modules run for the rows that compute
    close    rows that skip get input + guess; exact rows say what the guesses were wrong by and enter the history

The sites' histories are per branch, their decisions per sample: the branch that is called first decides for all.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from dicache.approximators.base import Now, Past
from dicache.config import Config
from dicache.errors import UnsupportedModelError
from dicache.estimators.base import Evidence
from dicache.extension import combine, residual_sums
from dicache.probes.base import View
from dicache.runtime.decide import computing, judge, judge_together, reject
from dicache.runtime.evidence import gather, guesses
from dicache.runtime.memory_plan import Memory
from dicache.runtime.module_call import Part
from dicache.runtime.run_state import Call, Opening, Place, Run
from dicache.sites import Drafted
from dicache.tensors import history
from dicache.tensors.block_output import Form, entering, form_of, output_of, value_of
from dicache.tensors.mac_meter import Meter
from dicache.tensors.tree import Tree, shapes_of, tensors
from dicache.types import Kind, Rows, Site

Key = tuple[tuple[Hashable, ...], str]


class Inner:
    def __init__(
        self, config: Config, sites: tuple[Site, ...], meter: Meter, memory: Memory, note: Callable[[str], None]
    ) -> None:
        self.config, self.meter, self.memory, self.note = config, meter, memory, note
        self.of = {part: site for site in sites for part in site.parts}
        self.shapes: dict[Key, Tree] = {}
        self.forms: dict[Key, Form | None] = {}

    def forget(self) -> None:
        self.shapes, self.forms = {}, {}

    def run(self, run: Run, call: Call, part: Part) -> Tree:
        """One module of a site."""
        site = self.of[part.path]
        if part.path == site.parts[0]:
            with run.timed():
                call.opening = self._opened(run, call, run.places[site.place], part)
        opening = call.opening
        if opening is None or opening.site != site:
            raise UnsupportedModelError(
                f"{part.path} ran outside its site {site.path}: this denoiser does not run its blocks in the order it "
                "keeps them. Use sites=Spans(1) or Evaluation()."
            )
        inside = site.kind not in (Kind.SPAN, Kind.CHECK)
        key = (call.key, part.path)
        output = part.run_for(opening.which, self.meter, self.shapes.get(key), inside=inside)
        if key not in self.shapes:
            self.shapes[key] = shapes_of(output)
        if part.path != site.parts[-1]:
            return output
        call.opening = None
        with run.timed():
            return self._closed(run, call, run.places[site.place], opening, output)

    # Opening.

    def _opened(self, run: Run, call: Call, place: Place, part: Part) -> Opening:
        inputs = tensors((part.args, part.kwargs))
        form = self.forms.get((call.key, place.site.path))
        versions = [t._version for t in inputs]
        opening = Opening(place.site, inputs, versions, part, call.which)
        if form is None:
            return opening
        opening.feature = self._feature(run, call, opening, form)
        if place.site.kind is not Kind.CHECK:
            computed = self._decide(run, call, place, opening)
            opening.which = call.which.of(computed, call.device)
        return opening

    def _feature(self, run: Run, call: Call, opening: Opening, form: Form) -> Tensor | None:
        """What the probe sees of this site: its own input, or what all sites share."""
        probe = self.config.probe
        if not probe.local:
            return call.feature
        part, stream = opening.part, entering(form, opening.inputs)
        view = View(call.latent, stream, stream, part.module, part.args, part.kwargs, run.step)
        return self.meter.added(("the probe", part.path), lambda: probe(view))

    def _decide(self, run: Run, call: Call, place: Place, opening: Opening) -> Rows | None:
        if run.samples and place.judgement is None:
            if self.config.together:
                evidences = [self._evidence(run, call, p, call.feature) for p in run.places]
                judge_together(self.config, run, evidences)
            else:
                judge(self.config, run, place, self._evidence(run, call, place, opening.feature))
        computed = computing(self.config, run, place, call.branch)
        return computed if computed is None or call.rejected is None else computed | call.rejected

    def _evidence(self, run: Run, call: Call, place: Place, feature: Tensor | None) -> Evidence:
        return gather(self.config, run, self.meter, place.past.get(call.branch), _now(run, place, feature))

    # Closing.

    def _closed(self, run: Run, call: Call, place: Place, opening: Opening, output: Tree) -> Tree:
        form = self._form(call, opening, output)
        if form is None:
            return output
        if opening.feature is None and not opening.changed:  # what it continues was not known when it opened
            opening.feature = self._feature(run, call, opening, form)
        past = place.past.get(call.branch) or self.memory.nothing(place, call.rows)
        computed, now = opening.which.computed, _now(run, place, opening.feature)
        wanted = place.used if opening.which.none else range(len(self.config.approximators))
        found = guesses(self.config, self.meter, past, now, wanted)
        if opening.which.none:
            call.drafted = torch.ones(call.rows, dtype=torch.bool)
            return output_of(form, opening.inputs, self._chosen(run, place, found))
        value = value_of(form, opening.inputs, output)
        exact = torch.ones(call.rows, dtype=torch.bool) if computed is None else computed
        if place.site.kind is Kind.CHECK and call.drafted is not None:
            self._verify(run, call, place, value, found)
            exact = ~call.drafted
        self._measure(run, call, place, value, found, output)
        self._remember(run, call, place, past, value, opening, exact)
        if computed is None:
            return output
        call.drafted = ~computed if call.drafted is None else call.drafted | ~computed
        return output_of(form, opening.inputs, self._chosen(run, place, found), output, computed)

    def _form(self, call: Call, opening: Opening, output: Tree) -> Form | None:
        key, site = (call.key, opening.site.path), opening.site
        if key not in self.forms:
            self.forms[key] = form_of(opening.inputs, opening.versions, output, call.rows, site.added)
            if self.forms[key] is None:
                self.note(f"{site.path} always computes: what it gives has not the batch on its first axis.")
        return self.forms[key]

    def _chosen(self, run: Run, place: Place, guesses: dict[int, Tensor]) -> Tensor:
        """Every row's guess by the approximator that was proposed, (R, ...)."""
        assert place.judgement is not None
        best = place.judgement.best.repeat(run.chunks(len(next(iter(guesses.values())))))
        found = [i for i in guesses if bool((best == i).any())]
        if len(found) == 1:
            return guesses[found[0]]
        return combine([guesses[i] for i in found], torch.stack([best == i for i in found], dim=1).float())

    def _measure(
        self, run: Run, call: Call, place: Place, value: Tensor, guesses: dict[int, Tensor], output: Tree
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
        place.sums = sums if place.sums is None else place.sums + sums
        if place.value is None:
            place.value = value[: run.samples]

    def _remember(
        self, run: Run, call: Call, place: Place, past: Past, value: Tensor, opening: Opening, exact: Rows
    ) -> None:
        sigma, features, exact = run.step.sigma, past.features, place.remembered(exact)
        if self.config.probe.local and opening.feature is None:
            return  # values and features stay pairs
        self.memory.saw(place, call.branch, value, opening.feature, None)
        if opening.feature is not None:
            features = history.push(features, opening.feature, sigma, exact)
        place.past[call.branch] = Past(history.push(past.outputs, value, sigma, exact), features, past.noises)

    # Verifying.

    def _verify(self, run: Run, call: Call, place: Place, value: Tensor, guesses: dict[int, Tensor]) -> None:
        """Hold what the last blocks gave on the draft against what they were expected to give."""
        rule, drafted = self.config.sites, call.drafted
        assert isinstance(rule, Drafted) and drafted is not None
        first = run.places[0]
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


def _now(run: Run, place: Place, feature: Tensor | None) -> Now:
    return Now(run.step.sigma, feature, course=run.step.course, site=place.site.path)
