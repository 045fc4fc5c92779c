"""Fitted coefficients as a value: float32 tensors by site and name, with what they were fitted on, and how."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dicache.approximators.fitted import coefficients_file
from dicache.approximators.fitted.about import ALL_KINDS, About, selector
from dicache.approximators.fitted.base import FromCoefficients
from dicache.probes.base import Probe
from dicache.probes.first_blocks import FirstBlocks
from dicache.probes.pooled_input import PooledInput
from dicache.probes.raw_latent import RawLatent
from dicache.probes.site_input import SiteInput
from dicache.sites import Sites


@dataclass(frozen=True, eq=False)
class Fitted:
    """What `dicache.fit` returns, and what a schedule may bring along. Coefficients by site and name, float32 on the
    host.
    """

    about: About
    coefficients: Mapping[str, Mapping[str, Tensor]]

    @property
    def sites(self) -> Sites:
        """Where they were fitted."""
        return selector(self.about.sites)

    @property
    def probe(self) -> Probe:
        """What they read: every site's own input, the latent for a whole evaluation, the first blocks, or nothing."""
        kind = ALL_KINDS[self.about.kind]
        if not kind.reads_feature:
            return FirstBlocks(depth=0)
        if "depth" in kind.names:
            return FirstBlocks(int(next(iter(self.coefficients.values()))["depth"]))
        if kind.pooled:
            return PooledInput()
        return SiteInput() if self.sites.inside_denoiser else RawLatent()

    @property
    def per_step(self) -> bool:
        """Whether they belong to the steps that they were fitted at."""
        return any("T" in letters for letters in ALL_KINDS[self.about.kind].names.values())

    def approximator(self) -> FromCoefficients:
        """To be used with these `sites` and this `probe` on the model, and, for kinds with coefficients per step
        (affine, scale_shift, multistep), the steps of the fit; anything else raises FittedError.
        """
        return ALL_KINDS[self.about.kind](self.coefficients, self.about.sigmas, self.about.model)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; an older one stays until the new one is whole. Raises FittedError where it cannot
        be written.
        """
        coefficients_file.save(self.about, self.coefficients, Path(path))

    @staticmethod
    def load(path: str | Path) -> "Fitted":
        """Read what `save` wrote. Raises FittedError for a file that is missing, damaged, or of something else."""
        return Fitted(*coefficients_file.load(Path(path)))
