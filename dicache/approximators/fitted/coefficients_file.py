"""Fitted coefficients as a file: safetensors with float32 arrays named `coefficient:site`, and in its header one JSON
string that says what they are (kind, model, scheduler, steps, guidance, sites, how they were fitted) and a SHA-256 of
all of it. Nothing in it is executed. A file that is truncated, damaged, or of anything else raises FittedError before
anything is made of it.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from dicache.approximators.fitted.about import ALL_KINDS, About, selector
from dicache.errors import DicacheError, FittedError
from dicache.files.arrays_file import ArraysFile, Stored, arrays_file
from dicache.files.atomic import write_bytes
from dicache.files.checked import Fields, FileFault, refusing
from dicache.files.sealed_arrays import sealed, unsealed

KIND, FORMAT = "dicache.fitted", 1
LARGEST = 1 << 30
"""Bytes; more are no coefficients."""
Coefficients = Mapping[str, Mapping[str, Tensor]]
"""By site and by name."""
FIELDS = frozenset(About.__dataclass_fields__) | {"format"}


def save(about: About, coefficients: Coefficients, path: Path) -> None:
    """Raises FittedError where that is impossible."""
    try:
        write_bytes(path, as_bytes(about, coefficients))
    except (DicacheError, ValueError, TypeError) as error:
        raise FittedError(f"{path} cannot be written: {error}") from error


def as_bytes(about: About, coefficients: Coefficients) -> bytes:
    """The file."""
    arrays = {
        f"{name}:{site}": coefficient.detach().cpu().numpy()
        for site, named in coefficients.items()
        for name, coefficient in named.items()
    }
    return sealed(KIND, {"format": FORMAT, **asdict(about)}, arrays)


def load(path: Path) -> tuple[About, Coefficients]:
    """Raises FittedError for a file that is missing, damaged, or of something else."""
    with (
        refusing(FittedError, f"{path} holds no fitted coefficients of dicache", "Make it with Fitted.save."),
        arrays_file(path, LARGEST) as file,
    ):
        return read(file)


def read(file: ArraysFile) -> tuple[About, Coefficients]:
    """What an open file holds. Raises FileFault, ValueError, TypeError or LookupError for anything but what `save`
    writes, before there is an array in memory.
    """
    file.check_kinds("F32")
    about = _about(unsealed(file, KIND))
    names, sites = ALL_KINDS[about.kind].names, _sites(file.stored, about)
    coefficients = {site: {name: torch.from_numpy(file.array(f"{name}:{site}")) for name in names} for site in sites}
    for site, named in coefficients.items():
        _check_finite(site, named)
    return about, coefficients


def _about(fields: Fields) -> About:
    if fields.content.get("format") != FORMAT:
        raise FileFault(f"its format is not {FORMAT}; another version of dicache wrote it")
    if set(fields.content) != FIELDS:
        raise FileFault("its header has other fields than expected")
    sigmas, kind = fields.numbers("sigmas"), fields.text("kind")
    if not sigmas:
        raise FileFault("it has no steps")
    if kind not in ALL_KINDS:
        raise FileFault(f"it is of kind {kind!r}, not of {', '.join(ALL_KINDS)}")
    sites = dict(fields.fields("sites").content)
    selector(sites)
    return About(
        kind=kind,
        model=fields.text("model"),
        scheduler=fields.text("scheduler"),
        sigmas=sigmas,
        guidance=fields.number("guidance"),
        sites=sites,
        prompts=fields.integer("prompts", 1),
        longest=fields.integer("longest", 1),
        rank=fields.integer("rank", 1),
        ridge=fields.number("ridge"),
        version=fields.text("version"),
    )


def _sites(stored: Mapping[str, Stored], about: About) -> list[str]:
    """Those that have coefficients: of all names that the kind needs, in shapes that fit one another."""
    names = ALL_KINDS[about.kind].names
    sites = list(dict.fromkeys(key.partition(":")[2] for key in stored))
    if not sites or set(stored) != {f"{name}:{site}" for site in sites for name in names}:
        raise FileFault(f"its arrays are not the {', '.join(names)} of every site")
    for site in sites:
        sizes = {"T": len(about.sigmas), "G": about.longest}
        for name, letters in names.items():
            _fill_sizes(f"{name}:{site}", stored[f"{name}:{site}"].shape, letters, sizes)
        if sizes.get("K", 0) > about.rank:
            raise FileFault(f"the rank at {site} is above {about.rank}")
    return sites


def _fill_sizes(key: str, shape: tuple[int, ...], letters: str, sizes: dict[str, int]) -> None:
    """Those of the letters that it is the first to show; the others must be what they are by then."""
    if len(shape) != len(letters) or any(sizes.setdefault(x, n) != n for x, n in zip(letters, shape, strict=True)):
        raise FileFault(f"{key} has shape {shape}, which does not fit")


def _check_finite(site: str, named: Mapping[str, Tensor]) -> None:
    for name, coefficient in named.items():
        if not bool(torch.isfinite(coefficient).all()):
            raise FileFault(f"{name}:{site} is not finite")
