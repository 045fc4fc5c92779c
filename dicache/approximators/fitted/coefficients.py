"""Fitted coefficients as a value: float32 tensors by site and name, with what they were fitted on, and how."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dicache.approximators.fitted.affine import Affine
from dicache.approximators.fitted.base import FromCoefficients
from dicache.approximators.fitted.low_rank import LowRank
from dicache.approximators.fitted.ridge import Ridge
from dicache.approximators.fitted.run_slopes import RunSlopes
from dicache.approximators.fitted.scale_shift import ScaleShift
from dicache.errors import FittedError
from dicache.probes.base import Probe
from dicache.probes.first_blocks import FirstBlocks
from dicache.probes.raw_latent import RawLatent
from dicache.probes.site_input import SiteInput
from dicache.sites import Evaluation, Sites, Spans, Sublayers, Tail
from dicache.types import Kind

KINDS: dict[str, type[FromCoefficients]] = {
    "ridge": Ridge,
    "low_rank": LowRank,
    "affine": Affine,
    "scale_shift": ScaleShift,
}
"""Those that `dicache.fit` makes."""
ALL_KINDS: dict[str, type[FromCoefficients]] = {**KINDS, "multistep": RunSlopes}
"""All that a file can hold; the last is found with its schedule (`dicache.finders.multistep`)."""
SELECTORS: dict[str, type[Sites]] = {s.__name__: s for s in (Evaluation, Spans, Tail, Sublayers)}


@dataclass(frozen=True)
class About:
    """What coefficients were fitted on, and how."""

    kind: str
    model: str
    """Which denoiser (`dicache.models.identity`)."""
    scheduler: str
    sigmas: tuple[float, ...]
    """Of the steps, in the unit of the scheduler's axis (`Step.sigma`)."""
    guidance: float
    """Weight of the strongest branch, as measured; 1 without guidance."""
    sites: dict[str, Any]
    """The selector's name and options."""
    prompts: int
    longest: int
    """Longest gap fitted, in steps."""
    rank: int
    ridge: float
    version: str
    """Of dicache."""


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
        """What they read: every site's own input, the latent for a whole evaluation, or nothing."""
        if not ALL_KINDS[self.about.kind].reads_feature:
            return FirstBlocks(depth=0)
        return SiteInput() if self.sites.inside_denoiser else RawLatent()

    def approximator(self) -> FromCoefficients:
        """To be used with these `sites` and this `probe` on the model, and, for kinds with coefficients per step
        (affine, scale_shift, multistep), the steps of the fit; anything else raises FittedError.
        """
        return ALL_KINDS[self.about.kind](self.coefficients, self.about.sigmas, self.about.model)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; an older one stays until the new one is whole. Raises FittedError where it cannot
        be written.
        """
        from dicache.approximators.fitted.coefficients_file import save

        save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> "Fitted":
        """Read what `save` wrote. Raises FittedError for a file that is missing, damaged, or of something else."""
        from dicache.approximators.fitted.coefficients_file import load

        return load(Path(path))


def described(sites: Sites) -> dict[str, Any]:
    """A selector as JSON. Raises FittedError for one that cannot be fitted."""
    if type(sites) not in SELECTORS.values():
        raise FittedError(f"{sites} cannot be fitted. Use one of {', '.join(f'{name}()' for name in SELECTORS)}.")
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(sites).items()}
    return {"name": type(sites).__name__, **options}


def selector(description: Mapping[str, Any]) -> Sites:
    """The other way round."""
    options = dict(description)
    made = SELECTORS[options.pop("name")]
    if "kinds" in options:
        options["kinds"] = tuple(Kind(kind) for kind in options["kinds"])
    return made(**options)
