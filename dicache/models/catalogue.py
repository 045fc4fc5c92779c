"""Every denoiser class of the installed diffusers, and what dicache makes of it."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import diffusers
from diffusers import ModelMixin, pipelines
from diffusers.models import controlnets, transformers, unets

from dicache.models.families import FAMILIES
from dicache.models.family import Family
from dicache.models.refusals import REFUSALS


class Entry(NamedTuple):
    """One class. `batch` is "per sample", "per batch", "refused", or "by shape" for a class that is in no table: it is
    looked at when it is enabled.
    """

    model: str
    kind: str
    """transformer or unet."""
    batch: str
    inside: str
    """Which sites smaller than the evaluation may be skipped; empty where it is refused."""
    between: str
    calls: int | None
    """Denoiser calls per guided step of its pipeline; None where no test runs one."""
    reason: str
    """Why it is refused."""


def catalogue() -> list[Entry]:
    """In the order of their names, transformers first. Deprecated pipelines' own classes are not in it."""
    elsewhere = {model for package in (controlnets, *_with_models()) for model in _models(package)}
    of_kind = {
        "transformer": {*_models(transformers), *(model for model in elsewhere if "Transformer" in model)},
        "unet": {*_models(unets), *(model for model in elsewhere if "UNet" in model)},
    }
    return [_entry(model, kind) for kind, models in of_kind.items() for model in sorted(models)]


def _models(package: ModuleType) -> Iterator[str]:
    """Classes that are defined in the package's modules."""
    for info in pkgutil.iter_modules(package.__path__):
        if package.__name__.startswith(pipelines.__name__) and not info.name.startswith("modeling_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, cls in vars(module).items():
            if inspect.isclass(cls) and issubclass(cls, ModelMixin) and cls.__module__ == module.__name__:
                yield name


def _with_models() -> Iterator[ModuleType]:
    """The pipelines that bring models of their own."""
    for info in pkgutil.iter_modules(pipelines.__path__):
        if info.ispkg and info.name != "deprecated":
            package = importlib.import_module(f"{pipelines.__name__}.{info.name}")
            if any(each.name.startswith("modeling_") for each in pkgutil.iter_modules(package.__path__)):
                yield package


def _entry(model: str, kind: str) -> Entry:
    family = FAMILIES.get(model) or REFUSALS.get(model)
    if family is None:
        return Entry(model, kind, "by shape", "", "", None, "")
    return Entry(model, kind, _batch(family), _inside(family), family.between, family.calls, family.refused)


def _batch(family: Family) -> str:
    return "refused" if family.refused else str(family.batch)


def _inside(family: Family) -> str:
    return "" if family.refused else str(family.inside)


def markdown(entries: list[Entry]) -> str:
    """The page that is committed as `docs/models.md`."""
    wrapped = [entry for entry in entries if entry.batch != "refused"]
    refused = [entry for entry in entries if entry.batch == "refused"]
    lines = [
        "# Which models are wrapped",
        "",
        f"Every denoiser class of diffusers {diffusers.__version__}, as `dicache models --markdown` lists it: "
        f"{len(wrapped)} are wrapped, {len(refused)} are refused by name. Other classes are looked at when they are "
        "enabled ([models of your own](custom-models.md)).",
        "",
        "*per sample*: samples that compute are gathered, run and scattered back. *per batch*: a batch computes "
        "together or not at all; decisions are per sample all the same. *inside*: which sites smaller than the whole "
        "evaluation may be skipped. *calls*: denoiser calls per guided step of its pipeline; a dash where no "
        "pipeline of the tests runs it.",
        "",
        "| model | batch | inside | between its blocks | calls |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {e.model} | {e.batch} | {e.inside} | {e.between} | {e.calls or '-'} |" for e in wrapped),
        "",
        "| refused | why |",
        "| --- | --- |",
        *(f"| {e.model} | {e.reason} |" for e in refused),
        "",
    ]
    return "\n".join(lines)
