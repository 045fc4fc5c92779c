"""Read a loop by watching it. Whatever a hand-written sampler computes, a step of first order makes the next latent of
the last one and the output,

    x' = p x + c v        least squares over the elements that it moves: two unknowns on thousands of equations,

and p and c say which path it is on, because data and noise mix alike: (a', s') = p (a, s) + c (d, e) for an output
d x_0 + e eps (`dicache.solvers.prediction`). The paths that are known are

    straight     a + s = 1            flow, its time falling or rising: p = 1, c is how far a step goes
    constant     a^2 + s^2 = 1        noise, data or velocity on a circle; the k-diffusion family is there once it has
                                      scaled its latents for the denoiser
    exploding    a = 1                noise or data: p = 1, or p + c = 1

A kind holds for as long as every step leads from one of its levels to another. What a step leaves unexplained, as
several calls of one step do and noise that is drawn anew, is the reason why everything computes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.solvers.prediction import PREDICTIONS

LEFT = 5e-3
"""Share of a step that may be left unexplained."""
NEAR = 5e-3
"""How far levels may be off their path."""
PURE = 1.5
"""Latents of more than this size explode."""
FAR = 10
"""How many times further off its path any other kind must lead."""
EXACT = 2e-6
"""Off the path by rounding."""
EVEN = 0.02
"""How far the units of time may be apart on a straight path."""
UNDECIDED = ""
"""No reason yet: too few steps were seen."""
PARALLEL = 1e-8
"""Squared sine between latent and output under which nothing can be told of the two."""
ROUNDED = 1e-8
"""A step that goes less far than this share of the latent, squared, is as good as rounding."""


class Seen(NamedTuple):
    """One step: x' = p x + c v, how large x was, and what of the step that leaves."""

    from_latent: float
    from_output: float
    size: float
    left: float
    before: float
    """The times it goes between, as the denoiser is told them."""
    after: float


def unseen(times: tuple[float, float]) -> Seen:
    """A step of which nothing can be told."""
    return Seen(math.nan, math.nan, math.nan, 0.0, *times)


def seen(latent: Tensor, output: Tensor, following: Tensor, times: tuple[float, float]) -> Seen:
    """Of all samples together, (B, ...) each. The host waits for the device here."""
    moved = (latent != following).any(-1, keepdim=True)
    x, v, y = (torch.where(moved, t, 0).double().flatten() for t in (latent, output, following))
    xx = (x @ x).clamp(min=1e-30)
    slope = (x @ v) / xx
    went, own = y - x, v - slope * x  # latents and outputs are nearly parallel at first
    sums = torch.stack(
        [
            xx,
            slope,
            v @ v,
            went @ x,
            went @ own,
            own @ own,
            went @ went,
            moved.expand_as(x.view_as(latent)).sum().double(),
        ]
    )
    xx, slope, vv, wx, wo, oo, ww, count = sums.cpu().tolist()
    size = math.sqrt(xx / max(count, 1.0))
    if not oo > PARALLEL * vv:
        return Seen(math.nan, math.nan, size, 0.0, *times)
    from_output = wo / oo
    miss = ww - wx * wx / xx - wo * from_output
    left = math.sqrt(max(miss, 0.0) / max(ww, ROUNDED * xx))
    return Seen(1 + wx / xx - from_output * slope, from_output, size, left, *times)


NONE = (math.nan, math.nan)


class PathKind(NamedTuple):
    """A path, and what is predicted on it."""

    prediction: str
    off: Callable[[float, float], float]
    """How far a level is off the path."""
    begin: Callable[[Seen], tuple[float, float]]
    """The level at which a first step begins; nan where it cannot be of this kind."""


def _straight(step: Seen) -> tuple[float, float]:
    """Where time says it, in units in which it goes as far as the latent does."""
    if abs(step.from_latent - 1) > NEAR or step.size > PURE or step.after == step.before:
        return NONE
    unit = abs(step.from_output / (step.after - step.before))
    noise = unit * step.before if step.after < step.before else 1 - unit * step.before
    return 1 - noise, noise


def _noise_on_a_circle(step: Seen) -> tuple[float, float]:
    noise = _sine(step)
    return (math.sqrt(1 - noise**2), noise) if 0 < noise < 1 and step.size < PURE else NONE


