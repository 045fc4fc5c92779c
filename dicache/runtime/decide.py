"""Asking estimator and controller about one site of one step.

    cost = e * share * |h| * ||v|| / ||x_N|| * k(guidance)

is what skipping would add to the final latent: e the estimator's relative error of the site's value, `share` how much
of the stream it is (1 for a whole evaluation), h the solver's coefficient, the rest as in `dicache.planning.error_law`.
Without calibration nothing better is known of how far a block's error reaches the output.
"""

import torch

from dicache.config import Config
from dicache.controllers.base import refused
from dicache.estimators.base import Evidence
from dicache.planning.error_law import remaining
from dicache.runtime.evidence import known
from dicache.runtime.run_state import Judgement, Run, SiteState
from dicache.types import Action, Decision, Grid, Quote, Reason, Rows


def decide_site(config: Config, run: Run, state: SiteState, evidence: Evidence) -> None:
    """Decide for one site."""
    predicted = _predicted(config, state, evidence)
    quote = price_of(config, run, state, predicted)
    before = state.controller
    decision, state.controller = state.rule.decide(quote, run.step, before)
    state.judgement = Judgement(
        evidence, predicted, decision, quote, before, choose_approximator(config, predicted, decision)
    )


def decide_together(config: Config, run: Run, evidences: list[Evidence]) -> None:
    """One decision for all sites, on the mean of what is predicted of them; the first one's rule takes it."""
    grids = [_predicted(config, state, evidence) for evidence, state in zip(evidences, run.states, strict=True)]
    first, mean = run.states[0], torch.stack(grids).mean(0)
    quote, before = price_of(config, run, first, mean), first.controller
    decision, first.controller = first.rule.decide(quote, run.step, before)
    best = choose_approximator(config, mean, decision)
    for state, evidence in zip(run.states, evidences, strict=True):
        state.judgement = Judgement(evidence, mean, decision, quote, before, best)


def reject(run: Run, state: SiteState, samples: Rows) -> None:
    """Decide again, from the state before, with nothing known of `samples`, (B,) bool: what their rule then remembers
    is that they computed.
    """
    judged = state.judgement
    assert judged is not None
    decision, state.controller = state.rule.decide(refused(judged.quote, samples), run.step, judged.before)
    judged.decision = decision._replace(
        action=torch.where(samples[:, None], int(Action.COMPUTE), decision.action),
        reason=torch.where(samples[:, None], int(Reason.REJECTED), decision.reason),
    )


def _predicted(config: Config, state: SiteState, evidence: Evidence) -> Grid:
    """inf for approximators that read more values than are kept."""
    predicted = config.estimator.predict(evidence, state.estimator)
    if state.depth is None:
        return predicted
    return predicted.masked_fill(torch.tensor([a.needs > state.depth for a in config.approximators]), torch.inf)


def price_of(config: Config, run: Run, state: SiteState, predicted: Grid) -> Quote:
    error, best = predicted.min(1)
    unknown = torch.full_like(error, torch.nan)
    scale = unknown if run.scale is None else run.scale
    share = (unknown if state.site.inside_denoiser else 1.0) if state.share is None else state.share
    guidance = torch.ones_like(error) if run.guided.strength is None else run.guided.strength
    cost = (error * share * run.step.coefficient * scale * remaining(guidance)).nan_to_num(torch.inf, torch.inf)
    cost = torch.where(cost > 0, cost, torch.inf)  # what seems to cost nothing is not known
    actions = torch.tensor([int(a.action) for a in config.approximators])
    return Quote(error, cost, actions[best], run.facts)


def choose_approximator(config: Config, predicted: Grid, decision: Decision) -> Rows:
    """The approximator with the least predicted error, (B,): of those of the action that was decided on, which need not
    be the one proposed; of all where it computes.
    """
    actions = torch.tensor([int(a.action) for a in config.approximators])
    fitting = actions == decision.action
    fitting = fitting | ~fitting.any(1, keepdim=True)
    return torch.where(fitting, predicted.clamp(max=1e300), torch.inf).min(1).indices


def rows_to_compute(config: Config, run: Run, state: SiteState, branch: str) -> Rows | None:
    """Which rows of a branch compute, (R,) bool; None for all. A branch with too short a past computes whatever was
    decided.
    """
    if run.samples == 0 or state.judgement is None or branch not in state.histories:
        return None
    chunks = run.chunks(state.histories[branch].rows)
    needs = torch.tensor([a.needs for a in config.approximators])[state.judgement.best].repeat(chunks)
    return state.judgement.computed.repeat(chunks) | ~known(state.histories[branch], needs)


def realised(state: SiteState, sums: Grid, n_approximators: int) -> Grid:
    """(B, A + 2) squares on the host to relative errors (B, A), nan where there was no guess; updates the share."""
    assert state.judgement is not None
    errors = (sums[:, :n_approximators] / sums[:, n_approximators : n_approximators + 1]).sqrt()
    share = (sums[:, n_approximators] / sums[:, n_approximators + 1]).sqrt().nan_to_num(1.0, 1.0).clamp(max=1.0)
    surviving_share = share if state.share is None else torch.where(state.judgement.computed, share, state.share)
    state.share = surviving_share
    return errors
