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
from dicache.runtime.run_state import Judgement, Place, Run
from dicache.types import Action, Decision, Grid, Quote, Reason, Rows


def judge(config: Config, run: Run, place: Place, evidence: Evidence) -> None:
    """Decide for one site."""
    predicted = _predicted(config, place, evidence)
    quote = quoted(config, run, place, predicted)
    before = place.controller
    decision, place.controller = place.rule.decide(quote, run.step, before)
    place.judgement = Judgement(evidence, predicted, decision, quote, before, filling(config, predicted, decision))


def judge_together(config: Config, run: Run, evidences: list[Evidence]) -> None:
    """One decision for all sites, on the mean of what is predicted of them; the first one's rule takes it."""
    grids = [_predicted(config, place, evidence) for evidence, place in zip(evidences, run.places, strict=True)]
    first, mean = run.places[0], torch.stack(grids).mean(0)
    quote, before = quoted(config, run, first, mean), first.controller
    decision, first.controller = first.rule.decide(quote, run.step, before)
    best = filling(config, mean, decision)
    for place, evidence in zip(run.places, evidences, strict=True):
        place.judgement = Judgement(evidence, mean, decision, quote, before, best)


def reject(run: Run, place: Place, samples: Rows) -> None:
    """Decide again, from the state before, with nothing known of `samples`, (B,) bool: what their rule then remembers
    is that they computed.
    """
    judged = place.judgement
    assert judged is not None
    decision, place.controller = place.rule.decide(refused(judged.quote, samples), run.step, judged.before)
    judged.decision = decision._replace(
        action=torch.where(samples[:, None], int(Action.COMPUTE), decision.action),
        reason=torch.where(samples[:, None], int(Reason.REJECTED), decision.reason),
    )


def _predicted(config: Config, place: Place, evidence: Evidence) -> Grid:
    """inf for approximators that read more values than are kept."""
    predicted = config.estimator.predict(evidence, place.estimator)
    if place.depth is None:
        return predicted
    return predicted.masked_fill(torch.tensor([a.needs > place.depth for a in config.approximators]), torch.inf)


def quoted(config: Config, run: Run, place: Place, predicted: Grid) -> Quote:
    error, best = predicted.min(1)
    unknown = torch.full_like(error, torch.nan)
    scale = unknown if run.scale is None else run.scale
    share = (1.0 if place.site.whole else unknown) if place.share is None else place.share
    guidance = torch.ones_like(error) if run.guided.strength is None else run.guided.strength
    cost = (error * share * run.step.coefficient * scale * remaining(guidance)).nan_to_num(torch.inf, torch.inf)
    actions = torch.tensor([int(a.action) for a in config.approximators])
    return Quote(error, cost, actions[best], run.guided.strength, run.weaker)


def filling(config: Config, predicted: Grid, decision: Decision) -> Rows:
    """The approximator with the least predicted error, (B,): of those of the action that was decided on, which need not
    be the one proposed; of all where it computes.
    """
    actions = torch.tensor([int(a.action) for a in config.approximators])
    fitting = actions == decision.action
    fitting = fitting | ~fitting.any(1, keepdim=True)
    return torch.where(fitting, predicted.clamp(max=1e300), torch.inf).min(1).indices


def computing(config: Config, run: Run, place: Place, branch: str) -> Rows | None:
    """Which rows of a branch compute, (R,) bool; None for all. A branch with too short a past computes whatever was
    decided.
    """
    if run.samples == 0 or place.judgement is None or branch not in place.past:
        return None
    chunks = run.chunks(place.past[branch].rows)
    needs = torch.tensor([a.needs for a in config.approximators])[place.judgement.best].repeat(chunks)
    return place.judgement.computed.repeat(chunks) | ~known(place.past[branch], needs)


def realised(place: Place, sums: Grid, forms: int) -> Grid:
    """(B, A + 2) squares on the host to relative errors (B, A), nan where there was no guess; updates the share."""
    assert place.judgement is not None
    errors = (sums[:, :forms] / sums[:, forms : forms + 1]).sqrt()
    share = (sums[:, forms] / sums[:, forms + 1]).sqrt().nan_to_num(1.0, 1.0).clamp(max=1.0)
    kept = share if place.share is None else torch.where(place.judgement.computed, share, place.share)
    place.share = kept
    return errors
