"""Deciding one site of one step: what is known, what skipping would cost, who fills in, which rows compute.

    cost = e * share * |h| * ||v|| / ||x_N|| * k(guidance)

is what skipping would add to the final latent: e the estimator's relative error of the site's value, `share` how much
of the stream it is (1 for a whole evaluation), h the solver's coefficient, the rest as in `dicache.planning.error_law`.
Without calibration nothing better is known of how far a block's error reaches the output.

Every function here is a question: it changes nothing, and whoever asks assigns the answer.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.linear import Extrapolate, extrapolate
from dicache.approximators.pricing import UNKNOWN, Priced, Standing, growths, priced, weights
from dicache.config import Config
from dicache.controllers.base import refused
from dicache.estimators.base import Evidence
from dicache.planning.error_law import REMAINS, error_rate, error_rates
from dicache.runtime.run_state import Judgement, Run, SiteState
from dicache.tensors.contract import check_own, check_tensor, is_users
from dicache.tensors.mac_meter import Meter
from dicache.tensors.norms import relative_change
from dicache.types import Action, Decision, Grid, Quote, Reason, Rows, Step

# What is known.


def no_evidence(config: Config, run: Run, feature: Tensor | None = None) -> Evidence:
    """Of a site that was never computed, or that nobody had to decide."""
    unknown = torch.full((run.samples,), torch.nan, dtype=torch.float64)
    return Evidence(
        growth=unknown[:, None].expand(-1, len(config.approximators)),
        innovation=unknown,
        innovation_growth=unknown,
        step=run.step,
        latent=run.latent[: run.samples],
        feature=None if feature is None else feature[: run.samples],
        sums=run.sums,
    )


def evidence_of(
    config: Config,
    run: Run,
    meter: Meter,
    histories: Histories | None,
    target: Target,
    laws: tuple[Grid, Grid | None] | None = None,
) -> Evidence:
    """Of one site, before it is computed in the step's first call; `histories` is that of the branch that is called,
    None where it was never computed; `laws` are growths and weights where they were asked for already.
    """
    nothing, timetable = no_evidence(config, run, target.feature)._replace(site=target.site), run.step.timetable
    if histories is None:
        return nothing

    def guess(index: int) -> Tensor | None:
        guess = guesses(config, meter, histories, target, [index]).get(index)
        return None if guess is None else guess[: run.samples]

    growth, weighed = laws or _laws(config, run, histories.outputs.times[:, : run.samples])
    evidence = nothing._replace(
        growth=growth,
        timetable=timetable is not None or not run.guided.watched,
        typical=typical_error(run.step),
        guess=guess,
        weights=weighed,
    )
    features = histories.features
    if target.feature is None or len(features.values) < 2 or not config.estimator.reads_innovation:
        return evidence
    expected = extrapolate(features, run.step.sigma)
    moved = relative_change(expected, target.feature, run.sums.of)[: run.samples].double().cpu()
    growth = Extrapolate().growth(features.times[:, : run.samples], run.time)
    return evidence._replace(innovation=moved, innovation_growth=growth)


def _laws(config: Config, run: Run, times: Tensor) -> tuple[Grid, Grid | None]:
    # New noise makes outputs walk at random, whatever fills in.
    walks = run.step.timetable is not None and run.step.timetable.random
    growth = growths(config.approximators, times, run.time, random=walks)
    return growth, weights(config.approximators, times, run.time, guidance_of(run))


def guidance_of(run: Run) -> Rows:
    """Its scale, (B,), 1 without."""
    return torch.ones(run.samples, dtype=torch.float64) if run.guided.strength is None else run.guided.strength


def typical_error(step: Step) -> float | None:
    """What outputs are usually wrong by, by the law."""
    if step.half_log_snr is None:
        return None
    if step.timetable is None:
        return error_rate(step.half_log_snr) * step.gain
    return error_rates(step.timetable)[step.index]


def foresee(config: Config, state: SiteState, evidence: Evidence, histories: Histories | None, target: Target) -> None:
    """All that this call's decision and guesses hold against each other, in one exchange between the ranks."""
    if not evidence.sums.shared or histories is None:
        return
    # What guesses hold against each other is asked for here, so that it need not be when they are made.
    enough = [a for a in config.approximators if len(histories.outputs.values) >= a.needs]
    pairs = (pair for approximator in enough for pair in approximator.pairs(histories, target))
    evidence.sums.foresee([*config.estimator.pairs(evidence, state.estimator), *pairs])


