"""What the commands' options have in common: their types, and what is looked at before any work is done."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Budget = Annotated[float, typer.Option(help="Relative L2 error the final latent may have.")]
Guidance = Annotated[float, typer.Option(min=1.0, help="Guidance scale; 1 for none.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31)]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples drawn at once.")]
Checkpoint = Annotated[Path | None, typer.Option(help="A folder; killed, the same command goes on there.")]
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the signal's number."""


def progress(quiet: bool) -> Progress:
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=Console(stderr=True), disable=quiet)


@contextmanager
def interruptible(checkpoint: Path | None) -> Iterator[None]:
    """Ctrl-C is one line that says whether and where the work goes on, and a shell's exit code for it. The folder is
    made, so that it is there from the first phase on.
    """
    try:
        if checkpoint is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"the checkpoint {checkpoint} cannot be made: {error.strerror}.") from error
    try:
        yield
    except KeyboardInterrupt:
        resumed = f"the same command goes on where it was, with --checkpoint {checkpoint}"
        lost = "nothing was kept: with --checkpoint FOLDER the same command would go on where it was"
        print(f"dicache: interrupted; {lost if checkpoint is None else resumed}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def guided(guidance: float) -> dict[str, Any]:
    """What the reference pipeline is called with for this scale."""
    return {"negative_prompt": "", "true_cfg_scale": guidance} if guidance > 1 else {}


def lines_of(prompts: Path) -> list[str]:
    if not prompts.is_file():
        raise typer.BadParameter(f"{prompts} does not exist. Expected a text file with one prompt a line.")
    return [line.strip() for line in prompts.read_text().splitlines() if line.strip()]


def check_picture(path: Path) -> None:
    """Fail before the work, not after it."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise typer.BadParameter(f"{path} is not a picture's name. Expected .png, .jpg or .webp.")
    if path.is_dir() or (not os.access(path.parent, os.W_OK | os.F_OK) and path.parent.is_dir()):
        raise typer.BadParameter(f"{path} cannot be written.")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"the folder {path.parent} does not exist.")


def check_json(path: Path) -> None:
    """The same for a file of numbers."""
    if path.suffix != ".json" or not path.parent.is_dir():
        raise typer.BadParameter(f"{path} cannot be written. Expected a .json file in a folder that exists.")
