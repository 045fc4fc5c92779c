"""How far a denoiser's outputs move the final latent, through all calls of the solver that read them.

`influence` is E_q = dx_N / dv_q with all other outputs as they are. But denoisers answer a changed latent, and outputs
that stay as they are mean another answer under every prediction: noise that stays blows an early error up by 1 / a,
data that stays forgets it altogether. So a price counts

    reach     what reaches the end if the velocity of the straight path through the same data and noise stays, that is
              if data and noise answer a latent that moved by d x alike, each by d x / (a + s)

which for a straight path is the same as the influence, and for any first-order solver the way that the call goes on the
straight path, |d sigma| with sigma = s / (a + s), whatever is predicted. Where noise is drawn anew it covers part of
what was wrong before, and the reach is shorter.
"""

import numpy as np

from dicache.solvers.play import Responses
from dicache.solvers.prediction import Path

TRIED = 1e-9
"""What rounding leaves of a change of the latent in a solver that goes back behind it."""
MOST = 4
"""Calls per step: no solver makes more, and one that never goes on from what it was given makes one."""


def influence(responses: Responses) -> np.ndarray:
    """E_q of each call, signed, (Q,)."""
    return responses.outputs[-1]


def reach(responses: Responses, path: Path) -> np.ndarray:
    """The same, of the length that data and noise have in the final latent, with denoisers that answer; (Q,)."""
    answer = path.mixtures.sum(1) / path.levels[:-1].sum(1)
    return _answered(responses, responses.outputs, answer)[-1] / path.levels[-1].sum()


def undecided(responses: Responses, path: Path) -> np.ndarray:
    """The same under noise that is drawn anew, (Q,): how much of it is noise counts, and that the data an error makes
    of it may stay,

        3 sigma^4 |d x_N / d v_q|,  the noise in all later outputs as it is

    for as long as that is not the shorter reach. Where the noise still decides what will be seen, small errors decide
    along: on a figure that turns around (tests/pipelines/exact.py) this is half of what is passed once in ten times.
    """
    signal, noise = path.levels[:-1].T
    answer = path.mixtures[:, 0] / np.maximum(signal, 1e-3)
    staying = _answered(responses, responses.outputs, answer)[-1] / path.levels[-1].sum()
    return np.asarray(3 * (noise / (signal + noise)) ** 4 * np.abs(staying))


def velocity_gain(path: Path) -> np.ndarray:
    """|d output / d velocity of the straight path| at a given latent, per call, (Q,): 1 where that is the output."""
    (signal, noise), (data, eps) = path.levels[:-1].T, path.mixtures.T
    return np.abs(data * noise - eps * signal) / (signal + noise)


def steps_of(responses: Responses, path: Path) -> tuple[int, ...]:
    """The step that each call belongs to, (Q,), from 0. Solvers that evaluate several times a step go back to where it
    began: a latent that no later one depends on was only tried. That is so with denoisers to whom its noise stays the
    same, or the velocity; or with outputs that stay, where a time comes twice (given the data, other solvers forget
    their latents as well).
    """
    signal = path.levels[:-1, 0].clip(1e-6)
    noise, velocity = path.mixtures[:, 0] / signal, path.mixtures.sum(1) / path.levels[:-1].sum(1)
    again = np.isin(np.diff(responses.times), 0.0)
    twice = np.append(again, False) | np.append(False, again)
    tried = _reaches_no_call(responses, path, noise) | _reaches_no_call(responses, path, velocity)
    tried |= twice & _reaches_no_call(responses, path, np.zeros_like(signal))
    tried[0] = False
    longest = max(map(len, "".join("x" if t else " " for t in tried).split()), default=0)
    return tuple(((~tried).cumsum() - 1).tolist()) if longest < MOST else tuple(range(len(tried)))


def _reaches_no_call(responses: Responses, path: Path, answer: np.ndarray) -> np.ndarray:
    """Whether a change of the latent of each call reaches none after it, (Q,)."""
    signal = path.levels[:-1, 0].clip(1e-6)
    moved = np.abs(_answered(responses, responses.latents + responses.outputs * answer, answer) * signal)
    return np.asarray(np.where(np.isfinite(moved), moved, np.inf).max(0) < TRIED * path.levels.sum(1).max())


def _answered(responses: Responses, direct: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Responses to impulses, (Q + 1, n), where each call answers the latent's with `answer`, (Q,), times it."""
    moved = np.zeros_like(direct)
    for q, straight in enumerate(direct):
        moved[q] = straight + responses.outputs[q, :q] @ (answer[:q, None] * moved[:q])
    return moved
