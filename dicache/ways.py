"""Ways through a run of one course, from careful to fast: which steps compute, and the slopes of the lines that fill in
between them, fitted along the run (`dicache.finders.along`), way by way. With outputs v, and the noise e that they
stand for, of the last two computed steps, a skipped step of way w is

    v(t) ~ v_0 + a_wt (v_0 - v_1) + b_wt (e_0 - e_1)

What a way loses is its name: an internal budget stands for the fastest way that loses no more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dicache.types import Grid, Rows


@dataclass(frozen=True, eq=False)
class Ways:
    computed: np.ndarray
    """(W, T) bool."""
    slopes: np.ndarray
    """a and b, (W, T, 2) float32; 0 where a step computes."""
    lost: np.ndarray
    """Relative error of the final latent of the median prompt that it was fitted on, (W,), rising."""

    def fastest(self, levels: Rows) -> Rows:
        """The way within every internal budget, (B,) int64; -1 where none is."""
        lost = torch.from_numpy(self.lost.astype(np.float64)) * (1 - 1e-6)
        return torch.searchsorted(lost, levels.double(), right=True) - 1

    def loses(self, ways: Rows) -> Rows:
        """(B,) float64; 0 without a way."""
        lost = torch.from_numpy(self.lost.astype(np.float64))
        return torch.where(ways < 0, 0.0, lost[ways.clamp(min=0)])

    def computes(self, ways: Rows, step: int) -> Rows:
        """(B,) bool."""
        return torch.from_numpy(self.computed[ways.clamp(min=0).numpy(), step].astype(bool)) | (ways < 0)

    def lines(self, ways: Rows, step: int, newest: Rows, before: Rows) -> Grid:
        """The slopes at a skipped step, (B, 2) float32; nan where the two last computed steps are not the way's."""
        w = ways.clamp(min=0).numpy()
        here = (self._anchors[w, step] == np.stack([newest.numpy(), before.numpy()], axis=1)).all(1)
        here &= (ways >= 0).numpy() & ~self.computed[w, step].astype(bool)
        return torch.from_numpy(np.where(here[:, None], self.slopes[w, step], np.nan).astype(np.float32))

    @cached_property
    def _anchors(self) -> np.ndarray:
        """The last computed step before each and the one before that, -1 for none, (W, T, 2)."""
        found = np.full((*self.computed.shape, 2), -1)
        for t in range(1, found.shape[1]):
            moved = np.stack([np.full(len(found), t - 1), found[:, t - 1, 0]], axis=1)
            found[:, t] = np.where(self.computed[:, t - 1, None], moved, found[:, t - 1])
        return found


def ways_of(arrays: Mapping[str, np.ndarray]) -> Ways:
    """Of a profile."""
    return Ways(arrays["ways"] > 0, arrays["slopes"], arrays["lost"])
