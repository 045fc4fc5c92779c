"""The denoiser's own input, before it is embedded: what methods without a probe look at (EasyCache, arXiv 2507.02860).
As a feature it is kept in the history, beside the outputs of the computed steps.
"""

from dataclasses import dataclass

from torch import Tensor

from dicache.probes.base import Probe, View


@dataclass(frozen=True)
class RawLatent(Probe):
    """The latent, (R, ...)."""

    depth = 0

    @property
    def sees_tokens(self) -> bool:
        return False

    def __call__(self, view: View) -> Tensor:
        return view.latent.detach().clone()
