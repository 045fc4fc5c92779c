"""What the commands' options have in common: their types, and what is looked at before any work is done."""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dicache.errors import BudgetError, FileError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Budget = Annotated[float, typer.Option(help="Relative L2 error the final latent may have.")]
Guidance = Annotated[float, typer.Option(min=1.0, help="Guidance scale; 1 for none.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31)]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples drawn at once.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="A folder for what is measured; stopped, the same command goes on there.")
]
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the signal's number."""


def progress(quiet: bool) -> Progress:
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=Console(stderr=True), disable=quiet)


def guided(guidance: float) -> dict[str, Any]:
    """What the reference pipeline is called with for this scale."""
    return {"negative_prompt": "", "true_cfg_scale": guidance} if guidance > 1 else {}


@contextmanager
def stoppable(checkpoint: Path | None) -> Iterator[None]:
    """On Ctrl-C one line that says what there is to go on from, and a shell's exit code for it. The folder is made, so
    that it is there from the first phase on.
    """
    if checkpoint is not None:
        checkpoint.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except KeyboardInterrupt:
        saved = checkpoint is not None and any(checkpoint.glob("*.safetensors"))
        remedy = "" if checkpoint is not None else " (--checkpoint FOLDER keeps what was measured)"
        left = f"the same command goes on from {checkpoint}" if saved else f"nothing was saved yet{remedy}"
        print(f"dicache: stopped; {left}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def lines_of(prompts: Path) -> list[str]:
    """Raises FileError for what is no file, or holds no prompt."""
    if not prompts.is_file():
        raise FileError(f"{prompts} does not exist. Expected a text file with one prompt a line.")
    lines = [line.strip() for line in prompts.read_text().splitlines() if line.strip()]
    if not lines:
        raise FileError(f"{prompts} is empty. Expected a text file with one prompt a line.")
    return lines


def check_picture(path: Path) -> None:
    """Fail before the work, not after it. Raises FileError."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise FileError(f"{path} is not a picture's name. Expected .png, .jpg or .webp.")
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
