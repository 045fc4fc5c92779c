"""A row for every preset, beside the preset: which paper it follows, where it differs, what its defaults are for.

The rows are the table of the documentation, and end the presets' own help.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import cleandoc, signature
from typing import ParamSpec

from dicache.config import Config

P = ParamSpec("P")


@dataclass(frozen=True)
class Method:
    """One published method. All texts are Markdown without a full stop at the end."""

    preset: str
    """Its function in `dicache.presets`."""
    title: str
    """What its authors call it."""
    paper: str
    """arXiv's number, or where the code is."""
    differs: str
    """How the preset departs from it, besides what all presets share (`dicache.presets`)."""
    default: str
    """Of which model, steps or speed the preset's default values are."""
    call: str
    """The preset with its arguments and their default values."""

    @property
    def link(self) -> str:
        """The paper, as Markdown."""
        return f"[{self.paper}](https://arxiv.org/abs/{self.paper})" if self.paper[0].isdigit() else self.paper


_METHODS: list[Method] = []


def methods() -> tuple[Method, ...]:
    """All published methods, in the order in which they are defined: whole evaluations, blocks, fitted ones, tokens."""
    return tuple(_METHODS)


def published(
    title: str, paper: str, *, differs: str, default: str
) -> Callable[[Callable[P, Config]], Callable[P, Config]]:
    """Note a row about the preset that it stands above. The preset stays the function that it is."""

    def note(preset: Callable[P, Config]) -> Callable[P, Config]:
        _METHODS.append(Method(preset.__name__, title, paper, differs, default, _call(preset)))
        preset.__doc__ = (
            f"{cleandoc(preset.__doc__ or '')}\n\n{title} ({paper}). Differs: {differs}. Defaults: {default}."
        )
        return preset

    return note


def _call(preset: Callable[P, Config]) -> str:
    """The preset's name and arguments, without annotations."""
    written = signature(preset)
    bare = [argument.replace(annotation=argument.empty) for argument in written.parameters.values()]
    return f"{preset.__name__}{written.replace(parameters=bare, return_annotation=written.empty)}"
