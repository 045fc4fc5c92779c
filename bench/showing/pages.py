"""What of the results stands in the README and in the docs: `python -m dicache.bench show --readme README.md --docs
docs`. The pages are written by hand around markers, and the tables between them from here.

The README's one table is the main setting in six rows: dicache's three ways, the best other cache, the best published
method, and fewer steps. The last are swept on to their end (`dicache.bench.studies.fewer_steps`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dicache.bench.harness.curves import Curve, curves
from dicache.bench.harness.store import Facts
from dicache.bench.showing.tables import (
    TARGETS,
    Table,
    best,
    losses,
    markdown,
    scale,
    speedup_table,
    summary_table,
    times,
    title,
    verdict_table,
)
from dicache.files.atomic import write_text

OURS = {
    "a budget per sample: `error_budget=...`": "dicache",
    "the same steps for all: `speedup=...`": "dicache, speedup",
    "a schedule fitted on 24 prompts: `schedule=...`": "dicache, multistep schedule",
}
"""The README's words for dicache's arms."""
Swept = Mapping[str, Sequence[dict[str, Any]]]
"""Points of fewer steps, by the name of their setting."""


def fill(page: Path, name: str, body: str) -> None:
    """Put `body` between the page's markers `name`:begin and `name`:end."""
    write_text(page, filled(page.read_text(encoding="utf-8"), name, body))


def filled(text: str, name: str, body: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{body}\n{end}{after}"


def readme_table(facts: Facts, fewer: Sequence[dict[str, Any]]) -> Table:
    """Speed-up in executed MACs at three median errors."""
    drawn = curves(facts)
    ours = {curve.name: curve for curve in drawn}
    rows = [[words, *(_at(ours.get(arm), target) for target in TARGETS)] for words, arm in OURS.items()]
    rivals: dict[str, Callable[[float], tuple[float, str] | None]] = {
        "the best other cache: cache-dit, diffusers, SmoothCache": lambda target: best(drawn, "peer", "", target),
        "the best of two dozen published methods: `config=...`": lambda target: best(drawn, "preset", "", target),
        "fewer steps, no cache": lambda target: best(curves({"points": fewer}), "baseline", "", target),
    }
    rows += [[words, *(_named(rival(target)) for target in TARGETS)] for words, rival in rivals.items()]
    grid = title(facts).partition(", shift")[0]
    return [[f"{grid}: speed-up at a median error of", *(f"{target:g}" for target in TARGETS)], *rows]


def fewer_table(results: Mapping[str, Facts], swept: Swept) -> Table:
    """Of every setting that they were swept at: fewer steps to their end, beside dicache."""
    rows = [["setting", "median error", "fewer steps", "dicache", "dicache / fewer steps"]]
    for name in [name for name in results if name in swept]:
        facts = results[name]
        ours = next((curve for curve in curves(facts) if curve.kind == "dicache"), None)
        for target in TARGETS:
            rival = best(curves({"points": swept[name]}), "baseline", "", target)
            mine = None if ours is None else ours.speedup_at(target)
            ratio = "-" if rival is None or mine is None else f"{mine / rival[0]:.2f}"
            rows.append([title(facts), f"{target:g}", _named(rival), times(mine), ratio])
    return rows


def budget_table(facts: Facts) -> Table:
    """What every budget came to, for whoever has to choose one."""
    rows = [["`error_budget`", "work", "speed-up", "median error", "PSNR of the picture", "attributes"]]
    for point in facts["points"]:
        if point["arm"] == "dicache" and point["failure"] is None:
            medians = f"{np.median(point['errors']):.4f}", f"{np.median(point['psnr']):.0f} dB"
            work = f"{point['work']:.2f}", f"{1 / point['work']:.2f}x"
            rows.append([f"{point['value']:g}", *work, *medians, f"{np.mean(point['attributes']):.3f}"])
    return rows


def sections(results: Mapping[str, Facts], main: str, swept: Swept) -> dict[str, str]:
    """The tables of the page of benchmarks, by the names of their markers."""
    facts = results[main]
    of_main = [
        f"{title(facts)}. {scale(facts)}",
        *map(markdown, (speedup_table(facts), verdict_table(facts))),
        losses(facts),
    ]
    return {
        "settings": markdown(summary_table(list(results.values()))),
        "fewer": markdown(fewer_table(results, swept)),
        "main": "\n\n".join(of_main),
    }


def _at(curve: Curve | None, target: float) -> str:
    return times(None if curve is None else curve.speedup_at(target))


def _named(rival: tuple[float, str] | None) -> str:
    if rival is None:
        return "-"
    speedup, name = rival
    short = name.removeprefix("preset ").removeprefix("fewer steps").removeprefix(", ")
    return times(speedup) + (f" ({short})" if short else "")
