"""Fitted coefficients as a value and as a file.

The file is safetensors: float32 tensors named `coefficient:site`, and in its header one JSON string that says what they
are (kind, model, scheduler, steps, guidance, sites, how they were fitted) and a SHA-256 of all of it. Nothing in it is
executed. A file that is truncated, damaged, or of anything else raises FittedError before anything is made of it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dicache.approximators.fitted.affine import Affine
from dicache.approximators.fitted.base import Calibrated
from dicache.approximators.fitted.low_rank import LowRank
from dicache.approximators.fitted.ridge import Ridge
from dicache.approximators.fitted.run_slopes import Multistep
from dicache.approximators.fitted.scale_shift import ScaleShift
from dicache.errors import DicacheError, FittedError
from dicache.probes.base import Probe
from dicache.probes.first_blocks import FirstBlocks
from dicache.probes.raw_latent import RawLatent
from dicache.probes.site_input import SiteInput
from dicache.sites import Evaluation, Sites, Spans, Sublayers, Tail
from dicache.types import Kind

FORMAT = 1
KINDS: dict[str, type[Calibrated]] = {
    "ridge": Ridge,
    "low_rank": LowRank,
    "affine": Affine,
    "scale_shift": ScaleShift,
}
"""Those that `dicache.fit` makes."""
FORMS: dict[str, type[Calibrated]] = {**KINDS, "multistep": Multistep}
"""All that a file can hold; the last is found with its schedule (`dicache.finders.multistep`)."""
SELECTORS: dict[str, type[Sites]] = {s.__name__: s for s in (Evaluation, Spans, Tail, Sublayers)}
_HEADER, _DIGEST = "dicache.fitted", "sha256"


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
        if not FORMS[self.about.kind].reads_feature:
            return FirstBlocks(depth=0)
        return SiteInput() if self.sites.inside_denoiser else RawLatent()

    def approximator(self) -> Calibrated:
        """To be used with these `sites` and this `probe` on the model, and, for kinds with coefficients per step
        (affine, scale_shift, multistep), the steps of the fit; anything else raises FittedError.
        """
        return FORMS[self.about.kind](self.coefficients, self.about.sigmas, self.about.model)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; an older one stays until the new one is whole. Raises FittedError where it cannot
        be written.
        """
        path, tensors = Path(path), _flat(self.coefficients)
        header = json.dumps({"format": FORMAT, **asdict(self.about)}, allow_nan=False)
        part = path.with_name(path.name + ".part")
        try:
            save_file(tensors, part, {_HEADER: header, _DIGEST: _digest(header, tensors)})
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise FittedError(f"{path} cannot be written: {error}") from error

    @staticmethod
    def load(path: str | Path) -> "Fitted":
        """Read what `save` wrote. Raises FittedError for a file that is missing, damaged, or of something else."""
        try:
            header, tensors = _read(Path(path))
            about = _about(json.loads(header))
            return Fitted(about, _by_site(tensors, about))
        except (OSError, SafetensorError, DicacheError, ArithmeticError, ValueError, TypeError, LookupError) as error:
            raise FittedError(
                f"{path} holds no fitted coefficients of dicache: {error}. Make it with Fitted.save."
            ) from error
        except RecursionError as error:
            raise FittedError(
                f"{path} holds no fitted coefficients of dicache: its header is nested too deep."
            ) from error


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


def _flat(coefficients: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}:{site}": t.contiguous() for site, named in coefficients.items() for name, t in named.items()}


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The header's JSON and all tensors, which are what their digest says."""
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata() or {}, file.keys()
        if _HEADER not in metadata:
            raise ValueError("its header is not dicache's")
        foreign = [name for name in names if file.get_slice(name).get_dtype() != "F32"]
        if foreign:
            raise ValueError(f"{foreign[0]} is not float32")
        tensors = {name: file.get_tensor(name) for name in names}
    if _digest(metadata[_HEADER], tensors) != metadata.get(_DIGEST):
        raise ValueError("it is damaged, its checksum does not fit")
    return metadata[_HEADER], tensors


def _about(fields: dict[str, Any]) -> About:
    """Raises ValueError, TypeError or LookupError for anything but what `save` writes."""
    if fields.pop("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}; another version of dicache wrote it")
    about = About(**{**fields, "sigmas": tuple(map(float, fields["sigmas"]))})
    numbers, counts = (*about.sigmas, about.guidance, about.ridge), (about.prompts, about.longest, about.rank)
    words = (about.kind, about.scheduler, about.version, about.model)
    if not all(type(n) is float and math.isfinite(n) for n in numbers) or not about.sigmas:
        raise ValueError("its steps, guidance or ridge are not finite numbers")
    if not all(type(n) is int and n >= 1 for n in counts) or not all(type(word) is str for word in words):
        raise ValueError("its header has fields of another kind than expected")
    if about.kind not in FORMS:
        raise ValueError(f"it is of kind {about.kind!r}, not of {', '.join(FORMS)}")
    selector(about.sites)
    return about


def _by_site(tensors: Mapping[str, Tensor], about: About) -> dict[str, dict[str, Tensor]]:
    """Checked against what the kind needs."""
    names, sites = FORMS[about.kind].names, dict.fromkeys(name.partition(":")[2] for name in tensors)
    if not sites or set(tensors) != {f"{name}:{site}" for site in sites for name in names}:
        raise ValueError(f"its tensors are not the {', '.join(names)} of every site")
    for site in sites:
        sizes = {"T": len(about.sigmas), "G": about.longest}
        for name, letters in names.items():
            _check(f"{name}:{site}", tensors[f"{name}:{site}"], letters, sizes)
        if sizes.get("K", 0) > about.rank:
            raise ValueError(f"the rank at {site} is above {about.rank}")
    return {site: {name: tensors[f"{name}:{site}"] for name in names} for site in sites}


def _check(name: str, tensor: Tensor, letters: str, sizes: dict[str, int]) -> None:
    """Fills in the sizes of the letters it is the first to show."""
    if tensor.ndim != len(letters) or any(
        sizes.setdefault(x, n) != n for x, n in zip(letters, tensor.shape, strict=True)
    ):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, which does not fit")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} is not finite")
