"""A model card: README.md beside a file that is shared, as the Hugging Face hub shows it.

A README.md that dicache did not write is never replaced.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dicache.errors import DicacheError, FileError
from dicache.files.atomic import write_text

MARK = "library_name: dicache"
NAME = "README.md"


class Card(NamedTuple):
    title: str
    lead: str
    usage: str
    """Python."""
    facts: Mapping[str, str]
    sections: Sequence[tuple[str, str]]
    """Headings and what stands below them."""

    def text(self, tags: Iterable[str], base_model: str | None) -> str:
        head = ["---", MARK, f"tags: {json.dumps(['dicache', *tags])}"]
        head += [] if base_model is None else [f"base_model: {json.dumps(base_model)}"]
        body = [
            f"# {self.title}",
            self.lead,
            f"```python\n{self.usage}\n```",
            table(("what", "which"), self.facts.items()),
        ]
        body += [part for heading, below in self.sections for part in (f"## {heading}", below)]
        return "\n".join([*head, "---", "", "\n\n".join(body), ""])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; bars and line breaks in cells are kept out of its way."""
    lines = [columns, ["---"] * len(columns), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@contextmanager
def sharing(error: type[DicacheError], what: str, folder: Path) -> Iterator[None]:
    """The folder is made where it is not. Raises `error` for what cannot be written, and, before anything is, where a
    README.md of somebody else lies there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        card = folder / NAME
        if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace")[:400]:
            raise FileError(f"{card} was not written by dicache. Give a folder of its own, or move that file")
        yield
    except (OSError, ValueError) as why:
        raise error(f"the {what} cannot be shared in {folder}: {str(why).rstrip('.')}.") from why


def write_card(folder: Path, text: str) -> None:
    """Raises FileError where that is impossible."""
    write_text(folder / NAME, text)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
