"""What the commands' options have in common: their types, and what is looked at before any work is done."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dicache.cli.options import Texts
from dicache.errors import BudgetError, FileError, ModeError
from dicache.files.checked import plain_bytes, refusing

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Budget = Annotated[float, typer.Option(help="Relative L2 error the final latent may have.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="A folder for what is measured; stopped, the same command goes on there.")
]
Yes = Annotated[
    bool, typer.Option("--yes", help="Do not ask before it begins; nobody is asked where there is no terminal.")
]
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the signal's number."""
MOST_BYTES = 64 << 20
"""Of a file of prompts."""


def console(*, stderr: bool = False) -> Console:
    """For tables: names, prompts and paths are shown as they are, whatever markup they look like. In a file lines are
    120 characters wide.
    """
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else 120
    return Console(markup=False, emoji=False, highlight=False, stderr=stderr, width=width)


@contextmanager
def stoppable(
    checkpoint: Path | None, remedy: str = " (--checkpoint FOLDER keeps what was measured)"
) -> Iterator[None]:
    """On Ctrl-C one line that says what there is to go on from, and a shell's exit code for it. The folder is made, so
    that it is there from the first phase on. `remedy` is said where there is none.
    """
    if checkpoint is not None:
        checkpoint.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except KeyboardInterrupt:
        saved = checkpoint is not None and any(checkpoint.glob("*.safetensors"))
        nothing = f"nothing was saved yet{'' if checkpoint is not None else remedy}"
        left = f"the same command goes on from {checkpoint}" if saved else nothing
        print(f"dicache: stopped; {left}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a line on Ctrl-C wherever it has none of its own, and a shell's exit code for it: typer ends it
    without a word.
    """

    @wraps(command)
    def call(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            print("dicache: stopped; the same command begins anew", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return call


def prompts_of(texts: Texts, file: Path | None = None) -> list[str]:
    """The prompts that the options name, none where they name none. Raises ModeError where they contradict each other,
    FileError for a file that is none of prompts.
    """
    if file is not None and texts.prompts is not None:
        raise ModeError(f"{file} and --prompts {texts.prompts} are both given. Expected one file of prompts.")
    if (file or texts.prompts) and texts.prompt:
        raise ModeError("--prompt and a file of prompts are both given. Expected one of them.")
    path = file or texts.prompts
    return (lines_of(path) if path else list(texts.prompt or []))[: texts.first]


def lines_of(prompts: Path) -> list[str]:
    """Raises FileError for what is no file, is not in UTF-8, or holds no prompt."""
    if not prompts.is_file():
        raise FileError(f"{prompts} does not exist. Expected a text file with one prompt a line.")
    with refusing(FileError, f"{prompts} cannot be read", "Expected a text file with one prompt a line."):
        data = plain_bytes(prompts, MOST_BYTES)
    try:
        text = data.decode("utf-8-sig")
        wrong = "\0" in text
    except UnicodeDecodeError:
        wrong = True
    if wrong:
        raise FileError(f"{prompts} is not a text in UTF-8. Save it as UTF-8, with one prompt a line.")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise FileError(f"{prompts} is empty. Expected a text file with one prompt a line.")
    return lines


def check_picture(path: Path) -> None:
    """Fail before the work, not after it. Raises FileError."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise FileError(f"{path} is not a picture's name. Expected .png, .jpg or .webp.")
    _check_place(path)


def check_outcome(path: Path) -> None:
    """The same for a picture or a video."""
    if path.suffix.lower() == ".gif":
        _check_place(path)
    else:
        check_picture(path)


def check_json_or_page(path: Path) -> None:
    """The same for a report."""
    if path.suffix == ".html":
        check_page(path)
    else:
        check_json(path)


def check_page(path: Path) -> None:
    """The same for a page."""
    if path.suffix != ".html":
        raise FileError(f"{path} is not a page's name. Expected one that ends in .html.")
    _check_place(path)


def check_json(path: Path) -> None:
    """The same for a file of numbers."""
    if path.suffix != ".json":
        raise FileError(f"{path} is not the name of a file of numbers. Expected one that ends in .json.")
    _check_place(path)


def check_folder(path: Path | None) -> None:
    """The same for a folder that is made where it is not."""
    if path is not None and path.exists() and not path.is_dir():
        raise FileError(f"{path} is not a folder. Give one for the checkpoint, or a name that is free.")
    if path is not None and path.is_dir() and not os.access(path, os.W_OK):
        raise FileError(f"{path} cannot be written to. Give a folder for the checkpoint that can be.")
    if path is not None and not path.exists():
        near = next(parent for parent in path.absolute().parents if parent.exists())
        if not near.is_dir() or not os.access(near, os.W_OK):
            raise FileError(f"{path} cannot be made. Give a folder for the checkpoint in one that can be written to.")


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: the folder {path.parent} does not exist. Make it first.")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise FileError(f"{path} cannot be written. Give a file in a folder that can be written to.")


def check_budget(error_budget: float) -> None:
    """Raises BudgetError for what is no budget: what `dicache.planning.budget.validate` says of one number, without
    the seconds that it takes to import torch.
    """
    if not 0 <= error_budget < math.inf:
        raise BudgetError(f"error_budget is {error_budget:g}. Expected a finite number >= 0, for example 0.05.")
