"""Finders and sites by their names, for the command line: the package is scanned, nothing is registered."""

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import dicache.finders
from dicache.errors import ScheduleError
from dicache.finders.base import Finder
from dicache.schedules.action_table import FILLS
from dicache.sites import Evaluation, Sites, Spans, Sublayers, Tail
from dicache.types import Action

_FILLS = {fill.name.lower(): fill for fill in FILLS if fill is not Action.CORRECT}


def finders() -> dict[str, type[Finder]]:
    """All that there are."""
    modules = [import_module(f"dicache.finders.{module.name}") for module in iter_modules(dicache.finders.__path__)]
    made = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {kind.name: kind for kind in made if issubclass(kind, Finder) and kind is not Finder}


def make(name: str, options: dict[str, str], **values: Any) -> Finder:  # noqa: ANN401
    """The finder of this name, its options read as the kinds their defaults have; `values` as they are, None for
    nothing. Raises ScheduleError for a name or an option that it has not.
    """
    kinds = finders()
    if name not in kinds:
        raise ScheduleError(f"there is no finder {name!r}. There are {', '.join(sorted(kinds))}.")
    defaults: dict[str, Any] = {f.name: f.default for f in fields(kinds[name])}  # type: ignore[arg-type]  # dataclasses
    values = {key: value for key, value in values.items() if value is not None}
    if unknown := sorted(set(values) - set(defaults)):
        raise ScheduleError(f"{name} has no use for a {unknown[0]}. Leave it out.")
    for key, text in options.items():
        if key not in defaults or not isinstance(defaults[key], bool | int | float):
            settable = [k for k, value in defaults.items() if isinstance(value, bool | int | float)]
            raise ScheduleError(f"{name} has no option {key!r}. It has {', '.join(settable) or 'none'}.")
        values[key] = _read(key, text, defaults[key])
    return kinds[name](**values)


def options_of(texts: Sequence[str]) -> dict[str, str]:
    """From `name=value` each. Raises ScheduleError for anything else."""
    pairs = [text.partition("=") for text in texts]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ScheduleError(f"the option {wrong[0]!r} has no value. Expected name=value.")
    return {name: value for name, _, value in pairs}


def sites_named(text: str) -> Sites:
    """Raises ScheduleError for a word that names none."""
    named: dict[str, Sites] = {"evaluation": Evaluation(), "tail": Tail(), "blocks": Spans(), "sublayers": Sublayers()}
    if text not in named:
        raise ScheduleError(f"sites is {text!r}. Expected {', '.join(named)}.")
    return named[text]


def _read(key: str, text: str, default: bool | int | float) -> Any:  # noqa: ANN401
    try:
        if isinstance(default, Action):
            return _FILLS[text.lower()]
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(default)(text)
    except (ValueError, KeyError) as error:
        expected = ", ".join(_FILLS) if isinstance(default, Action) else f"a value like {default}"
        raise ScheduleError(f"{key} is {text!r}. Expected {expected}.") from error