def guesses(
    config: Config, meter: Meter, histories: Histories, target: Target, indices: Iterable[int]
) -> dict[int, Tensor]:
    """What these approximators guess, (R, ...) each, where the history is long enough; their matrix products booked."""
    enough = [i for i in indices if len(histories.outputs.values) >= config.approximators[i].needs]
    if target.sums.shared:
        target.sums.foresee(pair for i in enough for pair in config.approximators[i].pairs(histories, target))
    return {i: _guess(config.approximators[i], meter, histories, target) for i in enough}


def _guess(approximator: Approximator, meter: Meter, histories: Histories, target: Target) -> Tensor:
    def guess() -> Tensor:
        if not approximator.multiplies:
            return approximator.guess(histories, target)
        with torch.autocast(values[0].device.type, enabled=False):  # the user's is for the model
            return approximator.guess(histories, target)

    booked, values = guess_cost(approximator, target.site), histories.outputs.values
    guessed = meter.added(booked, guess) if approximator.multiplies else guess()
    if is_users(type(approximator)):
        said_by = f"{type(approximator).__name__}.guess"
        check_tensor(guessed, values[0].shape, said_by, "what stands in the place of a value, of its shape")
        check_own(guessed, values, said_by)
    return guessed


def guess_cost(approximator: Approximator, site: str) -> Hashable:
    """What the guesses of one approximator at one site are booked under."""
    return type(approximator).__name__, id(approximator), site


# What is decided.


def decide_site(
    config: Config, run: Run, state: SiteState, evidence: Evidence, price: Priced | None = None
) -> tuple[Judgement, Any]:
    """One site, and the state that its controller goes on with; `price` where it was asked for already."""
    return _judged(config, run, state, evidence, price or _price(config, run, state, evidence))


def _price(config: Config, run: Run, state: SiteState, evidence: Evidence, predicted: Grid | None = None) -> Priced:
    predicted = predicted_errors(config, state, evidence) if predicted is None else predicted
    return priced(config.actions, standing_of(run, state), evidence.growth, evidence.weights, predicted)


def standing_of(run: Run, state: SiteState) -> Standing:
    """What its prices depend on beside errors."""
    survives = run.guided.surviving_share
    if survives is not None and run.guided.watched:
        survives = survives.clamp(min=1.0)  # whether the model forgets early errors nobody knows
    # Nothing is free for want of a number: what was never measured is nan here, and its cost inf.
    scale, unseen = math.nan if run.scale is None else run.scale, math.nan if state.inside else 1.0
    share = unseen if state.share is None else state.share
    return Standing(run.step.coefficient, scale, share, REMAINS if survives is None else survives)


def _judged(config: Config, run: Run, state: SiteState, evidence: Evidence, price: Priced) -> tuple[Judgement, Any]:
    """Where conditions have changed all samples compute, whatever rule decides."""
    judgement, controller = _asked(config, run, state, evidence, price)
    if not run.anew:
        return judgement, controller
    return decide_rejected(run, state, judgement, torch.ones_like(judgement.computed), Reason.CHANGED)


def decide_together(config: Config, run: Run, evidences: Sequence[Evidence]) -> tuple[list[Judgement], Any]:
    """One decision for all sites, on the mean of what is predicted of them; the first one's rule takes it, and goes on
    with the state.
    """
    grids = [predicted_errors(config, state, evidence) for evidence, state in zip(evidences, run.states, strict=True)]
    price = _price(config, run, run.states[0], evidences[0], torch.stack(grids).mean(0))
    judgement, controller = _judged(config, run, run.states[0], evidences[0], price)
    return [judgement._replace(evidence=evidence) for evidence in evidences], controller


