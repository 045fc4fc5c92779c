"""What is known when a step is decided, put together for the estimator: error laws along the run's natural time, what
the probe measured, and the approximators' guesses where an estimator asks for them.
"""

import torch
from torch import Tensor

from dicache.approximators.base import Now, Past
from dicache.approximators.linear import Extrapolate, extrapolate
from dicache.config import Config
from dicache.estimators.base import Evidence
from dicache.law import turning
from dicache.norms import relative_change
from dicache.run import Call, Run
from dicache.types import Rows


def now_of(run: Run, call: Call) -> Now:
    return Now(run.step.sigma, call.feature, run.latent, run.step.noise, run.step.course)


def gather(config: Config, run: Run, call: Call) -> Evidence:
    """Before the step's first call is computed."""
    past, course = run.past.get(call.branch), run.step.course
    unknown = torch.full((run.samples,), torch.nan, dtype=torch.float64)
    seen = {"step": run.step, "latent": run.latent[: run.samples], "feature": _first(call.feature, run.samples)}
    if past is None:
        return Evidence(unknown[:, None].expand(-1, len(config.approximators)), unknown, unknown, **seen)
    times, now = past.outputs.sigmas[:, : run.samples], run.step.sigma
    if course is not None:
        times, now = course.along(times), course.balances[run.step.index]
    growth = torch.stack([a.growth(times, now) for a in config.approximators], dim=1)
    seen |= {"typical": None if course is None else turning(now)}
    seen |= {"guess": lambda form: _guess(config, run, call, past, form)}
    if call.feature is None or len(past.features.values) < 2:
        return Evidence(growth, unknown, unknown, **seen)
    innovation = relative_change(extrapolate(past.features, run.step.sigma), call.feature)[: run.samples]
    return Evidence(growth, innovation.double().cpu(), Extrapolate().growth(times, now), **seen)


def nothing(config: Config, run: Run) -> Evidence:
    """Of a step that nobody had to decide."""
    return gather(config, run, Call("", 0, (), run.latent.device))


def _first(feature: Tensor | None, samples: int) -> Tensor | None:
    return None if feature is None else feature[:samples]


def _guess(config: Config, run: Run, call: Call, past: Past, form: int) -> Tensor | None:
    approximator = config.approximators[form]
    if len(past.outputs.values) < approximator.needs:
        return None
    return approximator.guess(past, now_of(run, call))[: run.samples]


def known(past: Past, needs: Rows) -> Rows:
    """Which rows have the `needs` values, (R,) each, that their approximator reads."""
    return past.outputs.sigmas.isfinite().sum(0) >= needs
