"""What is known of a run before it begins, worked out once from how its scheduler plays (`dicache.solvers.play`).

Per step, in units of the final latent:

    coefficient     how far the step's outputs reach (`dicache.solvers.output_influence`), together; never less than
                    half of what the step goes on the straight path: an output that hardly counts in the end still
                    decides what the next call sees
    half log SNR    the time in which models turn evenly
    clean, noise    what to take of latent and output, as the denoiser sees and gives them, for the data and the noise
                    in them. With a latent c (a x_0 + s eps) and an output d x_0 + e eps
                    x_0 = (e x / c - s v) / (a e - s d),    eps = (a v - d x / c) / (a e - s d);
                    where noise is drawn anew none of it stays, and the data takes its place

Several calls that a solver makes for one step are one step here. Where a scheduler cannot be played, is not linear, or
mixes latents that fit none of the predictions, nothing is known: no price is finite, and the reason is told.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from dicache.solvers.output_influence import reach, steps_of, undecided, velocity_gain
from dicache.solvers.play import LINEAR, NotPlayedError, Responses, play
from dicache.solvers.prediction import CLOSE, PREDICTIONS, Path, path_of
from dicache.types import Step, Timetable

TINY = 1e-9
CUTTING = ("clip_sample", "thresholding")
"""Options that cut predictions off."""
STRAIGHT = 1e-6
"""How far signal and noise may be from adding up to 1 on a straight path."""
DECIDING = 1.5
"""How much further early errors go off the straight path, where the noise still decides what will be seen: galaxies
(bench/models/galaxies.py) lost twice what was estimated without it.
"""
LEAST = 0.5
"""Share of a step's way that its outputs are worth at least."""


class Reading(NamedTuple):
    """Where one call stands."""

    run: object
    """Changes identity with every run: the scheduler's timesteps, or None for a bare module."""
    step: Step
    share: float
    """What this step adds to the progress."""
    part: int = 0
    """Which of the calls that the solver makes in this step it is."""


class Clock(Protocol):
    @property
    def reason(self) -> str:
        """Why no price is known of the run that was read last; empty where they are."""

    def read(self, timestep: Tensor | float | None) -> Reading: ...


class Timeline(NamedTuple):
    """A run's timetable and, per call, those before the run's first one included, the estimates of data and noise."""

    timetable: Timetable
    clean: tuple[tuple[float, float], ...]
    noise: tuple[tuple[float, float], ...]
    steps: tuple[int, ...]
    """The step that each call belongs to."""
    weights: tuple[tuple[float, ...], ...] = ()
    """Per step, as `dicache.types.Step.weights`; empty where each step makes one call."""
    solved: tuple[tuple[float, float], ...] = ()
    """Per step, as `dicache.types.Step.solved`; empty where that is not known."""
    alone: tuple[bool, ...] = ()
    """Per step, as `dicache.types.Step.alone`; empty for nowhere."""
    reason: str = ""
    """Why no price is known; empty where they are."""
    left: tuple[float, ...] = ()
    """Per step, as `dicache.types.Step.time_left`; empty where that is not known."""

    def reading(self, run: object, call: int) -> Reading:
        call = min(call, len(self.steps) - 1)
        index, timetable = self.steps[call], self.timetable
        first = self.steps.index(index)
        ways = [c * timetable.gain(i) for i, c in enumerate(timetable.coefficients)]
        total = sum(ways[timetable.begin :]) or 1.0
        step = Step(
            index,
            len(ways),
            timetable.sigmas[index],
            timetable.coefficients[index] if not self.reason else math.inf,
            sum(ways[timetable.begin : index + 1]) / total,
            self.clean[first],
            self.noise[call],
            timetable if timetable.half_log_snrs else None,
            self.weights[index] if self.weights else (1.0,),
            self.solved[index] if self.solved else None,
            bool(self.alone) and self.alone[index],
            timetable.half_log_snrs[index] if timetable.half_log_snrs else None,
            timetable.gain(index),
            self.left[index] if self.left else 1.0,
        )
        return Reading(run, step, ways[index] / total, call - first)


