"""What coefficients were fitted on, and how: the kinds there are, and the sites they were fitted for, as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dicache.approximators.fitted.affine import Affine
from dicache.approximators.fitted.base import FromCoefficients
from dicache.approximators.fitted.innovation import Innovation
from dicache.approximators.fitted.low_rank import LowRank
from dicache.approximators.fitted.ridge import Ridge
from dicache.approximators.fitted.run_slopes import RunSlopes
from dicache.approximators.fitted.scale_shift import ScaleShift
from dicache.approximators.fitted.sublayer_gates import Gates
from dicache.errors import FittedError
from dicache.sites import Evaluation, Linears, Sites, Skips, Spans, Sublayers, Tail
from dicache.types import Kind

KINDS: dict[str, type[FromCoefficients]] = {
    "ridge": Ridge,
    "low_rank": LowRank,
    "affine": Affine,
    "scale_shift": ScaleShift,
    "gate": Gates,
    "innovation": Innovation,
}
"""Those that `dicache.fit` makes."""
ALL_KINDS: dict[str, type[FromCoefficients]] = {**KINDS, "multistep": RunSlopes}
"""All that a file can hold; the last is found with its schedule (`dicache.finders.multistep`)."""
SELECTORS: dict[str, type[Sites]] = {s.__name__: s for s in (Evaluation, Spans, Tail, Sublayers, Linears, Skips)}


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
