"""What is typical of diffusion models: how fast a denoiser's output turns along the run.

With lambda half the logarithm of signal over noise, an output extrapolated to order 1 over tau from anchors D apart,
all three in lambda, is wrong by about

    k(lambda) |tau (tau + D)|,     k = exp(-0.95 - 0.52 tanh(1.2 (lambda + 0.2)))      relative L2

and of an error of the latent there remains at its end 1.6 over the guidance scale (1 without guidance).

k was measured on the reference model (median over 48 captions; the spread of its logarithm around this curve is 0.11
for the next step and 0.27 over gaps of up to two, which cost down to 0.57 of it) and is one curve for 20 and 28 steps
and for even and shifted time grids: in lambda, models turn nearly evenly, three times faster while the layout is
decided than later. What remains varies along the run; no weight that follows it did better than the constant. But
guided flows forget errors and unguided ones do not: with this law the final error was 0.5 to 1.05 times what was
planned with at scales 1, 2 and 3.5; under an earlier plan, with one constant for all, 0.5 times at 3.5 and 2.5 at 1.

Beyond 3.5, the scale that this model draws best at, it forgets no better and its errors grow: the law stays at 1.6 over
3.5, and at scale 6 the final error was 2 to 4 times what was planned with.

Errors made in noise are forgotten: later steps see little of them, and go where the latent then points. Schedules with
a given number of computed steps lose 0.73 times as much (geometric mean; 12, 20, 28 and 50 steps, shift 1 and 3,
guidance 1, 3.5 and 6, 32 captions) if an error at lambda counts for

    signal^0.8,     signal = 1 / (1 + exp(-lambda))

of one at the end. This says which way is best, not how many steps it must compute: a budget that is spent by such
prices loses 1.5 times as much at shift 3, because it plans early gaps so long that they cost more than was planned, and
pays for it later (`dicache.controllers.planned`).

Where a solver draws new noise outputs walk at random, whatever fills in: over tau an output is wrong by about

    k(lambda) sqrt(|tau|),     k = exp(-0.45 + 0.95 tanh(1.1 (lambda - 0.1)))

(posterior means of a small data set under Euler ancestral and DPM-Solver++ SDE, 20 and 50 steps).

On another model all this is where learning starts from, not where it ends: every sample's amplitude is learned while it
runs.
"""

import math
from functools import lru_cache

from dicache.types import Rows, Timetable

REMAINS = 1.6
"""Share of an error of the latent that is left at the end, times the guidance scale."""
GUIDED = 3.5
"""Beyond this scale errors are forgotten no better."""
GUIDED_FROM = 1.5
"""Beyond this scale guidance bends the path."""
RULE = 3
"""Raised whenever a sample is decided otherwise than before at the same internal budget: here, in the plan, by the
amplitudes or by what fills in. A profile is of the rule that it was tested by, and promises nothing by another.
"""
RULES = (2, RULE)
"""Those that this version can still decide by (`dicache.defaults`)."""
MARGIN = 1.75
"""Where nothing was calibrated, a budget over this is what is planned with: final errors are 0.5 to 1.05 times
that in the middle, and spread around it by half.
"""
DECAY, UNGUIDED_DECAY = 0.8, 0.4
"""Power of the signal's share with which errors count in a schedule: guided runs forget those made in noise, others
do so on few models.
"""
TRUST = 0.6
"""Power of what the law says of single steps where ways are compared: models differ in it more than in anything else,
and a way half-way between the law's and an even one is never far from the best
(docs/notebook/2026-11-29-lines-and-where-to-compute.md).
"""


def error_rate(half_log_snr: float) -> float:
    """k at lambda = `half_log_snr`."""
    return math.exp(-0.95 - 0.52 * math.tanh(1.2 * (half_log_snr + 0.2)))


def noisy_error_rate(half_log_snr: float) -> float:
    """k at lambda = `half_log_snr` under a solver that draws new noise."""
    return math.exp(-0.45 + 0.95 * math.tanh(1.1 * (half_log_snr - 0.1)))


@lru_cache(maxsize=16)
def error_rates(timetable: Timetable) -> tuple[float, ...]:
    """k of the outputs at every step of a run."""
    rate = noisy_error_rate if timetable.random else error_rate
    return tuple(rate(time) * timetable.gain(i) for i, time in enumerate(timetable.half_log_snrs))


def remaining(guidance: Rows) -> Rows:
    """Share of an error that is left at the end, by the weight of the strongest branch, (B,) -> (B,)."""
    return REMAINS / guidance.clamp(min=1.0, max=GUIDED)


def way_decay(guidance: float | None) -> float:
    """Power of the signal's share with which errors count in a run with this guidance; None: none was seen."""
    return DECAY if guidance is not None and guidance > GUIDED_FROM else UNGUIDED_DECAY


def surviving_share(half_log_snr: float, power: float = DECAY) -> float:
    """How much an error made at lambda = `half_log_snr` counts in a schedule, of one made at the end."""
    return (1 + math.exp(-half_log_snr)) ** -power
