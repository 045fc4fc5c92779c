"""What is known when a step is decided, put together for the estimator: error laws along the run's natural time, what
the probe measured, and the approximators' guesses where an estimator asks for them.
"""

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Now, Past
from dicache.approximators.linear import Extrapolate, extrapolate
from dicache.config import Config
from dicache.estimators.base import Evidence
from dicache.planning.error_law import turning
from dicache.runtime.run_state import Run
from dicache.tensors.mac_meter import Meter
from dicache.tensors.norms import relative_change
from dicache.types import Rows


def nothing(config: Config, run: Run, feature: Tensor | None = None) -> Evidence:
    """Of a site that was never computed, or that nobody had to decide."""
    unknown = torch.full((run.samples,), torch.nan, dtype=torch.float64)
    return Evidence(
        growth=unknown[:, None].expand(-1, len(config.approximators)),
        innovation=unknown,
        innovation_growth=unknown,
        step=run.step,
        guidance=run.guided.strength,
        weaker=run.weaker,
        latent=run.latent[: run.samples],
        feature=None if feature is None else feature[: run.samples],
    )


def gather(config: Config, run: Run, meter: Meter, past: Past | None, now: Now) -> Evidence:
    """Of one site, before it is computed in the step's first call; `past` is that of the branch that is called, None
    where it was never computed.
    """
    course, step, bare = run.step.course, run.step, nothing(config, run, now.feature)
    if past is None:
        return bare
    times, time = past.outputs.sigmas[:, : run.samples], step.sigma
    if course is not None:
        times, time = course.along(times), course.balances[step.index]
    known = bare._replace(
        growth=torch.stack([_growth(a, times, time) for a in config.approximators], dim=1),
        typical=None if course is None else turning(time),
        guess=lambda form: _guess(config, run, meter, past, now, form),
    )
    if not config.estimator.reads_innovation or now.feature is None or len(past.features.values) < 2:
        return known
    moved = relative_change(extrapolate(past.features, step.sigma), now.feature)[: run.samples].double().cpu()
    features = past.features.sigmas[:, : run.samples]
    features = features if course is None else course.along(features)
    return known._replace(innovation=moved, innovation_growth=Extrapolate().growth(features, time))


def _growth(approximator: Approximator, times: Tensor, time: float) -> Rows:
    """nan where the history is too short, or was kept short to save memory."""
    if len(times) < approximator.needs:
        return torch.full(times.shape[1:], torch.nan, dtype=torch.float64)
    return approximator.growth(times, time)


def _guess(config: Config, run: Run, meter: Meter, past: Past, now: Now, form: int) -> Tensor | None:
    guess = guesses(config, meter, past, now, [form]).get(form)
    return None if guess is None else guess[: run.samples]


def guesses(config: Config, meter: Meter, past: Past, now: Now, forms: Iterable[int]) -> dict[int, Tensor]:
    """What these approximators guess, (R, ...) each, where the history is long enough; their matrix products booked."""
    return {
        i: _counted(config.approximators[i], meter, past, now)
        for i in forms
        if len(past.outputs.values) >= config.approximators[i].needs
    }


def _counted(form: Approximator, meter: Meter, past: Past, now: Now) -> Tensor:
    if not form.multiplies:
        return form.guess(past, now)
    return meter.added(guessing(form, now.site), lambda: form.guess(past, now))


def guessing(form: Approximator, site: str) -> Hashable:
    """What the guesses of one approximator at one site are booked under."""
    return type(form).__name__, id(form), site


def known(past: Past, needs: Rows) -> Rows:
    """Which rows have the `needs` values, (R,) each, that their approximator reads."""
    return past.outputs.sigmas.isfinite().sum(0) >= needs
