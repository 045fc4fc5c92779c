"""A step is over: learn from what was computed, and note down what happened."""

import torch
from torch import Tensor

from dicache.config import Config
from dicache.errors import UnsupportedModelError
from dicache.runtime.decide import decide_site, realised
from dicache.runtime.evidence import nothing
from dicache.runtime.guidance import samples_of
from dicache.runtime.run_state import Run, SiteState
from dicache.runtime.trace import Record
from dicache.types import Grid, Rows


def end_step(config: Config, run: Run, after: Tensor | None) -> None:
    """`after` is the next step's latent, if there is one."""
    if run.samples == 0:
        samples = _samples(run, after)
        controllers = [state.rule.init(samples) for state in run.states]
        run.samples = samples
        for state, controller in zip(run.states, controllers, strict=True):
            state.controller = controller
        _forget(config, run)
    errors = _errors(config, run)
    for state, error in zip(run.states, errors, strict=True):
        _learn(config, run, state, error)
    run.records.append(_record(run, errors))
    if run.guided.changed:
        _forget(config, run)
    elif run.guided.mixture is None and after is not None:
        run.know_mixture(run.guided.fitted(run.latent[: run.samples], after[: run.samples]))


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


def _errors(config: Config, run: Run) -> list[Grid]:
    """What every approximator would have been wrong by at every site, (B, A) each; nan where that is not known. The
    host waits for the device here.
    """
    n_approximators = len(config.approximators)
    for state in run.states:
        if state.judgement is None:  # nobody had to decide
            decide_site(config, run, state, nothing(config, run))
    unknown = [torch.full((run.samples, n_approximators), torch.nan, dtype=torch.float64) for _ in run.states]
    computed = torch.stack([state.judgement.computed for state in run.states if state.judgement]).any(0)
    if not run.guided.complete or not bool(computed.any()):
        return unknown
    measured, scale = run.guided.measure(run.latent[: run.samples], run.step.clean, n_approximators)
    run.scale = scale if run.scale is None else torch.where(computed, scale, run.scale)
    if not run.states[0].site.inside_denoiser:
        run.states[0].value = run.guided.truth
        return [measured]
    known = [state for state in run.states if state.sums is not None]
    if not known:
        return unknown
    sums = torch.stack([state.sums for state in known if state.sums is not None]).double().cpu()
    found = {id(state): realised(state, grid, n_approximators) for state, grid in zip(known, sums, strict=True)}
    return [found.get(id(state), none) for state, none in zip(run.states, unknown, strict=True)]


def _learn(config: Config, run: Run, state: SiteState, errors: Grid) -> None:
    judged = state.judgement
    assert judged is not None
    evidence = judged.evidence._replace(output=state.value)
    ratio = (errors / judged.predicted).gather(1, judged.best[:, None])[:, 0]
    state.controller = state.rule.settle(ratio, judged.computed, state.controller)
    if state.depth != 0:
        state.estimator = config.estimator.observe(errors, evidence, judged.computed, state.estimator)


def _forget(config: Config, run: Run) -> None:
    """The branches are not those that were learned about: nothing is known of the errors of their mixture."""
    run.forget_mixture()
    for state in run.states:
        state.estimator, state.share = config.estimator.init(run.samples, len(config.approximators)), None


def _record(run: Run, errors: list[Grid]) -> Record:
    """Of several sites the worst prediction and error; what was spent adds up in squares."""
    judged = [state.judgement for state in run.states if state.judgement is not None]
    chosen = [error.gather(1, j.best[:, None])[:, 0] for error, j in zip(errors, judged, strict=True)]
    real = torch.stack([torch.where(j.computed, e, torch.nan) for e, j in zip(chosen, judged, strict=True)], dim=1)
    spent = torch.stack([j.decision.spent for j in judged], dim=1)
    return Record(
        index=run.step.index,
        sigma=run.step.sigma,
        branches=tuple(run.guided.outputs),
        action=torch.cat([j.decision.action for j in judged], dim=1),
        reason=torch.cat([j.decision.reason for j in judged], dim=1),
        predicted=torch.stack([j.predicted.min(1).values for j in judged], dim=1).amax(1),
        realised=_worst(real),
        spent=spent[:, 0] if len(judged) == 1 else spent.square().sum(1).sqrt(),
    )


def _worst(errors: Grid) -> Rows:
    """(B, S) to (B,): the largest that is known."""
    worst = errors.nan_to_num(-torch.inf, torch.inf).amax(1)
    return torch.where(worst == -torch.inf, torch.nan, worst)
