"""Where a run stands, read off the host: the scheduler's own index and sigmas. No step count from the user, no
synchronisation.

A `Timeline` is worked out once per run. With x' = .. + h v for one solver step, v the denoiser's output:

    flow matching              h = sigma' - sigma                          final latent ~ x - sigma v
    variance preserving, eps   h = (sigma' - alpha' sigma / alpha) / alpha'   final latent ~ (x - sigma v) / alpha
    variance exploding, eps    h = sigma' - sigma                          final latent ~ sqrt(1 + sigma^2) x - sigma v

where x is what the denoiser sees. Flow sigmas above 1 are those of the latent, which such a pipeline divides by
1 + sigma for the denoiser: in its eyes they are sigma / (1 + sigma), and h = (sigma' - sigma) / (1 + sigma). Outputs
that predict v or the sample are turned into eps first. h is the coefficient in units of the final latent (the solver's
linear part carries an error at alpha' to 1 / alpha' of itself at the end). For multistep solvers it is the first-order
coefficient. Where nothing is known of the scheduler, every step counts the same.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from dicache.types import Step, Timetable

_SOLVING = (
    "algorithm_type",
    "clip_sample",
    "final_sigmas_type",
    "lower_order_final",
    "predict_x0",
    "prediction_type",
    "solver_order",
    "solver_type",
    "stochastic_sampling",
    "thresholding",
)


class Timeline(NamedTuple):
    """A run's course and, per step, the estimates of the final latent and of the noise."""

    timetable: Timetable
    clean: tuple[tuple[float, float], ...]
    noise: tuple[tuple[float, float], ...]

    def reading(self, run: object, index: int) -> "Reading":
        sigmas, coefficients, _, begin = self.timetable[:4]
        index = min(index, len(sigmas) - 1)
        whole = sum(coefficients[begin:]) or 1.0
        progress, share = sum(coefficients[begin : index + 1]) / whole, coefficients[index] / whole
        here = (sigmas[index], coefficients[index], progress, self.clean[index], self.noise[index])
        return Reading(
            run, Step(index, len(sigmas), *here, self.timetable if self.timetable.half_log_snrs else None), share
        )


class Reading(NamedTuple):
    run: object
    """Changes identity with every run: the scheduler's timesteps, or None for a bare module."""
    step: Step
    share: float
    """What this step adds to the progress."""


class SchedulerClock:
    """Reads the scheduler a pipeline has at this moment."""

    def __init__(self, scheduler: Callable[[], Any]) -> None:
        self.scheduler = scheduler
        self.run: object = None
        self.timeline = Timeline(Timetable((), (), (), 0), (), ())

    def read(self, timestep: torch.Tensor | float | None) -> Reading:
        scheduler = self.scheduler()
        if self.run is not scheduler.timesteps:
            self.run, found = scheduler.timesteps, timeline(scheduler)
            self.timeline = found._replace(timetable=found.timetable._replace(solver=solver(scheduler)))
        return self.timeline.reading(self.run, self._index(scheduler, timestep))

    def _index(self, scheduler: Any, timestep: torch.Tensor | float | None) -> int:  # noqa: ANN401
        if not hasattr(scheduler, "step_index"):
            return _nearest(scheduler.timesteps, _number(timestep))
        index = scheduler.step_index if scheduler.step_index is not None else scheduler.begin_index
        return _first(scheduler, _number(timestep)) if index is None else int(index)


class TimestepClock:
    """For a bare module: time is the timestep it is called with, or what is left of it until `ends` where timesteps
    rise. More time than there was begins a new run.
    """

    def __init__(self, ends: float | None = None) -> None:
        self.ends = ends
        self.first = self.last = self.stride = math.nan
        self.index = 0

    def read(self, timestep: torch.Tensor | float | None) -> Reading:
        now = _number(timestep) if self.ends is None else self.ends - _number(timestep)
        if not now <= self.last:
            self.first, self.stride, self.index = now or math.nan, math.nan, 0
        elif now < self.last:
            self.stride, self.index = self.last - now, self.index + 1
        self.last = now
        share = self.stride / self.first
        total = self.index + max(1, round(now / self.stride)) if self.stride > 0 else self.index + 1
        progress = 1 - max(now - self.stride, 0.0) / self.first if self.stride > 0 else 0.0
        return Reading(
            None, Step(self.index, total, now, share, progress, (1.0, 0.0)), progress if self.index == 0 else share
        )


def _number(timestep: torch.Tensor | float | None) -> float:
    """The timestep as a host number; this waits for the device, so schedulers with an index never come here."""
    if timestep is None:
        return math.nan
    return float(timestep.flatten()[0]) if isinstance(timestep, torch.Tensor) else float(timestep)


def _nearest(timesteps: torch.Tensor, timestep: float) -> int:
    return int((timesteps.detach().cpu().double() - timestep).abs().argmin())