def _data_on_a_circle(step: Seen) -> tuple[float, float]:
    signal = _sine(step)
    return (signal, math.sqrt(1 - signal**2)) if -NEAR < signal < 1 and step.size < PURE else NONE


def _sine(step: Seen) -> float:
    """s of p^2 + 2 p c s + c^2 = 1."""
    return (1 - step.from_latent**2 - step.from_output**2) / (2 * step.from_latent * step.from_output)


def _around_a_circle(step: Seen) -> tuple[float, float]:
    """Velocities say how far, not from where; a run begins in noise."""
    return (0.0, 1.0) if abs(math.hypot(step.from_latent, step.from_output) - 1) < NEAR and step.size < PURE else NONE


def _exploding(step: Seen) -> tuple[float, float]:
    """From as much noise as the latent is large; from the time where that says so too."""
    noise = step.before if abs(step.before - step.size) < 0.1 * step.size else math.sqrt(max(step.size**2 - 1, 0.0))
    return (1.0, noise) if step.size > PURE else NONE


def _off_straight(signal: float, noise: float) -> float:
    return abs(signal + noise - 1)


def _off_circle(signal: float, noise: float) -> float:
    return abs(math.hypot(signal, noise) - 1)


def _off_exploding(signal: float, noise: float) -> float:
    return abs(signal - 1)


KINDS = (
    PathKind("flow_prediction", _off_straight, _straight),
    PathKind("flow_prediction, reversed", _off_straight, _straight),
    PathKind("epsilon", _off_circle, _noise_on_a_circle),
    PathKind("sample", _off_circle, _data_on_a_circle),
    PathKind("v_prediction", _off_circle, _around_a_circle),
    PathKind("v_prediction, reversed", _off_circle, _around_a_circle),
    PathKind("epsilon", _off_exploding, _exploding),
    PathKind("sample", _off_exploding, _exploding),
)


class LoopPath(NamedTuple):
    """The kind that all steps so far agree on, and the levels that the last ones lead through: those behind which
    nothing could be told of a step.
    """

    kind: PathKind
    levels: tuple[tuple[float, float], ...]

    def mixture(self, level: tuple[float, float]) -> tuple[float, float]:
        return PREDICTIONS[self.kind.prediction](*level)


def path_of_loop(steps: Sequence[Seen]) -> LoopPath | str:
    """What all `steps` of a run so far say; a reason where they say nothing. Of several kinds that fit, one that fits
    far better: short steps along a circle hardly differ from straight ones.
    """
    worst = max(step.left for step in steps)
    if not worst < LEFT:
        return f"a step of the loop is not one of the latent and the output alone: {worst:.2g} of it is left over"
    silent = [i for i, step in enumerate(steps) if math.isnan(step.from_latent)]
    legible = steps[silent[-1] + 1 if silent else 0 :]
    if len(legible) < 2:
        return UNDECIDED
    kinds = [kind for kind in KINDS if not silent or kind.begin is not _around_a_circle]
    fitting = [(path, off) for kind in kinds for path, off in _paths(kind, legible)]
    if not fitting:
        return "what the loop makes of an output is none of the ways known"
    best, off = min(fitting, key=lambda fit: fit[1])
    rivals = [other for path, other in fitting if path is not best]
    return best if all(other > FAR * max(off, EXACT) for other in rivals) else UNDECIDED


def _paths(kind: PathKind, steps: Sequence[Seen]) -> Iterator[tuple[LoopPath, float]]:
    """Along this kind's path, and how far off it at most; none where a step leads away from it, or the noise does not
    become less.
    """
    signal, noise = kind.begin(steps[0])
    levels, most = [(signal, noise)], 0.0
    for step in steps:
        data, eps = PREDICTIONS[kind.prediction](signal, noise)
        share = noise / (signal + noise)
        p, c = step.from_latent, step.from_output
        signal, noise = p * signal + c * data, p * noise + c * eps
        off = kind.off(signal, noise)
        if not (off < NEAR and -NEAR < noise / (signal + noise) < share):
            return
        levels.append((signal, max(noise, 0.0)))
        most = max(most, off)
    if kind.off is not _off_straight or _even(steps):
        yield LoopPath(kind, tuple(levels)), most


def _even(steps: Sequence[Seen]) -> bool:
    """Whether all steps go as far as time does."""
    units = [abs(step.from_output / (step.after - step.before)) for step in steps if step.after != step.before]
    return max(units) < (1 + EVEN) * min(units)
