"""A line whose two slopes were fitted where the run is by then (`dicache.finders.multistep`). With outputs v, and the
noise e that they stand for, of the last two computed steps, the output of the skipped step t is

    v(t) ~ v_0 + a_t (v_0 - v_1) + b_t (e_0 - e_1),        error ~ |tau|

Two numbers per step, of one schedule: they hold for the two computed steps that they were fitted with, and rows that
come from others hold their last value.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dicache.approximators.base import Histories, Target
from dicache.approximators.fitted.base import FromCoefficients
from dicache.extension import combine


class RunSlopes(FromCoefficients):
    names: ClassVar[Mapping[str, str]] = {"a": "T", "b": "T", "newest": "T", "before": "T"}
    """`newest` and `before` are the indices of those two steps, -1 where there are none."""
    reads_noise = True

    @property
    def history_depth(self) -> int:
        return 2

    def guess(self, histories: Histories, target: Target) -> Tensor:
        """Values of any shape."""
        return self.corrected(histories.outputs.values[0], histories, target)

    def corrected(self, anchor: Tensor, histories: Histories, target: Target) -> Tensor:
        values, noises, sigmas = histories.outputs.values[:2], histories.noises.values[:2], histories.outputs.sigmas[:2]
        if len(values) < 2:
            return anchor.clone()
        i, named = self.step(target.sigma), self._named(target.site)
        fitted_with = torch.stack([named["newest"][i], named["before"][i]])[:, None]
        here = (sigmas.isfinite() & (self.steps(sigmas) == fitted_with)).all(0)
        a, b = (torch.where(here, named[name][i], 0.0) for name in ("a", "b"))
        return combine((*values, *noises), torch.stack([1 + a, -a, b, -b], dim=1))
