"""Finders and sites by their names, for the command line: the package is scanned, nothing is registered.

What there is is read off the sources, so that a mistake is known before torch is imported; only what is used is
imported then.
"""

import ast
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dicache.errors import ScheduleError
from dicache.finders.asked import check_asked

if TYPE_CHECKING:
    from dicache.finders.base import Finder
    from dicache.sites import Sites

FILLS = ("reuse", "extrapolate", "zero")
"""What an option that is an Action may be: all that puts something in the place of a value and needs no fit."""
SITES = {"evaluation": "Evaluation", "tail": "Tail", "blocks": "Spans", "sublayers": "Sublayers", "skips": "Skips"}
_KINDS = {"bool": "True or False", "int": "a whole number", "float": "a number", "Action": ", ".join(FILLS)}


class Described(NamedTuple):
    """A finder as its source says."""

    module: str
    kind: str
    """Its class."""
    options: dict[str, tuple[str, str]]
    """Those that can be set by a word: kind and default, as they are written."""
    needs_aim: bool
    """Whether it must be given a cost or a budget, and whole evaluations."""
    summary: str
    """What its file says of it first."""


def finders() -> dict[str, Described]:
    """All that there are, by name."""
    made = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in (node for node in module.body if isinstance(node, ast.ClassDef)):
            fields = {
                f.target.id: f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)
            }
            name = fields["name"].value if "name" in fields else None
            if isinstance(name, ast.Constant):
                made[str(name.value)] = Described(
                    path.stem, node.name, _options(fields), "fits" in fields, _first(module)
                )
    return made


def _first(module: ast.Module) -> str:
    """Of its docstring the first sentence, or as much of it as makes sense alone."""
    text = " ".join((ast.get_docstring(module) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=.{40})[.:;](?= |$)", text, maxsplit=1)[0]


def _options(fields: dict[str, ast.AnnAssign]) -> dict[str, tuple[str, str]]:
    written = {
        name: (ast.unparse(field.annotation), "" if field.value is None else ast.unparse(field.value))
        for name, field in fields.items()
    }
    return {name: (kind, value) for name, (kind, value) in written.items() if kind in _KINDS or _words(kind)}


def _words(kind: str) -> list[str]:
    """Of Literal['one', 'two'], or a string."""
    if kind == "str":
        return ["a string"]
    return list(ast.literal_eval(f"({kind[8:-1]},)")) if kind.startswith("Literal[") else []


def check(name: str, options: dict[str, str], sites: str, budget: float | None, cost: float | None) -> None:
    """Raises ScheduleError for a name, an option or sites that there are not, and for what no search can keep to."""
    kinds = finders()
    if name not in kinds:
        raise ScheduleError(f"there is no finder {name!r}. There are {', '.join(sorted(kinds))}.")
    for key, text in options.items():
        if key not in kinds[name].options:
            raise ScheduleError(f"{name} has no option {key!r}. It has {', '.join(kinds[name].options) or 'none'}.")
        _read(key, text, kinds[name].options[key][0])
    if sites not in SITES:
        raise ScheduleError(f"sites is {sites!r}. Expected {', '.join(SITES)}.")
    check_asked(name, budget, cost, needs_aim=kinds[name].needs_aim)
    if kinds[name].needs_aim and sites != "evaluation":
        raise ScheduleError(f"{name} fits whole evaluations, not {sites}. Use --sites evaluation.")


def make(name: str, options: dict[str, str]) -> "Finder":
    """The finder of this name, its options read as their kinds. Raises ScheduleError for a name, an option or a value
    that it has not.
    """
    check(name, options, "evaluation", None, 1.0)
    described = finders()[name]
    values = {key: _read(key, text, described.options[key][0]) for key, text in options.items()}
    actions = import_module("dicache.types").Action
    values = {k: actions[v.upper()] if described.options[k][0] == "Action" else v for k, v in values.items()}
    finder: Finder = getattr(import_module(f"dicache.finders.{described.module}"), described.kind)(**values)
    return finder


def options_of(texts: Sequence[str]) -> dict[str, str]:
    """From `name=value` each. Raises ScheduleError for anything else."""
    pairs = [text.partition("=") for text in texts]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ScheduleError(f"the option {wrong[0]!r} has no value. Expected name=value.")
    return {name: value for name, _, value in pairs}


def sites_named(text: str) -> "Sites":
    """Of a word that `check` took."""
    sites: Sites = getattr(import_module("dicache.sites"), SITES[text])()
    return sites


def _read(key: str, text: str, kind: str) -> Any:  # noqa: ANN401
    """A value of this kind; of an Action its word."""
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind in ("int", "float"):
            return {"int": int, "float": float}[kind](text)
        words = FILLS if kind == "Action" else _words(kind)
        return text if kind == "str" else {word: word for word in words}[text.lower()]
    except (ValueError, KeyError) as error:
        raise ScheduleError(f"{key} is {text!r}. Expected {_KINDS.get(kind) or ', '.join(_words(kind))}.") from error
