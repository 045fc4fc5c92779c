"""What denoisers predict. A latent is a x_0 + s eps, and a prediction mixes the same two, in the latent's own units:

    epsilon           the noise                               (0, 1)
    sample            the data                                (1, 0)
    flow_prediction   the velocity of a straight path         (-1, 1)
    v_prediction      that of a path of constant variance     (-s, a) / sqrt(a^2 + s^2)
    edm               the same, for data half as large        (-2 s, a / 2) / sqrt(a^2 / 4 + s^2)

or one of them the other way round. Which one it is shows in what a scheduler makes of it: given the outputs that stand
for some data and noise, a solver's latents are mixed of the same, whatever its order and also where it draws new noise.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dicache.solvers.play import Responses

CLOSE = 0.12
"""How far the latents that a prediction leads to may be from those that the scheduler itself mixes, relative. Solvers
that average velocities of several times miss them by up to .09, the wrong prediction by .2 and more.
"""
FITS = 0.01
"""The same where no other prediction needs to be tried."""
Mixture = tuple[float, float]


def _circle(data: float) -> Callable[[float, float], Mixture]:
    """For data of this size."""
    return lambda a, s: (-s / data / np.hypot(data * a, s), data * a / np.hypot(data * a, s))


def _reversed(prediction: Callable[[float, float], Mixture]) -> Callable[[float, float], Mixture]:
    return lambda a, s: (-prediction(a, s)[0], -prediction(a, s)[1])


PREDICTIONS: dict[str, Callable[[float, float], Mixture]] = {
    "epsilon": lambda a, s: (0.0, 1.0),
    "sample": lambda a, s: (1.0, 0.0),
    "flow_prediction": lambda a, s: (-1.0, 1.0),
    "v_prediction": _circle(1.0),
    "edm": _circle(0.5),
}
PREDICTIONS |= {f"{name}, reversed": _reversed(prediction) for name, prediction in PREDICTIONS.items()}


class Path(NamedTuple):
    """What latents and outputs are made of."""

    prediction: str
    levels: np.ndarray
    """Data and noise in each call's latent, and in the final one, (Q + 1, 2)."""
    mixtures: np.ndarray
    """Data and noise in each call's output, (Q, 2)."""
    miss: float
    """How far the levels are from those that the scheduler itself mixes."""


def path_of(responses: Responses, prediction: str | None = None) -> Path:
    """The first prediction that fits, or the one that is named."""
    names = PREDICTIONS if prediction is None else (prediction,)
    responses = _towards_data(responses)
    best = _path(responses, next(iter(names)))
    for name in names:
        if best.miss > FITS:
            best = min(best, _path(responses, name), key=lambda path: path.miss)
    return best


def _towards_data(responses: Responses) -> Responses:
    """Where the noise grows, as in inversion, or the scheduler counts the other way, it is what is drawn."""
    asked = responses.levels[~np.isnan(responses.levels[:, 0])]
    if len(asked) < 2 or asked[-1, 0] * asked[0, 1] >= asked[0, 0] * asked[-1, 1]:
        return responses
    return responses._replace(levels=responses.levels[:, ::-1])


def _path(responses: Responses, prediction: str) -> Path:
    """Data keeps to one path. Noise has as many sources as there are draws, and a denoiser sees their sum: what it
    gives of each is that one's share.
    """
    calls, starting = len(responses.times), _starting(responses)
    levels, mixtures = np.zeros((calls + 1, 2)), np.zeros((calls, 2))
    sources, answers = np.zeros((calls + 1, calls + 1)), np.zeros((calls, calls + 1))
    for q in range(calls + 1):
        earlier = responses.outputs[q, :q]
        sources[q] = np.append(responses.noises[q], starting[1] * responses.starts[q]) + earlier @ answers[:q]
        levels[q] = starting[0] * responses.starts[q] + earlier @ mixtures[:q, 0], math.hypot(*sources[q])
        if q < calls:
            mixtures[q] = PREDICTIONS[prediction](*levels[q])
            answers[q] = mixtures[q, 1] * sources[q] / max(levels[q, 1], 1e-12)
    return Path(prediction, levels, mixtures, _miss(responses, levels))


def _starting(responses: Responses) -> np.ndarray:
    """Of a scheduler that mixes no latents of its own: pure noise."""
    return np.where(np.isnan(responses.levels[0]), (0.0, 1.0), responses.levels[0])


def _miss(responses: Responses, levels: np.ndarray) -> float:
    """In the middle: of half-way calls some schedulers mix the latents of the step. The final latent is data unless the
    loop ends early.
    """
    said = responses.levels.copy()
    said[-1] = np.where(np.isnan(said[-1]), (1.0, 0.0), said[-1])
    apart = (np.abs(levels - said) / np.abs(levels).sum(1, keepdims=True).clip(1e-12)).max(1)
    miss = apart[-1] / 4 + (0.0 if np.isnan(apart[:-1]).all() else np.nanmedian(apart[:-1]))
    return float(np.nan_to_num(miss, nan=np.inf))
