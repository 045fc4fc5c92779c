"""What is left at the end of an error of the latent: schedules are played on prompts whose uncached runs are known, and
the change of the final latent is compared with what their gaps were wrong by.

Half of a prompt's schedules skip one gap in an otherwise exact run, half are whole ways of random gaps: after a gap the
run stands beside its exact trajectory, and a slope over it leads astray, which no single gap shows. One model serves
both,

    ||x - x_ref||^2 / ||x_ref||^2 = a_b^2 ( sum_k E_k^2 + 2 rho sum_k E_k E_{k+1} ),     E_k = w_k local_k

over the gaps k of a schedule of prompt b. local is what the gap alone moves the latent by: the sum over its steps of
the guess's relative error times what a unit of it adds to the latent. rho is the cosine between the final changes of
neighbouring gaps, read off the single ones, a_b the prompt's own amplitude, and

    log w = c_0 + c_1 u + c_2 u^2 + c_3 u^3 + (c_4 + c_5 u) log G + (c_6 + c_7 u) log D + c_8 [nothing follows]

with u the place in the run where the gap ends. Fitted to log errors with a robust loss. On the reference model a guided
flow forgets four fifths of what it is wrong by early, two thirds in the middle, nothing at the last step.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares
from torch import Tensor

from dicache.api import enable
from dicache.config import Config
from dicache.controllers.fixed import masks
from dicache.measuring.prompt_runs import Drawer
from dicache.tensors.norms import length
from dicache.types import Action

LENGTHS = (1, 2, 3, 5)
MEANS = (1.0, 1.3, 1.6, 2.0, 2.4, 2.8, 3.5, 4.5)
"""Mean lengths of the random gaps."""
FIRST = 3
"""The first computed step after which a gap can be had: before it no approximator's error was seen."""
APART = 4
"""Computed steps between two gaps up to which their correlation is measured."""
RIDGE, PROMPT_RIDGE = 0.05, 1.5
SINGLE = 0.7
"""Weight of a run with a single gap in the fit: its error varies more than that of many gaps."""


class SingleGap(NamedTuple):
    after: int
    """The computed step before it."""
    back: int
    """How far before that one the last computed step lies."""
    steps: int


class Played(NamedTuple):
    """What one prompt's schedules did."""

    masks: np.ndarray
    """(schedules, T) bool: which steps compute."""
    change: np.ndarray
    """||x - x_ref|| / ||x_ref||, (schedules,)."""
    cosine: np.ndarray
    """Between the final changes of the first of them, the single gaps, (some, some)."""


