"""Deciding one site of one step: what is known, what skipping would cost, who fills in, which rows compute.

    cost = e * share * |h| * ||v|| / ||x_N|| * k(guidance)

is what skipping would add to the final latent: e the estimator's relative error of the site's value, `share` how much
of the stream it is (1 for a whole evaluation), h the solver's coefficient, the rest as in `dicache.planning.error_law`.
Without calibration nothing better is known of how far a block's error reaches the output.

Every function here is a question: it changes nothing, and whoever asks assigns the answer.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dicache.approximators.base import Histories
from dicache.approximators.pricing import (
    UNKNOWN,
    Priced,
    Standing,
    growths,
    per_row,
    priced,
    upon_each_other,
    weights,
)
from dicache.config import Config
from dicache.controllers.base import refused
from dicache.estimators.amplitude import Amplitude, Amplitudes
from dicache.estimators.base import Evidence
from dicache.planning.error_law import REMAINS
from dicache.runtime.evidence import Laws, evidence_of, evidences_of, guidance_of, target_at, typical_error
from dicache.runtime.run_state import Judgement, Run, SiteState
from dicache.tensors.contract import check_tensor, is_users
from dicache.tensors.mac_meter import Meter
from dicache.types import Action, Grid, Quote, Reason, Rows

# What is decided.


def decide_site(
    config: Config, run: Run, state: SiteState, evidence: Evidence, price: Priced | None = None
) -> tuple[Judgement, Any]:
    """One site, and the state that its controller goes on with; `price` where it was asked for already."""
    return decide_sites(config, run, [state], [evidence], price or price_of(config, run, state, evidence))[0]


def decide_sites(
    config: Config, run: Run, states: Sequence[SiteState], evidences: Sequence[Evidence], price: Priced
) -> list[tuple[Judgement, Any]]:
    """The same of several, each by its own rule; their prices, (S * B, ...), lie upon each other. Where conditions have
    changed all samples compute, whatever rules decide.
    """
    decided = _asked(config, run, states, evidences, price)
    if not run.anew:
        return decided
    everyone = torch.ones(run.samples, dtype=torch.bool)
    return [
        decide_rejected(run, state, judgement, everyone, Reason.CHANGED)
        for state, (judgement, _) in zip(states, decided, strict=True)
    ]


def price_of(config: Config, run: Run, state: SiteState, evidence: Evidence, predicted: Grid | None = None) -> Priced:
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


def decide_all(
    config: Config, run: Run, meter: Meter, branch: str, states: Sequence[SiteState], feature: Tensor | None
) -> list[tuple[Judgement, Any]]:
    """Of each site of a call of this `branch`, and the state that its controller goes on with; `feature` is what the
    probe sees of them.
    """
    groups = dict[Hashable, list[int]]()
    for i, state in enumerate(states):
        histories = state.histories.get(branch)
        kind = None if histories is None or feature is not None else kind_of(config, AskedSite(run, state, histories))
        groups.setdefault(i if kind is None else kind, []).append(i)
    decided = dict[int, tuple[Judgement, Any]]()
    for indices in groups.values():
        group = [states[i] for i in indices]
        if len(group) == 1:
            histories = group[0].histories.get(branch)
            evidence = evidence_of(config, run, meter, histories, target_at(run, group[0], feature))
            decided[indices[0]] = decide_site(config, run, group[0], evidence)
            continue
        asked = [AskedSite(run, state, state.histories[branch]) for state in group]
        laws, price = priced_together(config, asked)
        sites = [(each.histories, target_at(run, each.state)) for each in asked]
        evidences = evidences_of(config, run, meter, sites, laws)
        decided |= zip(indices, decide_sites(config, run, group, evidences, price), strict=True)
    return [decided[i] for i in range(len(states))]


def decide_together(config: Config, run: Run, evidences: Sequence[Evidence]) -> tuple[list[Judgement], Any]:
    """One decision for all sites, on the mean of what is predicted of them; the first one's rule takes it, and goes on
    with the state.
    """
    grids = [predicted_errors(config, state, evidence) for evidence, state in zip(evidences, run.states, strict=True)]
    price = price_of(config, run, run.states[0], evidences[0], torch.stack(grids).mean(0))
    judgement, controller = decide_site(config, run, run.states[0], evidences[0], price)
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
    computed, stored = _rows_of(decision.action)
    return judgement._replace(decision=decision, computed=computed, stored=stored), controller


def _asked(
    config: Config, run: Run, states: Sequence[SiteState], evidences: Sequence[Evidence], price: Priced
) -> list[tuple[Judgement, Any]]:
    own = price.apart(run.samples)
    quotes = [Quote(each.error, each.cost, each.action, run.facts, each.fills) for each in own]
    answers = [state.rule.decide(q, run.step, state.controller) for state, q in zip(states, quotes, strict=True)]
    # What follows from the answers is worked out for all sites at once.
    actions = [decision.action for decision, _ in answers]
    action = actions[0] if len(actions) == 1 else torch.cat(actions)
    followed = choose_approximator(config, price.weighed, action), *_rows_of(action)
    rows = [followed] if len(actions) == 1 else zip(*(each.split(run.samples) for each in followed), strict=True)
    return [
        (Judgement(evidence, each.predicted, decision, quote, state.controller, *of_site), controller)
        for evidence, each, quote, state, (decision, controller), of_site in zip(
            evidences, own, quotes, states, answers, rows, strict=True
        )
    ]


def _rows_of(action: Grid) -> tuple[Rows, Rows]:
    """Whose value is computed, and whose is to be remembered where it is, (B,) bool each, from (B, 1)."""
    taken = action[:, 0]
    return (taken == Action.COMPUTE) | (taken == Action.UNSTORED), taken != Action.UNSTORED


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


def choose_approximator(config: Config, weighed: Grid, action: Grid) -> Rows:
    """The approximator with the least error, as they are `weighed`, (B,): of those of the action that was decided on,
    (B, 1), which need not be the one proposed; of all where it computes.
    """
    fitting = config.actions == action
    fitting = fitting | ~fitting.any(1, keepdim=True)
    # What cannot fill in is inf; clamped, it still comes before the approximators of other actions.
    return torch.where(fitting, weighed.clamp(max=10 * UNKNOWN), torch.inf).min(1).indices


# Prices of many, asked at once: of requests at steps of their own, or of all sites of one call. Every number is what it
# would be alone.


class AskedSite(NamedTuple):
    """A site that is to be priced, before it is computed."""

    run: Run
    state: SiteState
    histories: Histories
    """Those of the branch that is called."""


def kind_of(config: Config, asked: AskedSite) -> Hashable:
    """What those that are priced together have alike; None for who is priced alone."""
    run, state, histories = asked
    if type(config.estimator) is not Amplitude or config.judged_by_others or run.sums.shared:
        return None
    if state.depth is not None and state.depth < config.depth:
        return None
    timetable, remembered = run.step.timetable, (len(histories.outputs.sigmas), len(histories.outputs.values))
    walks = timetable is not None and timetable.random
    return *map(id, config.approximators), config.estimator, remembered, walks, run.step.half_log_snr is None


def priced_together(config: Config, asked: Sequence[AskedSite]) -> tuple[Laws, Priced]:
    """Of some of one kind: laws and prices, (n * B, ...), one upon the other."""
    runs, samples = [each.run for each in asked], [each.run.samples for each in asked]
    past_times = [each.histories.outputs.times[:, :n] for each, n in zip(asked, samples, strict=True)]
    times, time = torch.cat(past_times, dim=1), per_row([run.time for run in runs], samples)
    walks = runs[0].step.timetable is not None and runs[0].step.timetable.random
    growth = growths(config.approximators, times, time, random=walks)
    weighed = weights(config.approximators, times, time, torch.cat([guidance_of(run) for run in runs]))
    typical = [typical_error(run.step) for run in runs]
    usual = None if typical[0] is None else per_row([each for each in typical if each is not None], samples)[:, None]
    seen = Evidence(growth, time, time, usual)  # type: ignore[arg-type]  # one number a row; innovations: not read
    amplitudes = Amplitudes(*(torch.cat(each) for each in zip(*(a.state.estimator for a in asked), strict=True)))
    standing = upon_each_other([standing_of(each.run, each.state) for each in asked], samples)
    price = priced(config.actions, standing, growth, weighed, config.estimator.predict(seen, amplitudes))
    return (growth, weighed), price


# What that means for approximators and rows.


def approximators_to_fill(state: SiteState) -> list[int]:
    """Those that fill in at this step."""
    return [] if state.judgement is None else sorted(set(state.judgement.best.tolist()))


def rows_to_compute(config: Config, run: Run, state: SiteState, branch: str) -> Rows | None:
    """Which rows of a branch compute at a site, (R,) bool; None for all. A branch with too short a past computes
    whatever was decided.
    """
    return rows_at_sites(config, run, [state], branch)[0]


def rows_at_sites(config: Config, run: Run, states: Sequence[SiteState], branch: str) -> list[Rows | None]:
    """The same of several, worked out at once."""
    rows: list[Rows | None] = [None] * len(states)
    decided = {
        i: (state.judgement, state.histories[branch].outputs.sigmas)
        for i, state in enumerate(states)
        if run.samples and state.judgement is not None and branch in state.histories
    }
    if not decided:
        return rows
    judgements, sigmas = zip(*decided.values(), strict=True)
    needs = config.needs[_stacked([judgement.best for judgement in judgements])]
    computed, chunks = _stacked([j.computed for j in judgements]), sigmas[0].shape[1] // run.samples
    if chunks > 1:  # a batch of one branch, as nearly always, needs no repetition
        needs, computed = needs.repeat(1, chunks), computed.repeat(1, chunks)
    computed = computed | (_stacked([each.isfinite().sum(0) for each in sigmas]) < needs)
    for i, own, every in zip(decided, computed, computed.all(1).tolist(), strict=True):
        rows[i] = None if every else own
    return rows


def _stacked(rows: Sequence[Rows]) -> Grid:
    return rows[0][None] if len(rows) == 1 else torch.stack(list(rows))


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
