"""A promise from a sample of losses: the largest level that keeps the bound for the wanted share of prompts, tested
on prompts that nothing else was chosen on.

On n calibration prompts every level (an internal budget, rising) lost l_1 .. l_n. Learn then test (Angelopoulos et al.,
arXiv 2110.01052): "level j keeps the bound for less than a share c of the prompts" is rejected at 1 - certainty if

    P(Bin(n, 1 - c) <= #{l_i > bound})  <=  1 - certainty

and the levels are tested in rising order until one is not rejected. That order needs no correction, and nothing is
assumed of how the loss grows with the level. So with probability `certainty` over the calibration prompts, a new prompt
that is exchangeable with them keeps the bound with probability >= c. (Plain split conformal would promise the same on
average over calibrations only, half of which would fall short.)

Level 0 computes everything, loses nothing, and is what is left where no level passes.
"""

import numpy as np
from scipy import stats
from scipy.optimize import isotonic_regression

CERTAINTY = 0.9
"""Share of calibrations for which the promise holds."""

LISTED = (0.8, 0.9, 0.95)
"""Confidences that are told of where none was asked for."""


def failures_allowed(prompts: int, confidence: float, certainty: float = CERTAINTY) -> int:
    """Most of n prompts that may pass the bound at a level that is accepted; -1 where n is too small for this
    confidence.
    """
    tail = stats.binom.cdf(np.arange(prompts + 1), prompts, 1 - confidence)
    return int((tail <= 1 - certainty).sum()) - 1


def prompts_needed(confidence: float, certainty: float = CERTAINTY) -> int:
    """The fewest prompts with which a level can be accepted at all, all of them within the bound."""
    return int(np.ceil(np.log(1 - certainty) / np.log(confidence) - 1e-9))


def accepted(losses: np.ndarray, bound: float, confidence: float, certainty: float = CERTAINTY) -> int:
    """How many levels pass in a row, (n, levels) losses by rising level; the last of them is the one to use."""
    passed = (losses > bound).sum(0) <= failures_allowed(len(losses), confidence, certainty)
    return len(passed) if passed.all() else int(passed.argmin())


def rising(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rising least-squares map from log x to log y (pool adjacent violators), as at most 33 knots from quantiles of
    x; clamp outside them. Pairs with a zero are left out; without any pair it maps to 0.
    """
    used = (x > 0) & (y > 0)
    if not used.any():
        return np.zeros(1), np.full(1, -np.inf)
    x, y = x[used], y[used]
    order = np.argsort(x, kind="stable")
    fitted = isotonic_regression(np.log(y[order])).x
    quantiles = np.unique(np.linspace(0, len(x) - 1, min(33, len(x))).round().astype(int))
    knots, values = np.log(x[order])[quantiles], fitted[quantiles]
    rises = np.append(np.diff(knots) > 0, True)
    return knots[rises], values[rises]
