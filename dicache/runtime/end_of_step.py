"""A step is over: learn from what was computed, and note down what happened.

What every approximator would have been wrong by is known wherever all branches computed, for nothing: its guess is
held against the truth. Estimator and controller learn of it. Guidance is measured from the first two
latents, and held against later ones.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dicache.config import Config
from dicache.errors import DicacheError, UnsupportedModelError
from dicache.ranks.group import is_one_of_several
from dicache.runtime.decide import decide_site, realised_errors
from dicache.runtime.evidence import no_evidence
from dicache.runtime.guidance import samples_of
from dicache.runtime.run_state import Judgement, Run, SiteState
from dicache.runtime.trace import Record, not_finite_of
from dicache.solvers.mixture import denoised, made_elsewhere
from dicache.tensors.tree import tensors
from dicache.types import Grid, Rows, Step

MIXED_ELSEWHERE = (
    "steps make latents of more than the outputs of this process, as guidance with branches on several ranks does, "
    "so everything was computed: enable with ranks=dicache.BranchRanks(group)."
)
Listener = Callable[[], object]


class Truth(NamedTuple):
    """What a step shows of one site once it is over."""

    errors: Grid
    """What every approximator would have been wrong by, (B, A); nan where that is not known."""
    share: Rows | None = None
    """||value|| / ||output||, (B,); None where it is not known, or the site is the whole evaluation."""
    value: Tensor | None = None
    """(B, ...)."""


def end_step(config: Config, run: Run, after: Tensor | None) -> list[str]:
    """`after` is the next step's latent, if there is one. Gives what is to be noted of it."""
    if run.samples == 0:
        _begin_states(config, run, _samples(run, after))
    for state in run.states:
        if state.judgement is None:  # nobody had to decide
            state.judgement, state.controller = decide_site(config, run, state, no_evidence(config, run))
    judgements = [state.judgement for state in run.states if state.judgement is not None]
    run.first_not_finite = _first_not_finite(run)
    truths, run.scale, run.not_finite, surprise = _truths(config, run, judgements, after)
    errors = _of_best([truth.errors for truth in truths], judgements)
    ratios = (errors / _of_best([judgement.predicted for judgement in judgements], judgements)).split(run.samples)
    for state, judgement, truth, ratio in zip(run.states, judgements, truths, ratios, strict=True):
        state.share = truth.share
        state.controller, state.estimator = _learn(config, state, judgement, truth, ratio)
    run.records.append(_record(run, judgements, errors))
    run.sums.next_step(run.step.index + 1)
    if run.guided.changed:
        _forget(config, run)
    elif run.guided.mixture is None and after is not None:
        guided = run.guided.fitted(*_stretch(run, after))
        if guided.mixture is not None:
            run.know_mixture(guided)
            return _mixed_elsewhere(run, after[: run.samples])
    elif after is not None:
        remeasured = run.guided.remeasured(*_stretch(run, after), surprise)
        if remeasured is not None:
            run.know_mixture(remeasured)
            return _noted(
                config, run, "the guidance scale was changed half-way", "its branches were weighed anew there"
            )
    return []


def _stretch(run: Run, after: Tensor) -> tuple[Tensor, Tensor, Step]:
    """The latents that the step leads from and to, (B, ...), and the step."""
    return run.latent[: run.samples], after[: run.samples], run.step


def _mixed_elsewhere(run: Run, after: Tensor) -> list[str]:
    """Guidance branches may lie on other ranks, of which nobody has told: a budget would be that of one branch."""
    outputs, solved = list(run.guided.outputs.values()), run.step.solved
    certain = solved is not None and run.step.alone and (run.step.timetable is None or not run.step.timetable.random)
    # Several branches are here to be seen, and what a solver makes of one is only held against one that is certain.
    if len(outputs) > 1 or len(outputs[0]) != run.samples or not certain or not is_one_of_several():
        return []
    assert solved is not None
    before = denoised(run.latent[: run.samples], outputs[0])
    run.apart = made_elsewhere(before, denoised(after, outputs[0]), outputs[0], solved)
    return [MIXED_ELSEWHERE] if run.apart else []


