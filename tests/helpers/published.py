"""What the published methods that skip whole evaluations do, from their papers' equations: one sample, in step counts.

Each rule is called once a step with (step, latents, features, outputs, computed steps newest first) and says whether
the step computes; each guess fills in what a skipped step would have given.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import hermite

from dicache import presets
from dicache.config import Config
from dicache.presets.parts.adacache import FAST
from dicache.presets.parts.sencache import SensitivityTable
from helpers.toy import SIGMAS, N

RATIOS = tuple(1 + 0.12 * math.sin(3 * i) for i in range(N))
TABLE = SensitivityTable(tuple(0.5 + 0.1 * math.cos(i) for i in range(N)), tuple(0.3 + 0.01 * i for i in range(N)))


# The references: one sample, from the equations of specs/online.md, in step counts. Each yields the step's decision,
# is told nothing else, and keeps the computed steps in `done`, newest first.


def rel(target, then):
    return np.abs(target - then).sum() / np.abs(then).sum()


def summed(signal, threshold, forced) -> Callable[..., bool]:
    """Compute where the sum since the last computed step reaches the threshold."""
    total = 0.0

    def computes(i, x, p, v, done):
        nonlocal total
        total += signal(i, x, p, v, done) if i else math.inf
        compute = forced(i) or not total < threshold
        total = 0.0 if compute else total
        return compute

    return computes


def counted(interval, first):
    return lambda i, x, p, v, done: i < first or (i - first + 1) % interval == 0


def easy(i, x, p, v, done):
    if len(done) < 2:
        return math.inf
    a, b = done[:2]
    k = np.abs(v[a] - v[b]).mean() / np.abs(x[a] - x[b]).mean()
    return k * np.abs(x[i] - x[i - 1]).mean() / np.abs(v[a]).mean()


def magnitudes(threshold, longest, warm):
    rho, total, gap = 1.0, 0.0, 0

    def computes(i, x, p, v, done):
        nonlocal rho, total, gap
        rho *= RATIOS[i]
        total, gap = total + abs(1 - rho), gap + 1
        skip = i >= warm and total <= threshold and gap <= longest
        rho, total, gap = (rho, total, gap) if skip else (1.0, 0.0, 0)
        return not skip

    return computes


def sensitive(threshold, early, longest):
    def computes(i, x, p, v, done):
        if not done or i - done[0] > longest:
            return True
        a = done[0]
        size = math.sqrt(x[i].size)
        score = TABLE.latent[a] * np.linalg.norm(x[i] - x[a]) + size * TABLE.time[a] * abs(SIGMAS[i] - SIGMAS[a])
        return not score < size * (early if i < round(0.2 * N) else threshold)

    return computes


def codebook(i, x, p, v, done):
    if len(done) < 2 or i >= N - 2:
        return True
    a, b = done[:2]
    c = rel(v[a], v[b]) / (a - b)
    return i - a >= next((gap for bound, gap in FAST if c < bound), 1)


def differences(v, done, order):
    """D_0..D_order at the newest computed step, nested, in step counts."""
    level, newest = [v[a] for a in done[: order + 1]], []
    while level:
        newest.append(level[0])
        level = [(level[j] - level[j + 1]) / (done[j] - done[j + 1]) for j in range(len(level) - 1)]
    return newest


def hold(i, x, p, v, done):
    return v[done[0]]


def hold_residual(i, x, p, v, done):
    return x[i] + v[done[0]] - x[done[0]]


def taylor(i, x, p, v, done):
    return sum(d * (i - done[0]) ** j / math.factorial(j) for j, d in enumerate(differences(v, done, 2)))


def hicache(i, x, p, v, done):
    bases = [0.5**j * hermite.hermval(0.5 * (i - done[0]), [0] * j + [1]) for j in range(3)]
    terms = differences(v, done, 2)
    return terms[0] + sum(terms[j] * bases[j] / math.factorial(j) for j in (1, 2))


def foca(i, x, p, v, done):
    a, b, c = done[:3]
    bend, slope, _ = np.polyfit([a, b, c], [v[a], v[b], v[c]], 2)
    return v[a] + (i - a) / 2 * (2 * bend * a + slope + (v[a] - v[b]) / (a - b))


def aligned(i, x, p, v, done):
    a, b = done[:2]
    gamma = np.clip(np.abs(p[i] - p[b]).mean() / np.abs(p[a] - p[b]).mean(), 1, 1.5)
    return v[b] + gamma * (v[a] - v[b])


def against_computed(threshold, warm=0):
    return lambda i, x, p, v, done: i < max(1, warm) or bool(rel(p[i], p[done[0]]) > threshold)


def previous(i, x, p, v, done):
    return rel(p[i], p[i - 1])


def polynomial(i, x, p, v, done):
    return max(0.0, np.polyval(presets.TEACACHE_FLUX, previous(i, x, p, v, done)))


def ends(i):
    return i in (0, N - 1)


def warm(i):
    return i < math.ceil(0.2 * N) or i == N - 1


METHODS: dict[str, tuple[Config, Callable[[], Callable[..., bool]], Callable[..., Any]]] = {
    "fora": (presets.fora(), lambda: counted(3, 2), hold),
    "taylorseer": (presets.taylorseer(), lambda: counted(6, 4), taylor),
    "hicache": (presets.hicache(), lambda: counted(6, 4), hicache),
    "foca": (presets.foca(), lambda: counted(6, 4), foca),
    "teacache": (presets.teacache(), lambda: summed(polynomial, 0.6, ends), hold),
    "seacache": (presets.seacache(), lambda: summed(previous, 0.3, ends), hold),
    "first_block_cache": (presets.first_block_cache(), lambda: against_computed(0.05), hold),
    "dbcache": (presets.dbcache(), lambda: against_computed(0.08, math.ceil(0.16 * N)), hold),
    "dicache": (presets.dicache(), lambda: summed(previous, 0.4, warm), aligned),
    "easycache": (presets.easycache(), lambda: summed(easy, 0.05, warm), hold_residual),
    "magcache": (presets.magcache(RATIOS), lambda: magnitudes(0.24, 5, math.ceil(0.1 * N)), hold),
    "sencache": (presets.sencache(TABLE), lambda: sensitive(0.07, 0.005, 10), hold),
    "adacache": (presets.adacache(), lambda: codebook, hold),
}
