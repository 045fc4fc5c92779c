"""Is a promise still kept? A test that may be looked at after every audit, for as long as one goes on.

A promise of confidence c says that a sample misses its budget with chance at most a = 1 - c, whatever came before. Bet
against it: for q > a the product

    E_n(j, q) = prod over audits i = j .. n of   q / a  where i missed,  (1 - q) / (1 - a)  where it kept its budget

of the bets placed from audit j on is, while the promise holds, a supermartingale that starts at 1. So is every mixture
of them, and by Ville's inequality a mixture ever reaches 1 / 0.01 with a chance of at most 0.01, however often one
looks (an e-process; Ramdas et al., arXiv 2210.01948; arXiv 2602.04364). The mixture spreads a weight w_j over when the
drift began, since a bet placed at the first audit has lost its stake by the two hundredth, and over how bad it is:

    M_n = sum over j <= n, q of  w_j p_q E_n(j, q)   +   sum over j > n of w_j

All starts of one q take the same factor, so their sum S_n(q) = (S_{n-1}(q) + w_n) * factor is kept in their place. Much
of the weight lies on the first audit (a promise that never held), the rest falls as 1 / (j log^2 (j + 1)), slower than
any power that still sums to one.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

SIGNIFICANT = 0.01
"""Chance of ever raising an alarm while the promise holds."""
FIRST = 0.6
"""Weight of a drift that was there from the first audit on."""
BETS = ((0.08, 0.2), (0.2, 0.6), (0.45, 0.2))
"""How bad a drift may be, as the share of the way from a to 1 at which q lies, and the weight of it."""


class Drift(NamedTuple):
    """What audits say of a promise."""

    evidence: float
    """M_n, the wealth of who bet against the promise at the last look."""
    largest: float
    """The most it ever was, its first stake among that: at least 1."""

    @property
    def p(self) -> float:
        """Valid at any time: the chance of ever seeing as much while the promise holds, at most."""
        return 1 / self.largest

    @property
    def seen(self) -> bool:
        return self.p <= SIGNIFICANT


def drift(missed: Sequence[bool] | np.ndarray, confidence: float) -> Drift:
    """What audits in their order, (n,) whether each missed its budget, say of a promise of this `confidence`."""
    path = evidence(np.asarray(missed, bool)[None], confidence)[0]
    return Drift(float(path[-1]), max(1.0, float(path.max()))) if len(path) else Drift(1.0, 1.0)


def evidence(missed: np.ndarray, confidence: float) -> np.ndarray:
    """M after each audit, of several sequences at once: (k, n) bool -> (k, n) float64."""
    allowed = 1 - confidence
    shares, weights = np.array(BETS).T
    bad = allowed + (1 - allowed) * shares
    lost, won = bad / allowed, (1 - bad) / (1 - allowed)
    starts = _starts(missed.shape[1])
    ahead = np.clip(1 - starts.cumsum(), 0.0, None)
    wealth = np.zeros((len(missed), len(bad)))
    path = np.empty(missed.shape)
    for n, start in enumerate(starts):
        wealth = np.minimum((wealth + start) * np.where(missed[:, n, None], lost, won), 1e300)
        path[:, n] = wealth @ weights + ahead[n]
    return path


@lru_cache(maxsize=8)
def _starts(count: int) -> np.ndarray:
    """w_1 .. w_count, whose sum over all audits to come is at most 1."""
    j = np.arange(1, count + 1, dtype=np.float64)
    later = 1 / (j * np.log(j + 1) ** 2)
    later[:1] = 0.0
    return np.where(j == 1, FIRST, (1 - FIRST) * later / LATER)


def _later(count: int) -> float:
    """An upper bound of the sum over j >= 2 of 1 / (j log^2 (j + 1)): summed up to `count`, and the integral beyond."""
    j = np.arange(2, count + 1, dtype=np.float64)
    return float((1 / (j * np.log(j + 1) ** 2)).sum() + (1 + 1 / count) / np.log(count + 1))


LATER = _later(10_000)
