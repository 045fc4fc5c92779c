"""What is known when a step is decided, put together for the estimator: error laws along the run's natural time, what
the probe measured, and the approximators' guesses where an estimator asks for them.
"""

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.linear import Extrapolate, extrapolate
from dicache.config import Config
from dicache.estimators.base import Evidence
from dicache.planning.error_law import error_rate
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
        latent=run.latent[: run.samples],
        feature=None if feature is None else feature[: run.samples],
    )


def gather(config: Config, run: Run, meter: Meter, histories: Histories | None, target: Target) -> Evidence:
    """Of one site, before it is computed in the step's first call; `histories` is that of the branch that is called,
    None where it was never computed.
    """
    timetable, step, bare = run.step.timetable, run.step, nothing(config, run, target.feature)
    if histories is None:
        return bare
    times, time = histories.outputs.sigmas[:, : run.samples], step.sigma
    if timetable is not None:
        times, time = timetable.half_log_snrs_at(times), timetable.half_log_snrs[step.index]
    known = bare._replace(
        growth=torch.stack([_growth(a, times, time) for a in config.approximators], dim=1),
        typical=None if timetable is None else error_rate(time) * timetable.gain(step.index),
        guess=lambda form: _guess(config, run, meter, histories, target, form),
    )
    if not config.estimator.reads_innovation or target.feature is None or len(histories.features.values) < 2:
        return known
    moved = relative_change(extrapolate(histories.features, step.sigma), target.feature)[: run.samples].double().cpu()
    features = histories.features.sigmas[:, : run.samples]
    features = features if timetable is None else timetable.half_log_snrs_at(features)
    return known._replace(innovation=moved, innovation_growth=Extrapolate().growth(features, time))


def _growth(approximator: Approximator, times: Tensor, time: float) -> Rows:
    """nan where the history is too short, or was kept short to save memory."""
    if len(times) < approximator.needs:
        return torch.full(times.shape[1:], torch.nan, dtype=torch.float64)
    return approximator.growth(times, time)


def _guess(config: Config, run: Run, meter: Meter, histories: Histories, target: Target, form: int) -> Tensor | None:
    guess = guesses(config, meter, histories, target, [form]).get(form)
    return None if guess is None else guess[: run.samples]


def guesses(
    config: Config, meter: Meter, histories: Histories, target: Target, wanted: Iterable[int]
) -> dict[int, Tensor]:
    """What these approximators guess, (R, ...) each, where the history is long enough; their matrix products booked."""
    return {
        i: _counted(config.approximators[i], meter, histories, target)
        for i in wanted
        if len(histories.outputs.values) >= config.approximators[i].needs
    }


def _counted(form: Approximator, meter: Meter, histories: Histories, target: Target) -> Tensor:
    if not form.multiplies:
        return form.guess(histories, target)
    return meter.added(guessing(form, target.site), lambda: form.guess(histories, target))


def guessing(form: Approximator, site: str) -> Hashable:
    """What the guesses of one approximator at one site are booked under."""
    return type(form).__name__, id(form), site


def known(histories: Histories, needs: Rows) -> Rows:
    """Which rows have the `needs` values, (R,) each, that their approximator reads."""
    return histories.outputs.sigmas.isfinite().sum(0) >= needs