def decide_rejected(
    run: Run, state: SiteState, judgement: Judgement, samples: Rows, why: Reason = Reason.REJECTED
) -> tuple[Judgement, Any]:
    """Again, from the state before, with nothing known of `samples`, (B,) bool: what their rule then remembers is that
    they computed.
    """
    refusal = refused(judgement.quote, samples)
    decision, controller = state.rule.decide(refusal, run.step, judgement.controller_before)
    decision = decision._replace(
        action=torch.where(samples[:, None], int(Action.COMPUTE), decision.action),
        reason=torch.where(samples[:, None], int(why), decision.reason),
    )
    computed, stored = _rows_of(decision)
    return judgement._replace(decision=decision, computed=computed, stored=stored), controller


def _asked(config: Config, run: Run, state: SiteState, evidence: Evidence, price: Priced) -> tuple[Judgement, Any]:
    quote = Quote(price.error, price.cost, price.action, run.facts, price.fills)
    decision, controller = state.rule.decide(quote, run.step, state.controller)
    best = choose_approximator(config, price.weighed, decision)
    judgement = Judgement(evidence, price.predicted, decision, quote, state.controller, best, *_rows_of(decision))
    return judgement, controller


def _rows_of(decision: Decision) -> tuple[Rows, Rows]:
    """Whose value is computed, and whose is to be remembered where it is, (B,) bool each."""
    action = decision.action[:, 0]
    return (action == Action.COMPUTE) | (action == Action.UNSTORED), action != Action.UNSTORED


def predicted_errors(config: Config, state: SiteState, evidence: Evidence) -> Grid:
    """inf for approximators that read more values than are remembered."""
    predicted = config.estimator.predict(evidence, state.estimator)
    if is_users(type(config.estimator)):
        said_by, meaning = f"{type(config.estimator).__name__}.predict", "an error of each approximator, on the host"
        check_tensor(predicted, evidence.growth.shape, said_by, meaning)
    # Most runs remember all that is asked for, and this is asked at every step.
    if state.depth is None or all(a.needs <= state.depth for a in config.approximators):
        return predicted
    return predicted.masked_fill(config.needs > state.depth, torch.inf)


def choose_approximator(config: Config, weighed: Grid, decision: Decision) -> Rows:
    """The approximator with the least error, as they are `weighed`, (B,): of those of the action that was decided on,
    which need not be the one proposed; of all where it computes.
    """
    fitting = config.actions == decision.action
    fitting = fitting | ~fitting.any(1, keepdim=True)
    # What cannot fill in is inf; clamped, it still comes before the approximators of other actions.
    return torch.where(fitting, weighed.clamp(max=10 * UNKNOWN), torch.inf).min(1).indices


# What that means for approximators and rows.


def approximators_to_fill(state: SiteState) -> list[int]:
    """Those that fill in at this step."""
    return [] if state.judgement is None else sorted(set(state.judgement.best.tolist()))


def rows_to_compute(config: Config, run: Run, state: SiteState, branch: str) -> Rows | None:
    """Which rows of a branch compute, (R,) bool; None for all. A branch with too short a past computes whatever was
    decided.
    """
    if run.samples == 0 or state.judgement is None or branch not in state.histories:
        return None
    sigmas = state.histories[branch].outputs.sigmas
    # A batch of one branch is asked of at every step, and needs no repetition.
    needs, computed, chunks = (
        config.needs[state.judgement.best],
        state.judgement.computed,
        sigmas.shape[1] // run.samples,
    )
    if chunks > 1:
        needs, computed = needs.repeat(chunks), computed.repeat(chunks)
    computed = computed | (sigmas.isfinite().sum(0) < needs)
    return None if bool(computed.all()) else computed


def rows_to_remember(run: Run, state: SiteState, exact: Rows) -> Rows:
    """Of the rows that are exact, (R,) bool, those whose value enters the history."""
    if state.judgement is None:
        return exact
    return exact & state.judgement.stored.repeat(len(exact) // run.samples)


def realised_errors(sums: Grid, n_approximators: int) -> tuple[Grid, Rows]:
    """A site's squares on the host, (B, A + 2), to relative errors, (B, A), nan where there was no guess, and
    ||value|| / ||output||, (B,).
    """
    value, output = sums[:, n_approximators], sums[:, n_approximators + 1]
    share = (value / output).sqrt().nan_to_num(1.0, 1.0).clamp(max=1.0)
    return (sums[:, :n_approximators] / value[:, None]).sqrt(), share