def timeline(
    scheduler: Any,  # noqa: ANN401
    begin: int = 0,
    end: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Timeline:
    """Of a scheduler whose `set_timesteps` was called, for a run of the calls from `begin` up to `end`; arguments as in
    `dicache.solvers.play`.
    """
    name = type(scheduler).__name__
    try:
        responses = play(scheduler, begin, end, options)
    except NotPlayedError as error:
        return _unknown(scheduler, begin, end, str(error))
    if not responses.bend < LINEAR:
        return _unknown(scheduler, begin, end, f"{name} is not linear: {_bent_by(scheduler, responses.bend)}")
    path = path_of(responses)
    if not path.miss < CLOSE:
        why = f"{name} mixes latents that are {path.miss:.1g} off those of any prediction"
        return _unknown(scheduler, begin, end, why)
    played = _played(responses, path, begin)
    return played._replace(left=_left(scheduler, responses.times, played, begin))


def _left(scheduler: Any, times: np.ndarray, played: Timeline, begin: int) -> tuple[float, ...]:  # noqa: ANN401
    """Of the time that the model was trained in, as papers count it; the share of noise where the scheduler's times are
    none of it.
    """
    trained, calls = scheduler.config.get("num_train_timesteps", 1000), played.steps[begin:]
    first = [times[calls.index(step)] for step in sorted(set(calls))]
    if all(0 <= time <= trained for time in first):
        return _padded(np.array(first) / trained, begin)
    return tuple(map(noise_share, played.timetable.half_log_snrs))


def _bent_by(scheduler: Any, bend: float) -> str:  # noqa: ANN401
    """What makes of a twice as large output something else than twice the change, and what to do."""
    cutting = [name for name in CUTTING if scheduler.config.get(name)]
    if not cutting:
        return f"twice the output is not twice the change of the latent, but up to {bend:.1g} of it off"
    options = " and ".join(f"{name}=True" for name in cutting)
    instead = ", ".join(f"{name}=False" for name in cutting)
    return f"it cuts large predictions off ({options}; if the model can do without, set {instead})"


def _played(responses: Responses, path: Path, begin: int) -> Timeline:
    if path.levels[0, 0] < 0:
        responses, path = _contracted(responses, path)
    path = path._replace(levels=_rounded(path.levels))
    steps, gains, shares = steps_of(responses, path), velocity_gain(path), path.levels[:, 1] / path.levels.sum(1)
    first = np.array([steps.index(step) for step in range(steps[-1] + 1)])
    ways = np.abs(np.diff(np.append(shares[first], shares[-1]))) / gains[first]
    straight = bool((np.abs(path.levels.sum(1) - 1) < STRAIGHT).all())
    reached = np.abs(np.add.reduceat(reach(responses, path), first))
    if responses.random:
        reached = np.maximum(reached, np.add.reduceat(undecided(responses, path), first))
    elif not straight:
        reached = reached * (1 + DECIDING * shares[first] ** 4)
    half_log_snrs = [half_log_snr(*path.levels[q]) for q in first]
    timetable = Timetable(
        _padded(path.levels[first, 1] if straight else half_log_snrs, begin),
        (0.0,) * begin + tuple(np.maximum(reached, LEAST * ways).tolist()),
        _padded(half_log_snrs, begin),
        begin,
        gains=_padded(gains[first], begin),
        random=responses.random,
    )
    clean, noise = (
        _padded(estimate, begin) for estimate in estimates(path.levels[:-1], path.mixtures, responses.scales)
    )
    noise = clean if responses.random else noise
    stretches = list(pairwise((*first.tolist(), len(steps))))
    weights, solved = zip(*(_solved(responses, *calls) for calls in stretches), strict=True)
    return Timeline(
        timetable,
        clean,
        noise,
        (*range(begin), *(begin + step for step in steps)),
        ((1.0,),) * begin + weights,
        ((math.nan, math.nan),) * begin + solved,
        (False,) * begin + tuple(_alone(responses, *calls) for calls in stretches),
    )


def _solved(responses: Responses, call: int, after: int) -> tuple[tuple[float, ...], tuple[float, float]]:
    """The weights of the calls of one step, and what it makes of its latent and their outputs together."""
    scales = np.append(responses.scales, 1.0)
    made = responses.outputs[after, call:after]
    total = float(made.sum())
    weights = made / total if abs(total) > TINY else np.full(after - call, 1 / (after - call))
    from_latent = responses.latents[after, call] * scales[after] / scales[call]
    return tuple(weights.tolist()), (float(from_latent), total * float(scales[after]))


def _alone(responses: Responses, call: int, after: int) -> bool:
    """Whether what earlier outputs do to the latent after a step is what they did to the step's own latent, and no
    noise is drawn.
    """
    passed_on = responses.latents[after, call] * responses.outputs[call, :call]
    return after == call + 1 and not responses.random and bool(np.allclose(responses.outputs[after, :call], passed_on))


def _contracted(responses: Responses, path: Path) -> tuple[Responses, Path]:
    """A flow whose sigmas lie above 1: pipelines hand the denoiser such a latent, x_0 + sigma eps, over 1 + sigma, and
    make noise of the velocity that it gives.
    """
    noise = path.levels[:, 1]
    units = 1 / (1 + noise)
    outputs = responses.outputs * units[:, None] * units[:-1]
    latents = responses.latents * units[:, None] / units[:-1]
    levels = np.stack([units, noise * units], axis=1)
    return responses._replace(outputs=outputs, latents=latents), path._replace(levels=levels)


def _rounded(levels: np.ndarray) -> np.ndarray:
    """Schedulers think in float32. On a straight path the signal is what the noise leaves."""
    noise = levels[:, 1].astype(np.float32).astype(float)
    straight = np.abs(levels.sum(1) - 1) < STRAIGHT
    return np.stack([np.where(straight, 1 - noise, levels[:, 0]), noise], axis=1)


def estimates(levels: np.ndarray, mixtures: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What to take of latent and output for the data and for the noise in them, (Q, 2) each; `levels` and `mixtures`,
    (Q, 2), are as in `dicache.solvers.prediction.Path`, and `scales`, (Q,), by what a latent is multiplied.
    """
    (signal, noise), (data, eps) = levels.T, mixtures.T
    both = np.maximum(np.abs(signal * eps - noise * data), TINY) * np.sign(signal * eps - noise * data + TINY)
    clean = np.stack([eps / scales, -noise], axis=1) / both[:, None]
    return clean, np.stack([-data / scales, signal], axis=1) / both[:, None]


def first_order(times: Sequence[float], levels: Sequence[tuple[float, float]], prediction: str) -> Timeline:
    """Of a loop of first order from level to level, and at last to data alone:

    (a', s') = p (a, s) + c (d, e)        for p and c, where an output is d x_0 + e eps

    Nothing is known where levels are no numbers, or an output says nothing that its latent does not: noise of noise.
    """
    levels_with_end = np.array([*levels, (1.0, 0.0)], dtype=float)
    mixtures = np.array([PREDICTIONS[prediction](a, s) for a, s in levels_with_end[:-1]])
    n = len(mixtures)
    telling = np.abs(levels_with_end[:-1, 0] * mixtures[:, 1] - levels_with_end[:-1, 1] * mixtures[:, 0])
    if not (telling > TINY).all():
        time = times[int(np.argmin(telling > TINY))]
        why = f"signal and noise at {time:g} are {levels[times.index(time)]}, of which {prediction} says nothing"
        return _unpriced(np.array(times), 0, why)
    starts, outputs, latents = np.ones(n + 1), np.zeros((n + 1, n)), np.zeros((n + 1, n))
    for q, (level, mixture) in enumerate(zip(levels_with_end, mixtures, strict=False)):
        p, c = np.linalg.solve(np.stack([level, mixture], axis=1), levels_with_end[q + 1])
        starts[q + 1], outputs[q + 1], latents[q + 1] = p * starts[q], p * outputs[q], p * latents[q]
        outputs[q + 1, q], latents[q + 1, q] = c, p
    none = np.zeros((n + 1, n))
    responses = Responses(np.array(times), np.ones(n), levels_with_end, starts, outputs, latents, none, 0.0)
    played = _played(responses, Path(prediction, levels_with_end, mixtures, 0.0), 0)
    return played._replace(left=tuple(map(noise_share, played.timetable.half_log_snrs)))


def _padded(values: Any, begin: int) -> tuple[Any, ...]:  # noqa: ANN401
    """As Python numbers, or tuples of them, with the first one for every step before the run."""
    plain = [tuple(value) if isinstance(value, list) else value for value in np.asarray(values).tolist()]
    return (plain[0],) * begin + tuple(plain)


def _unknown(scheduler: Any, begin: int, end: int | None, reason: str) -> Timeline:  # noqa: ANN401
    """Every step counts the same, and nothing is said of prices."""
    times = np.asarray(scheduler.timesteps[:end].tolist(), dtype=float).reshape(len(scheduler.timesteps[:end]), -1)
    return _unpriced(times[:, 0], begin, reason)


def _unpriced(times: np.ndarray, begin: int, reason: str) -> Timeline:
    n = len(times)
    timetable = Timetable(tuple(times.tolist()), (1 / n,) * n, (), begin)
    return Timeline(timetable, ((1.0, 0.0),) * n, ((0.0, 1.0),) * n, tuple(range(n)), reason=reason)


def half_log_snr(signal: float, noise: float) -> float:
    """log(signal / noise), both softened by 0.02 of their sum: pure noise has a finite place."""
    soft = 0.02 * (signal + noise)
    return math.log((signal + soft) / (noise + soft))


def noise_share(half_log_snr: float) -> float:
    """The noise in a latent, over signal and noise together."""
    return 1.04 / (1 + math.exp(half_log_snr)) - 0.02