# The run's first step shows how many samples there are.


def _samples(run: Run, after: Tensor | None) -> int:
    outputs = list(run.guided.outputs.values())
    samples = samples_of([run.latent] if after is None else [run.latent, after], outputs)
    if not samples:
        counts = ", ".join(str(output.shape[0]) for output in outputs)
        raise UnsupportedModelError(
            f"one step called the denoiser with {counts} rows, which are not branches of the same samples. "
            "Expected every call of a step to hold every sample once, or a whole number of times."
        )
    return samples


def _begin_states(config: Config, run: Run, samples: int) -> None:
    """What rules and estimators begin with. A rule may refuse so many samples: then nothing has begun."""
    controllers = [state.rule.init(samples) for state in run.states]
    run.samples = samples
    for state, controller in zip(run.states, controllers, strict=True):
        state.controller = controller
    _forget(config, run)


def _forget(config: Config, run: Run) -> None:
    """The branches are not those that were learned about: nothing is known of the errors of their mixture."""
    run.forget_mixture()
    for state in run.states:
        state.estimator, state.share = config.estimator.init(run.samples, len(config.approximators)), None


def begin_anew(config: Config, run: Run, branch: str, changed: Sequence[str]) -> list[str]:
    """What is remembered is of other conditions than `branch` is called with: no sample skips it, and no error is
    known. Who learned of the change in an earlier branch of this step has begun anew already. What is to be noted of
    it; raises what a rule raises that cannot live with it.
    """
    change = f"the conditions were changed half-way ({', '.join(changed)})"
    notes = _noted(config, run, change, "the cache began anew there")
    run.anew = True
    run.undecide()
    for state in run.states:
        if branch in state.histories:
            state.histories = {}
            if run.samples:
                state.estimator, state.share = config.estimator.init(run.samples, len(config.approximators)), None
    return notes


def _noted(config: Config, run: Run, change: str, followed: str) -> list[str]:
    """What is to be noted of a change that was `followed`. Raises what a rule raises that cannot live with it."""
    try:
        ends = config.controller.on_other_weights(change)
    except DicacheError as error:
        run.refuse(error)
        raise
    return [f"{change}: {followed}.", *([ends] if ends else [])]


# What was really wrong.


def _first_not_finite(run: Run) -> Tensor:
    """The step at which a sample's latent or what the pipeline got was first not finite, -1 for none so far; (B,), and
    it stays on the device.
    """
    parts = [t.isfinite().flatten(1).all(1) for t in (run.latent, *run.guided.outputs.values())]
    parts = [part if len(part) == run.samples else part.view(-1, run.samples).all(0) for part in parts]
    finite = torch.stack([part.to(run.latent.device) for part in parts]).all(0)
    before = torch.full_like(finite, -1, dtype=torch.long) if run.first_not_finite is None else run.first_not_finite
    return torch.where(finite | (before >= 0), before, run.step.index)


def _truths(
    config: Config, run: Run, judgements: list[Judgement], after: Tensor | None
) -> tuple[list[Truth], Rows | None, Mapping[int, int], list[Tensor]]:
    """Of every site, ||v|| / ||x_N|| at each sample's last computed step, which samples are not finite, and by how much
    the step mixed its branches otherwise (`Guided.surprise`). The host waits for the device here, once, and only where
    something was computed.
    """
    n_approximators = len(config.approximators)
    unknown = torch.full((run.samples, n_approximators), torch.nan, dtype=torch.float64)
    before = [Truth(unknown, state.share, state.value) for state in run.states]
    computed = _upon_each_other([judgement.computed[None] for judgement in judgements]).any(0)
    # A mixture that misses a branch says nothing: the outputs of that branch were guesses.
    if not run.guided.complete or not bool(computed.any()):
        return before, run.scale, run.not_finite, []
    assert run.first_not_finite is not None
    summed = {i: state.sums for i, state in enumerate(run.states) if state.sums is not None}
    sums = [run.sums.added(torch.stack(list(summed.values())))] if summed else []
    surprise = [] if after is None else run.guided.surprise(*_stretch(run, after))
    asked = run.latent[: run.samples], run.step.clean, n_approximators
    errors, scale, (first, *squares) = run.guided.measure(*asked, run.first_not_finite, *surprise, *sums)
    surprise, grids = squares[: len(surprise)], squares[len(surprise) :]
    not_finite = not_finite_of(first) if bool((first >= 0).any()) else run.not_finite
    scale = _where(computed, scale, run.scale)
    if not run.states[0].inside:
        return [Truth(errors, value=run.guided.truth)], scale, not_finite, surprise
    truths = before.copy()
    for i, grid in zip(summed, (grid for of_all in grids for grid in of_all), strict=True):
        site_errors, share = realised_errors(grid, n_approximators)
        truths[i] = Truth(site_errors, _where(judgements[i].computed, share, before[i].share), before[i].value)
    return truths, scale, not_finite, surprise


