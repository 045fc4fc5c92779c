"""The input of every site itself: the streams that it continues, joined. What maps fitted per site read, and what
FastCache (arXiv 2505.20353) holds against the step before.
"""

from dataclasses import dataclass

from torch import Tensor

from dicache.probes.base import Probe, View


@dataclass(frozen=True)
class SiteInput(Probe):
    """(R, N, C) of the site that opens."""

    depth = 0
    local = True

    def __call__(self, view: View) -> Tensor:
        return view.before.detach().clone()
