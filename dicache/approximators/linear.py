"""Order 1: the line through the last two exact values, along true time.

Step indices instead of times are a common fault of this field: on a shifted schedule steps differ in length by ten
times.
"""

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.extension import combine
from dicache.tensors.history import History
from dicache.types import Action, Rows


def extrapolate(history: History, sigma: float) -> Tensor:
    """v_0 + (v_0 - v_1) tau / D, with tau = sigma - sigma_0 and D = sigma_0 - sigma_1."""
    ratio = (sigma - history.sigmas[0]) / (history.sigmas[0] - history.sigmas[1])
    ratio = ratio.nan_to_num(0.0, 0.0, 0.0)
    return combine(history.values[:2], torch.stack([1 + ratio, -ratio], dim=1))


class Extrapolate(Approximator):
    """v(sigma) ~ v_0 + (v_0 - v_1) tau / D, error ~ |tau (tau + D)|."""

    action = Action.EXTRAPOLATE
    needs = 2
    over_ranks = True

    def guess(self, histories: Histories, target: Target) -> Tensor:
        return extrapolate(histories.outputs, target.sigma)

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return ((sigma - sigmas[0]) * (sigma - sigmas[1])).abs()
