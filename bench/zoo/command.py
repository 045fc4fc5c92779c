"""`python -m dicache.bench zoo`: all arms on all models, sweep by sweep.

    python -m dicache.bench zoo                       draw what is missing, model by model, then write the page
    python -m dicache.bench zoo --models emoji        only models whose name matches
    python -m dicache.bench zoo --main                only every model's first setting
    python -m dicache.bench zoo --check               draw a stated subset again (dicache.bench.zoo.sweeps.CHECKED)
    python -m dicache.bench zoo --quick               four conditions and eight steps, two values of every arm
    python -m dicache.bench zoo --show                write the page from what is there

A sweep is one model, solver and number of steps, and one file in `bench/results/zoo`; it goes on where it stopped. A
model whose weights or packages are missing is named and left out.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from dicache.bench.zoo.members import members
from dicache.bench.zoo.model import Model, Setting
from dicache.bench.zoo.page import write
from dicache.bench.zoo.sweeps import FOLDER, Sweep, sweeps

QUICK_STEPS, QUICK_CONDITIONS = 8, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", metavar="REGEX", default="", help="only models whose name matches")
    parser.add_argument("--main", action="store_true", help="only every model's first setting, with all arms")
    parser.add_argument("--check", action="store_true", help="draw a subset again, compare, write nothing")
    parser.add_argument("--quick", action="store_true", help="a few conditions, steps and values")
    parser.add_argument("--show", action="store_true", help="draw nothing, write the page")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more change rounding, and so decisions")
    parser.add_argument("--out", type=Path, help="folder of the results; by default those of the repository")


def run(args: argparse.Namespace) -> None:
    """Raises SystemExit(1) where `--check` finds a difference or nothing to draw."""
    torch.set_num_threads(args.threads)
    console = Console(highlight=False, soft_wrap=True)
    folder = args.out or (Path("zoo-quick") if args.quick else FOLDER)
    asked = [sweep for sweep in _asked(args, folder, console) if sweep.main or not (args.main or args.quick)]
    if args.check:
        _check(asked, console)
        return
    for sweep in () if args.show else asked:
        sweep.draw(console.print)
    write(folder, console)


def _asked(args: argparse.Namespace, folder: Path, console: Console) -> Sequence[Sweep]:
    drawable: list[Model] = []
    for model in members():
        if not re.search(args.models, model.name):
            continue
        if reason := model.missing():
            console.print(f"{model.name} is left out: {reason}")
        else:
            drawable.append(model)
    if not args.quick:
        return sweeps(drawable, folder)
    return [
        Sweep(
            Setting(model, model.solvers[0], QUICK_STEPS),
            main=True,
            folder=folder,
            conditions=QUICK_CONDITIONS,
            quick=True,
        )
        for model in drawable
    ]


def _check(asked: Sequence[Sweep], console: Console) -> None:
    drawn = differing = 0
    for sweep in asked:
        if not sweep.path.is_file():
            continue
        for name, change in sweep.check():
            drawn, differing = drawn + 1, differing + (change is not None)
            console.print(f"{name}: {change or 'the same'}")
    console.print(f"{drawn} points drawn again, {differing} differ")
    if differing or not drawn:
        raise SystemExit(1)