def _where(computed: Rows, after: Rows, before: Rows | None) -> Rows:
    return after if before is None else torch.where(computed, after, before)


def _of_best(errors: Sequence[Grid], judgements: Sequence[Judgement]) -> Rows:
    """What errors of approximators, (B, A) each, say of the one that fills in, or would; all sites upon each other,
    (S * B,).
    """
    best = _upon_each_other([judgement.best for judgement in judgements])
    return _upon_each_other(errors).gather(1, best[:, None])[:, 0]


def _upon_each_other(rows: Sequence[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))


def _learn(config: Config, state: SiteState, judgement: Judgement, truth: Truth, ratio: Rows) -> tuple[Any, Any]:
    """The states that controller and estimator go on with; the guess was `ratio` times as wrong as predicted, (B,)."""
    controller = state.rule.settle(ratio, judgement.computed, state.controller)
    if state.depth == 0:  # nothing is remembered of this site, so nothing is guessed
        return controller, state.estimator
    evidence = judgement.evidence._replace(output=truth.value)
    return controller, config.estimator.observe(truth.errors, evidence, judgement.computed, state.estimator)


def remembered_bytes(run: Run) -> int:
    """Of histories, and of what estimators hold of the model, at this moment (numbers per sample aside)."""
    histories = [history for state in run.states for branch in state.histories.values() for history in branch]
    estimators = [t for state in run.states for t in tensors(state.estimator) if t.ndim > 2]
    return sum(value.nbytes for history in histories for value in history.values) + sum(t.nbytes for t in estimators)


# What is noted down.


def _record(run: Run, judgements: list[Judgement], errors: Rows) -> Record:
    """Of several sites the worst prediction and error, of those that fill in, (S * B,); what was spent adds up in
    squares.
    """
    computed = _upon_each_other([judgement.computed for judgement in judgements])
    predicted = _upon_each_other([judgement.predicted for judgement in judgements]).min(1).values
    realised = torch.where(computed, errors, torch.nan)
    step = run.step.index, run.step.sigma, tuple(run.guided.outputs)
    if len(judgements) == 1:  # as nearly always: stacking one of each is what noting down costs
        action, reason, spent = judgements[0].decision
        return Record(*step, action, reason, predicted, realised, spent)
    decisions = [judgement.decision for judgement in judgements]
    return Record(
        *step,
        action=torch.cat([decision.action for decision in decisions], dim=1),
        reason=torch.cat([decision.reason for decision in decisions], dim=1),
        predicted=predicted.view(-1, run.samples).amax(0),
        realised=_worst(realised.view(-1, run.samples)),
        spent=torch.stack([decision.spent for decision in decisions]).square().sum(0).sqrt(),
    )


def tell(listeners: Sequence[Listener]) -> None:
    """One after another, and all of them whatever one raises. Raises what the last of those did."""
    with ExitStack() as calls:  # an ExitStack begins with the last one
        for listener in reversed(listeners):
            calls.callback(listener)


def _worst(errors: Tensor) -> Rows:
    """(S, B) to (B,): the largest that is known."""
    worst = errors.nan_to_num(-torch.inf, torch.inf).amax(0)
    return torch.where(worst == -torch.inf, torch.nan, worst)
