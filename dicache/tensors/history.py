"""The last K exact values of something, per row, with their times.

Rows are computed at different steps, so row r has its own times sigma[0, r], sigma[1, r], ..., newest first, nan where
there is none yet. A value is copied when it enters and never handed out, because models add in place. An approximated
value never enters.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.types import Rows


class History(NamedTuple):
    sigmas: Tensor
    """(K, R) float64 on the host."""
    values: tuple[Tensor, ...]
    """K tensors (R, ...), newest first. Entries without a time are undefined."""
    times: Tensor
    """(K, R): the same times in half log SNR, where it was known; errors grow evenly along it."""


def empty(depth: int, rows: int) -> History:
    nowhere = torch.full((depth, rows), torch.nan, dtype=torch.float64)
    return History(nowhere, (), nowhere.clone())


def push(history: History, value: Tensor, sigma: float, computed: Rows, time: float | None = None) -> History:
    """Enter `value` (R, ...) at `sigma` for the rows where `computed`, (R,) bool on the host, holds; `time` is the same
    in half log SNR, None where that is not known.
    """
    sigmas = _shifted(history.sigmas, sigma, computed)
    times = _shifted(history.times, sigma if time is None else time, computed)
    value = value.detach().clone()
    if not history.values or bool(computed.all()):
        return History(sigmas, (value, *history.values)[: len(sigmas)], times)
    index = computed.nonzero().flatten().to(value.device)
    values = [*history.values, history.values[-1].clone()][: len(sigmas)]
    with torch.inference_mode():  # where values that were computed in there may be written to, and others too
        for older, newer in zip(values[::-1], [*values[-2::-1], value], strict=True):
            older.index_copy_(0, index, newer[index])  # in place: nobody else holds them
    return History(sigmas, tuple(values), times)


def renamed(history: History, axis: Mapping[float, tuple[float, float]]) -> History:
    """The same values at other sigmas and times: those that `axis` gives for the sigmas so far."""
    sigmas, times = (history.sigmas.clone().apply_(lambda s, i=i: axis.get(s, (s, s))[i]) for i in (0, 1))
    return history._replace(sigmas=sigmas, times=times)


def _shifted(times: Tensor, newest: float, computed: Rows) -> Tensor:
    return torch.where(computed, torch.cat([torch.full_like(times[:1], newest), times[:-1]]), times)
