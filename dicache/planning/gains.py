"""How far an error of a site below the whole evaluation reaches the final latent.

An error of the denoiser's output is priced by a law (`dicache.planning.error_law`). One of a block, or of a tail of
blocks, runs through the rest of the model first, which may keep it, damp it, or blow it up. So

    cost = gain(site, half log SNR) * cost at gain 1,        cost at gain 1 = error * share * |h| ||v|| / ||x_N|| * k

with gains measured offline by injection: one site skips at one step while all else computes, and what the final latent
is off by is held against what that skip was priced at (`dicache.measuring.gains`). What a composition's own estimator
is off by there is in it, so gains are those of one composition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dicache.errors import ModeError


@dataclass(frozen=True)
class Gains:
    """At K points along half log SNR, of S sites. With none of them gains are 1, which is an assumption: on the
    reference model it passed budgets over blocks six times.

    Raises ModeError unless all are finite and above 0, along half log SNRs that rise.
    """

    half_log_snrs: tuple[float, ...] = ()
    """(K,)."""
    values: tuple[tuple[float, ...], ...] = ()
    """(K, S)."""
    parts: str = ""
    """Of which composition (`Config.parts`); empty for any."""
    model: str = ""
    """Of which denoiser (`dicache.models.identity`); empty for any."""

    def __post_init__(self) -> None:
        sizes = {len(row) for row in self.values}
        times, values = np.array(self.half_log_snrs), np.array([each for row in self.values for each in row])
        fits = (
            len(times) == len(self.values) and len(sizes) <= 1 and 0 not in sizes and bool((np.diff(times) > 0).all())
        )
        if not fits or not np.isfinite(times).all() or not (np.isfinite(values) & (values > 0)).all():
            raise ModeError(
                "gains must be finite and above 0, as many at each of some half log SNRs that rise. Measure them: "
                "dicache.calibrate(pipe, prompts, steps=..., config=...)."
            )

    def at(self, site: int, half_log_snr: float | None) -> float:
        """Of one site. The logarithm goes along a line from point to point, and stays beyond the last ones; where
        nobody knows how much noise there is, it is the largest.
        """
        if not self.values:
            return 1.0
        column = [row[site] for row in self.values]
        if half_log_snr is None:
            return max(column)
        return float(np.exp(np.interp(half_log_snr, self.half_log_snrs, np.log(column))))


def is_positive(budget: float | Sequence[float] | None) -> bool:
    """Whether anything may be spent of it."""
    entries = budget if isinstance(budget, Sequence) else [0.0 if budget is None else budget]
    return any(entry > 0 for entry in entries)
