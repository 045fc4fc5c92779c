"""`python -m dicache.bench gpu --out FOLDER [--minutes 8] [--quick] [--device cpu]`: all parts, one after the other.

Every part runs in a process of its own, forked from one that has imported everything and never touched the device. It
writes after every row, so that what was measured stays measured if the machine goes away: `FOLDER/parts/NAME.json`
while it runs, and then all of it in `FOLDER/gpu-CARD.json`. A part that takes longer than its share is stopped, and
what it wrote counts. `--parts` measures some and leaves the others in the file. Ends with 1 where a part failed.
"""

import argparse
import json
import multiprocessing
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dicache.bench.gpu.sections import PARTS, Ask, quiet
from dicache.files.atomic import write_text

Facts = dict[str, Any]
NUMBERS = {
    "seconds": "{:.3f} s",
    "wall": "wall {:.3f}",
    "work": "work {:.3f}",
    "waits": "{} waits",
    "own": "own {:.2%}",
    "error": "error {:.3f}",
    "of_copy": "{:.2f} of copy",
    "copy_gigabytes_a_second": "copy {:.0f} GB/s",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together; what is not reached says so")
    parser.add_argument("--quick", action="store_true", help="smaller models; with --device cpu every line, once")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="some of them")


def run(args: argparse.Namespace) -> int:
    """The exit status. Raises SystemExit where there is no such device."""
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device that this torch can use. Run it where there is one, or with --device cpu.")
    started = time.monotonic()
    until = started + 60 * args.minutes
    folder = args.out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["dicache.bench.gpu.sections"])
    console, results = Console(width=160), dict[str, Facts]()
    for name in args.parts:
        least = min(until, time.monotonic() + PARTS[name][1])
        results[name] = _part(processes, name, Ask(args.device, args.quick, least), folder / f"{name}.json")
        _print(console, name, results[name])
        path = args.out / _file(results, args)
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        write_text(path, json.dumps(earlier | results, indent=1))
    console.print(f"{time.monotonic() - started:.0f} seconds; {path}")
    return int(any(_broken(facts) for facts in results.values()))


def _part(processes: Any, name: str, ask: Ask, path: Path) -> Facts:  # noqa: ANN401
    began = time.monotonic()
    path.unlink(missing_ok=True)
    process = processes.Process(target=work, args=(name, ask, path), daemon=False)
    process.start()
    process.join(max(ask.left, 1))
    stopped = process.is_alive()
    if stopped:
        process.kill()
        process.join()
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    if stopped:
        written["failure"] = "stopped when its time was up"
    elif process.exitcode and "failure" not in written:
        written["failure"] = f"its process ended with {process.exitcode}"
    return written | {"seconds": round(time.monotonic() - began, 1)}


def work(name: str, ask: Ask, path: Path) -> None:
    """In a process of its own: writes {"rows": [..]} after every row, and "failure" where the part raises."""
    facts: Facts = {"rows": []}
    write_text(path, json.dumps(facts))
    try:
        with quiet():
            for row in PARTS[name][0](ask):
                facts["rows"].append(row)
                write_text(path, json.dumps(facts))
    except Exception as error:  # the other parts go on
        traceback.print_exc(file=sys.stderr)
        write_text(path, json.dumps(facts | {"failure": f"{type(error).__name__}: {error}"[:2000]}))


def _file(results: dict[str, Facts], args: argparse.Namespace) -> str:
    rows = results.get("environment", {}).get("rows", [])
    card = rows[0].get("card", args.device) if rows else args.device
    return f"gpu-{re.sub('[^a-z0-9]+', '-', card.lower())}{'-quick' if args.quick else ''}.json"


def _broken(facts: Facts) -> bool:
    return "failure" in facts or any(row.get("exit") for row in facts["rows"])


def _print(console: Console, name: str, facts: Facts) -> None:
    drawn = Table(title=f"{name}, {facts['seconds']} s" + (f": {facts['failure']}" if "failure" in facts else ""))
    drawn.add_column("what")
    drawn.add_column("measured")
    for row in facts["rows"]:
        shown = {key: pattern.format(row[key]) for key, pattern in NUMBERS.items() if row.get(key) is not None}
        rest = {key: value for key, value in row.items() if key not in NUMBERS and value is not None}
        head = rest.pop("arm", None) or rest.pop("operation", name)
        words = [f"{key} {value}" for key, value in rest.items() if not isinstance(value, dict)]
        drawn.add_row(str(head), ", ".join([*shown.values(), *words]))
    console.print(drawn)