def schedules(position: int, count: int, steps: int, seed: int) -> np.ndarray:
    """(2 * count, T) masks for the prompt at this place: single gaps, spread so that prompts in turn reach all steps,
    then whole ways.
    """
    rng, positions = np.random.default_rng([seed, position]), steps - FIRST - 1
    masks = np.ones((2 * count, steps), dtype=bool)
    for j in range(count):
        after = FIRST + (position + j * positions // count) % positions
        masks[j, after + 1 : after + 1 + LENGTHS[(position + j) % len(LENGTHS)]] = False
        masks[j, -1] |= after + 1 != steps - 1
        masks[count + j] = _way(rng, MEANS[(position + j) % len(MEANS)], steps)
    return masks


def _way(rng: np.random.Generator, mean: float, steps: int) -> np.ndarray:
    mask, i = np.ones(steps, dtype=bool), FIRST + 1
    while i < steps:
        gap = min(int(rng.geometric(1 / mean)), 8)
        mask[i : i + gap] = False
        i += gap + (1 if rng.random() < 0.75 else int(rng.integers(2, 4)))
    mask[-1] |= rng.random() < 0.7
    return mask


def play(drawer: Drawer, index: int, rows: np.ndarray, final: Tensor, batch: int) -> Played:
    """One prompt, a schedule per sample, `batch` at once; (schedules, T) `rows`, and the final latent of its uncached
    run, (1, ...). Cosines are those within the first batch.
    """
    batches = [_played(drawer, index, rows[k : k + batch], final) for k in range(0, len(rows), batch)]
    computed, change = (np.concatenate([one[i] for one in batches]) for i in (0, 1))
    return Played(computed, change, batches[0].cosine)


def _played(drawer: Drawer, index: int, rows: np.ndarray, final: Tensor) -> Played:
    with enable(drawer.pipe, config=Config(masks(rows.tolist()))) as cache:
        latents = drawer.draw([index] * len(rows)).latents
    assert cache.trace is not None
    computed = np.array([record.action[:, 0].numpy() == Action.COMPUTE for record in cache.trace.records]).T
    changes = (latents - final).float().cpu().numpy().reshape(len(rows), -1)
    gram = changes @ changes.T
    change = np.sqrt(gram.diagonal())
    length_of = np.where(change > 0, change, np.nan)
    return Played(computed, change / float(length(final.float())), gram / np.outer(length_of, length_of))


def gaps_of(mask: np.ndarray, reach: int) -> list[SingleGap]:
    computed = np.flatnonzero(mask).tolist()
    gaps = []
    for k, (after, following) in enumerate(pairwise([*computed, len(mask)])):
        if following > after + 1:
            back, steps = after - computed[max(k - 1, 0)], following - after - 1
            gaps.append(SingleGap(after, min(back, reach), min(steps, reach)))
    return gaps


def weights(played: Sequence[Played], local: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T + 1, D, G) weights of gaps by their end, the gap before them and their length, and (APART,) correlations.
    `local`, (B, T, D, G), is of the same prompts.
    """
    correlation = _correlations(played, local.shape[2])
    curve = _fit(played, local, max(0.0, float(correlation[0])))
    steps, reach, longest = local.shape[1:]
    q, d, g = np.meshgrid(np.arange(steps + 1), np.arange(1, reach + 1), np.arange(1, longest + 1), indexing="ij")
    logs = _features(q.ravel(), d.ravel(), g.ravel(), steps) @ curve
    return np.exp(logs).reshape(q.shape), correlation


def _fit(played: Sequence[Played], local: np.ndarray, rho: float) -> np.ndarray:
    steps, reach = local.shape[1:3]
    runs = [
        (b, gaps, change)
        for b, one in enumerate(played)
        for mask, change in zip(one.masks, one.change, strict=True)
        if change > 0 and (gaps := gaps_of(mask, reach))
    ]
    prompt, errors = np.array([run[0] for run in runs]), np.log([run[2] for run in runs])
    owner = np.array([r for r, run in enumerate(runs) for _ in run[1]])
    after, back, length = np.array([gap for run in runs for gap in run[1]]).T
    base = np.log(local[prompt[owner], after, back - 1, length - 1])
    at = _features(after + length + 1, back, length, steps)
    next_to = np.append(owner[1:] == owner[:-1], False)
    trust = np.where(np.bincount(owner) == 1, SINGLE, 1.0)
    count = at.shape[1]

    def misses(c: np.ndarray) -> np.ndarray:
        single = np.exp(base + at @ c[:count])
        square = np.bincount(owner, single**2 + 2 * rho * next_to * single * np.append(single[1:], 0.0))
        logs = 0.5 * np.log(square) + c[count:][prompt]
        return np.concatenate([trust * (logs - errors), RIDGE * c[:count], PROMPT_RIDGE * c[count:]])

    return np.asarray(least_squares(misses, np.zeros(count + len(played)), loss="soft_l1").x[:count])


def _features(q: np.ndarray, d: np.ndarray, g: np.ndarray, steps: int) -> np.ndarray:
    u, end = q / steps, (q == steps).astype(float)
    return np.stack([np.ones_like(u), u, u**2, u**3, np.log(g), u * np.log(g), np.log(d), u * np.log(d), end], axis=1)


def _correlations(played: Sequence[Played], reach: int) -> np.ndarray:
    by_distance: list[list[float]] = [[] for _ in range(APART)]
    for one in played:
        first = enumerate(one.masks[: len(one.cosine)])
        singles = [(i, gaps[0]) for i, mask in first if len(gaps := gaps_of(mask, reach)) == 1]
        for i, a in singles:
            for j, b in singles:
                apart = b.after - a.after - a.steps
                if 1 <= apart <= APART and np.isfinite(one.cosine[i, j]):
                    by_distance[apart - 1].append(float(one.cosine[i, j]))
    return np.array([np.mean(values) if values else 0.0 for values in by_distance])
