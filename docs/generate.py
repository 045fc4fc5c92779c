"""The pages that say what there is: `python docs/generate.py` writes them, a test holds that they are up to date.

    models.md    every denoiser class of diffusers, as `dicache models --markdown` lists it
    cli.md       every command and its options, from the command line itself, between its markers
    presets.md   a row for every published method, from the presets
    schedules.md the finders' names and options, between its markers
    systems.md   a row for every system, with figures from the results, between its markers
    CHANGELOG    where modules and names went, between its markers
    architecture the line of every place that it names; its text is written by hand

The tables of benchmarks.md and of the README come from the results: `python -m dicache.bench show`.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

import dicache.finders
from dicache._moved import MOVED, REMOVED, RENAMED
from dicache.bench.showing import systems
from dicache.bench.showing.pages import filled
from dicache.bench.showing.tables import markdown
from dicache.cli.app import app
from dicache.finders.by_name import finders
from dicache.models.catalogue import catalogue
from dicache.models.catalogue import markdown as models
from dicache.presets import methods
from dicache.types import Action

DOCS = Path(__file__).parent
CHANGELOG = DOCS.parent / "CHANGELOG.md"
SCHEDULES = DOCS / "schedules.md"
SYSTEMS = DOCS / "systems.md"
CLI = DOCS / "cli.md"
PLACE = re.compile(r"`([\w.]+)` \(`([\w/]+\.py):\d+`\)")
"""A definition and where it is, as architecture.md writes it."""


def pages() -> dict[Path, str]:
    return {
        DOCS / "models.md": models(catalogue()),
        CLI: filled(CLI.read_text(encoding="utf-8"), "commands", "\n".join(_commands()).rstrip()),
        DOCS / "presets.md": "\n".join(_presets()),
        SCHEDULES: filled(SCHEDULES.read_text(encoding="utf-8"), "finders", markdown(list(_finders()))),
        SYSTEMS: filled(SYSTEMS.read_text(encoding="utf-8"), "systems", markdown(systems.table())),
        DOCS / "architecture.md": _with_lines((DOCS / "architecture.md").read_text(encoding="utf-8")),
        CHANGELOG: filled(CHANGELOG.read_text(encoding="utf-8"), "moved", markdown(_moved())),
    }


def _commands() -> Iterator[str]:
    commands = {str(inspect.unwrap(info.callback).__name__): info.callback for info in app.registered_commands}
    for name, command in sorted(commands.items()):
        hints = get_type_hints(command, include_extras=True)
        parameters = [Parameter(p, *get_args(hints[p.name])) for p in inspect.signature(command).parameters.values()]
        arguments = [p.written for p in parameters if isinstance(p.info, ArgumentInfo)]
        yield f"## dicache {name}\n"
        yield f"{inspect.cleandoc(command.__doc__ or '')}\n"
        yield f"```text\ndicache {' '.join([name, *arguments])} [OPTIONS]\n```\n"
        yield "| option | takes | default | what |"
        yield "| --- | --- | --- | --- |"
        yield from map(str, parameters)
        yield ""


def _with_lines(text: str) -> str:
    """Every `Class.method` (`path:line`) with the line where that is defined. Raises LookupError where it is not."""
    return PLACE.sub(lambda place: f"`{place[1]}` (`{place[2]}:{_line(place[2], place[1])}`)", text)


def _line(path: str, name: str) -> int:
    nodes: list[ast.AST] = [ast.parse((DOCS.parent / path).read_text(encoding="utf-8"))]
    for part in name.split("."):
        inside = [child for node in nodes for child in ast.iter_child_nodes(node)]
        defined = (ast.ClassDef, ast.FunctionDef)
        nodes = [child for child in inside if isinstance(child, defined) and child.name == part]
        if not nodes:
            raise LookupError(f"docs/architecture.md names {name} of {path}, where nothing is called {part}.")
    return int(nodes[0].lineno)  # type: ignore[attr-defined]


def _finders() -> Iterator[list[str]]:
    yield ["on the command line", "in Python", "options"]
    for name, described in sorted(finders().items()):
        kind = getattr(dicache.finders, described.kind)
        defaults = {field.name: field.default for field in fields(kind) if field.name in described.options}
        written = [f"`{key}={_word(value)}`" for key, value in defaults.items()]
        yield [f"`{name}`", f"`{described.kind}`", ", ".join(written) or "none"]


def _word(value: Any) -> str:  # noqa: ANN401
    """As it is given on the command line."""
    return str(value.name.lower() if isinstance(value, Action) else value)


def _moved() -> list[list[str]]:
    new = {old: f"`{name}`" for old, name in (MOVED | RENAMED).items()}
    new |= {old: f"taken out: {instead}" for old, instead in REMOVED.items()}
    return [["before", "now"], *([f"`{old}`", new[old]] for old in sorted(new))]


class Parameter:
    """An argument or an option of a command; prints as a row of its table."""

    def __init__(self, parameter: inspect.Parameter, kind: Any, info: ArgumentInfo | OptionInfo) -> None:  # noqa: ANN401
        self.name, self.default, self.kind, self.info = parameter.name, parameter.default, kind, info

    @property
    def written(self) -> str:
        """An argument's name."""
        return str(self.info.metavar or self.name.upper())

    def __str__(self) -> str:
        declared = [flag for flag in (self.info.default, *(self.info.param_decls or ())) if str(flag).startswith("--")]
        flags = ", ".join(declared) or f"--{self.name.replace('_', '-')}"
        written = self.written if isinstance(self.info, ArgumentInfo) else flags
        return f"| `{written}` | {self._takes()} | {self._default()} | {self.info.help or ''} |"

    def _takes(self) -> str:
        kinds = [kind for kind in get_args(self.kind) or (self.kind,) if kind is not NoneType]
        if isinstance(kinds[0], type) and issubclass(kinds[0], StrEnum):
            return ", ".join(kinds[0])
        inner = get_args(kinds[0]) or (kinds[0],)
        return "" if inner[0] is bool else inner[0].__name__.lower()

    def _default(self) -> str:
        if self.default is inspect.Parameter.empty:
            return "required"
        return "" if self.default is None or self.default is False else f"`{self.default}`"


def _presets() -> Iterator[str]:
    yield "# Published methods\n"
    yield (
        "Each is a function of `dicache.presets` that composes [parts](api/parts.md): "
        "`dicache.enable(pipe, config=dicache.presets.teacache())`. [The API](api/presets.md) has their arguments.\n"
    )
    yield (
        "**All of them** decide per sample where the papers decide per batch. Where a whole evaluation is skipped, "
        "the denoiser's output is kept per guidance branch, in the place of what the papers keep of blocks: the head's "
        "fresh time embedding does not reach a skipped step, and skipping saves more. Warm-ups are shares of the steps "
        "where papers count steps. Thresholds are no errors but in the method's own unit; they belong to a model and a "
        "number of steps, and are to be swept on any other. How they do on the reference model is in the "
        "[benchmarks](benchmarks.md#all-arms-at-the-main-setting).\n"
    )
    yield "| method | preset | differs from its paper | defaults are for |"
    yield "| --- | --- | --- | --- |"
    for method in sorted(methods(), key=lambda method: method.title.lower()):
        yield f"| {method.title} ({method.link}) | `{method.call}` | {method.differs} | {method.default} |"
    yield ""


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