def _first(scheduler: Any, timestep: float) -> int:  # noqa: ANN401
    """Where a run begins of which the scheduler has made no step: at `timestep`, counted as the scheduler does or as
    models want it, from 0 to 1 or forwards; at the first step where it is none of these.
    """
    known, last = scheduler.timesteps.detach().cpu().double(), scheduler.config.get("num_train_timesteps", 1000)
    time = timestep * last if timestep <= 1 else timestep
    for meant in (time, last - time):
        distances = (known - meant).abs() / known.abs().clamp(min=1.0)
        if float(distances.min()) < 0.005:  # half precision included
            return int(distances.argmin())
    return 0


def solver(scheduler: Any) -> str:  # noqa: ANN401
    """The scheduler's class with the options that change what it does at the same sigmas."""
    options = {name: scheduler.config[name] for name in _SOLVING if scheduler.config.get(name) is not None}
    return f"{type(scheduler).__name__}({', '.join(f'{name}={value}' for name, value in options.items())})"


def timeline(scheduler: Any) -> Timeline:  # noqa: ANN401
    """The timeline of a scheduler whose `set_timesteps` has been called."""
    config = scheduler.config
    prediction = config.get("prediction_type", "epsilon")
    begin = int(getattr(scheduler, "begin_index", None) or 0)
    times = torch.as_tensor(scheduler.timesteps).tolist()  # one wait for the device, once per run
    if (
        type(scheduler).__name__.startswith("FlowMatch")
        or prediction == "flow_prediction"
        or config.get("use_flow_sigmas", False)
    ):
        sigmas = [*torch.as_tensor(scheduler.sigmas).tolist(), 0.0][: len(times) + 1]
        gaps = _gaps(sigmas)
        if sigmas[0] > 1.0:
            gaps = tuple(gap / (1 + s) for gap, s in zip(gaps, sigmas, strict=False))
            sigmas = [s / (1 + s) for s in sigmas]
        timetable = Timetable(tuple(sigmas[:-1]), gaps, tuple(_half_log_snr(1 - s, s) for s in sigmas[:-1]), begin)
        return Timeline(timetable, tuple((1.0, -s) for s in sigmas[:-1]), tuple((1.0, 1.0 - s) for s in sigmas[:-1]))
    if hasattr(scheduler, "is_scale_input_called"):
        sigmas = [*torch.as_tensor(scheduler.sigmas).tolist(), 0.0][: len(times) + 1]
        timetable = Timetable(tuple(times), _gaps(sigmas), tuple(_half_log_snr(1, s) for s in sigmas[:-1]), begin)
        return Timeline(timetable, tuple((math.sqrt(1 + s * s), -s) for s in sigmas[:-1]), ((0.0, 1.0),) * len(times))
    alphas = _alphas(scheduler, times)
    if alphas is None:
        timetable = Timetable(tuple(times), (1 / len(times),) * len(times), (), begin)
        return Timeline(timetable, ((1.0, 0.0),) * len(times), ((0.0, 1.0),) * len(times))
    return _variance_preserving(times, alphas, prediction, begin)


def _half_log_snr(signal: float, noise: float) -> float:
    """log(signal / noise), both softened by 0.02 of their sum: pure noise has a finite place."""
    soft = 0.02 * (signal + noise)
    return math.log((signal + soft) / (noise + soft))


def _gaps(sigmas: Sequence[float]) -> tuple[float, ...]:
    return tuple(abs(b - a) for a, b in pairwise(sigmas))


def _alphas(scheduler: Any, times: list[float]) -> list[float] | None:  # noqa: ANN401
    """alpha per step and 1 at the end."""
    if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) > len(times):
        return [1 / math.sqrt(1 + float(s) ** 2) for s in scheduler.sigmas[: len(times) + 1]]
    if hasattr(scheduler, "alphas_cumprod"):
        last = len(scheduler.alphas_cumprod) - 1
        return [math.sqrt(float(scheduler.alphas_cumprod[min(int(t), last)])) for t in times] + [1.0]
    return None


def _variance_preserving(times: list[float], alphas: list[float], prediction: str, begin: int) -> Timeline:
    coefficients, clean, noise, half_log_snrs = [], [], [], []
    for alpha, after in pairwise(alphas):
        sigma, sigma_after = math.sqrt(1 - alpha * alpha), math.sqrt(max(0.0, 1 - after * after))
        per_eps = abs(sigma_after - after * sigma / alpha) / after
        slope = {"v_prediction": alpha, "sample": alpha / max(sigma, 1e-6)}.get(prediction, 1.0)
        coefficients.append(per_eps * slope)
        clean.append(
            {"v_prediction": (alpha, -sigma), "sample": (0.0, 1.0)}.get(prediction, (1 / alpha, -sigma / alpha))
        )
        noise.append(
            {"v_prediction": (sigma, alpha), "sample": (1 / max(sigma, 1e-6), -alpha / max(sigma, 1e-6))}.get(
                prediction, (0.0, 1.0)
            )
        )
        half_log_snrs.append(_half_log_snr(alpha, sigma))
    return Timeline(
        Timetable(tuple(times), tuple(coefficients), tuple(half_log_snrs), begin), tuple(clean), tuple(noise)
    )
