"""The whole evaluation as one site: the denoiser's output is remembered and guessed.

For `Branches` the site is every branch but the one with the largest weight in the mixture, which always computes; what
is remembered is then by how much the others differ from it, and a guess is that difference added to what it gives now
(FasterCache's CFG-Cache, arXiv 2410.19355; `dicache.presets.parts.fastercache` adds its two frequency bands). Where the
strongest branch is called last, the others' outputs are remembered as they are.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dicache.approximators.base import Histories, Target
from dicache.approximators.noise import noise_of
from dicache.config import Config
from dicache.extension import combine
from dicache.runtime.decide import decide_site, rows_to_compute
from dicache.runtime.evidence import gather, guesses
from dicache.runtime.memory_plan import Memory
from dicache.runtime.run_state import Call, Run, SiteState
from dicache.tensors import history
from dicache.tensors.mac_meter import Meter
from dicache.types import Kind, Rows


class EvaluationSite:
    def __init__(self, config: Config, meter: Meter, memory: Memory, note: Callable[[str], None]) -> None:
        self.config, self.meter, self.memory, self.note = config, meter, memory, note
        self.noisy = any(a.reads_noise for a in config.approximators)

    def decide(self, run: Run, call: Call) -> Rows | None:
        """Which rows compute, (R,) bool; None for all."""
        state, always = run.states[0], _strongest(run, call)
        if run.samples == 0 or bool(always.all()):
            return None
        if state.judgement is None:
            rows = slice(run.samples * _weaker(run, always), None)
            histories, target = state.histories.get(call.branch), _now(run, call, always, rows)
            decide_site(
                self.config,
                run,
                state,
                gather(self.config, run, self.meter, histories and _from(histories, rows), target),
            )
        computed = rows_to_compute(self.config, run, state, call.branch)
        return None if computed is None else computed | always

    def passed(self, run: Run, call: Call, output: Tensor) -> Tensor:
        """The output of a call whose sites lie inside it."""
        run.guided.add(call.branch, output, {})
        run.guided.handed(call.branch, output)
        return output

    def end(self, run: Run, call: Call, output: Tensor) -> Tensor:
        """The denoiser's output, (R, ...), with guesses in the rows that skipped."""
        state, always = run.states[0], _strongest(run, call)
        if state.site.kind is Kind.BRANCH and (run.guided.mixture is None or bool(always.all())):
            run.strongest = output.detach().clone() if run.guided.mixture is not None else None
            return self.passed(run, call, output)
        rows_to_run = call.rows_to_run
        exact = torch.ones(call.rows, dtype=torch.bool) if rows_to_run.computed is None else rows_to_run.computed
        histories = state.histories.get(call.branch) or self.memory.nothing(state, call.rows)
        wanted = state.used if rows_to_run.none else range(len(self.config.approximators))
        target, base = _now(run, call, always), _base(run, always, output)
        found = guesses(self.config, self.meter, histories, target, wanted)
        if base is not None:
            found = {i: base + guess for i, guess in found.items()}
        result = output if rows_to_run.computed is None else self._filled(run, state, found, output, exact)
        if not rows_to_run.none:
            run.guided.add(call.branch, output, found)
            self._remember(run, call, histories, output if base is None else output - base, exact & ~always)
        run.guided.handed(call.branch, result)
        return result

    def _filled(self, run: Run, state: SiteState, guesses: dict[int, Tensor], output: Tensor, exact: Rows) -> Tensor:
        """`output` where computed, else the guess that was decided on."""
        assert state.judgement is not None
        if len(guesses) == 1 and not bool(exact.any()):
            return next(iter(guesses.values()))
        best = state.judgement.best.repeat(run.chunks(len(output)))
        chosen = torch.stack([exact, *(~exact & (best == i) for i in guesses)], dim=1)
        return combine((output, *guesses.values()), chosen.float())

    def _remember(self, run: Run, call: Call, histories: Histories, value: Tensor, exact: Rows) -> None:
        sigma, features, noises = run.step.sigma, histories.features, histories.noises
        exact = run.states[0].remembered(exact)
        noise = noise_of(call.latent, value, run.step.noise) if self.noisy else None
        self.memory.saw(run.states[0], call.branch, value, call.feature, noise)
        outputs = history.push(histories.outputs, value, sigma, exact)
        if call.feature is not None:
            features = history.push(features, call.feature, sigma, exact)
        if noise is not None:
            noises = history.push(noises, noise, sigma, exact)
        run.states[0].histories[call.branch] = Histories(outputs, features, noises)


def _now(run: Run, call: Call, always: Rows, rows: slice = slice(None)) -> Target:
    feature = None if call.feature is None else call.feature[rows]
    difference = run.strongest is not None or bool(always.any())
    return Target(run.step.sigma, feature, call.latent[rows], run.step.noise, run.step.timetable, difference=difference)


def _from(histories: Histories, rows: slice) -> Histories:
    if rows.start == 0:
        return histories
    return Histories(*(history.History(h.sigmas[:, rows], tuple(value[rows] for value in h.values)) for h in histories))


def _strongest(run: Run, call: Call) -> Rows:
    """Rows of the strongest branch, (R,) bool; none unless branches are sites."""
    rows = torch.zeros(call.rows, dtype=torch.bool)
    if run.states[0].site.kind is not Kind.BRANCH or run.guided.strongest is None:
        return rows
    branch, chunk = run.guided.strongest
    if call.branch == branch:
        rows.view(-1, run.samples)[chunk] = True
    return rows


def _weaker(run: Run, always: Rows) -> int:
    """The first chunk of the call that may be skipped."""
    return int((~always).view(-1, run.samples).all(1).int().argmax())


def _base(run: Run, always: Rows, output: Tensor) -> Tensor | None:
    """What the strongest branch gave at this step, for every row; None unless branches are sites and it was called."""
    if not bool(always.any()):
        return run.strongest
    return output[always.to(output.device)].repeat(run.chunks(len(output)), *[1] * (output.ndim - 1))
