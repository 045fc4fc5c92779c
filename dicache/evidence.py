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
    past, course, step = run.past.get(call.branch), run.step.course, run.step
    unknown = torch.full((run.samples,), torch.nan, dtype=torch.float64)
    bare = Evidence(
        growth=unknown[:, None].expand(-1, len(config.approximators)),
        innovation=unknown,
        innovation_growth=unknown,
        step=step,
        latent=run.latent[: run.samples],
        feature=None if call.feature is None else call.feature[: run.samples],
    )
    if past is None:
        return bare
    times, now = past.outputs.sigmas[:, : run.samples], step.sigma
    if course is not None:
        times, now = course.along(times), course.balances[step.index]
    known = bare._replace(
        growth=torch.stack([a.growth(times, now) for a in config.approximators], dim=1),
        typical=None if course is None else turning(now),
        guess=lambda form: _guess(config, run, call, past, form),
    )
    if call.feature is None or len(past.features.values) < 2:
        return known
    innovation = relative_change(extrapolate(past.features, step.sigma), call.feature)[: run.samples].double().cpu()
    return known._replace(innovation=innovation, innovation_growth=Extrapolate().growth(times, now))


def nothing(config: Config, run: Run) -> Evidence:
    """Of a step that nobody had to decide."""
    return gather(config, run, Call("", 0, (), run.latent.device))


def _guess(config: Config, run: Run, call: Call, past: Past, form: int) -> Tensor | None:
    approximator = config.approximators[form]
    if len(past.outputs.values) < approximator.needs:
        return None
    return approximator.guess(past, now_of(run, call))[: run.samples]


def known(past: Past, needs: Rows) -> Rows:
    """Which rows have the `needs` values, (R,) each, that their approximator reads."""
    return past.outputs.sigmas.isfinite().sum(0) >= needs
