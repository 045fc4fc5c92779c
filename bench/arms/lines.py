"""The plainest line that a cache can draw: through the last two outputs, along half log signal over noise."""

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.extension import combine
from dicache.types import Action, Rows


class HalfLogSnrLine(Approximator):
    """v(l) ~ v_0 + (v_0 - v_1) (l - l_0) / (l_0 - l_1), l being half log signal over noise; along sigma where the run's
    times are unknown. On networks that nobody tuned for it beat every choice among fills.
    """

    action = Action.EXTRAPOLATE
    needs = 2

    def guess(self, histories: Histories, target: Target) -> Tensor:
        sigmas = histories.outputs.sigmas[:2]
        newest, before, target_time = _times(torch.cat([sigmas, torch.full_like(sigmas[:1], target.sigma)]), target)
        ratio = ((target_time - newest) / (newest - before)).nan_to_num(0.0, 0.0, 0.0)
        return combine(histories.outputs.values[:2], torch.stack([1 + ratio, -ratio], dim=1))

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return ((sigma - sigmas[0]) * (sigma - sigmas[1])).abs()


def _times(sigmas: Tensor, target: Target) -> Tensor:
    """Half log signal over noise of the steps at `sigmas` (3, R), which are of the run's timetable."""
    table = target.timetable
    if table is None or not table.half_log_snrs:
        return sigmas
    grid = torch.tensor(table.sigmas, dtype=torch.float64)
    return torch.tensor(table.half_log_snrs, dtype=torch.float64)[(sigmas[..., None] - grid).abs().argmin(-1)]
