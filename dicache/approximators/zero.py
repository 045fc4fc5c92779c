"""Nothing: a branch that is left out, not held."""

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.types import Action, Rows


class Zero(Approximator):
    """v(sigma) ~ 0. Its error does not grow: it is all of the value from the start. The last value lends its shape."""

    action = Action.ZERO
    needs = 1
    over_ranks = True

    def guess(self, histories: Histories, target: Target) -> Tensor:
        return torch.zeros_like(histories.outputs.values[0])

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return torch.where(sigmas[0].isnan(), torch.nan, torch.ones_like(sigmas[0]))
