"""What of the results stands in the README and in the docs: `python -m dicache.bench show --readme README.md --docs
docs`. The pages are written by hand around markers, and the tables between them from here.

The README's one table is the main setting in six rows: dicache's three ways, and the best of each kind of rival; under
it stands by rule, not by hand, where dicache loses.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dicache.bench.harness.curves import curves
from dicache.bench.harness.store import Facts
from dicache.bench.showing.best import Best, ahead, best
from dicache.bench.showing.tables import (
    TARGETS,
    Table,
    limit_table,
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
THEIRS = {
    "the best other cache: cache-dit, diffusers, SmoothCache": "peer",
    "the best of two dozen published methods: `config=...`": "preset",
    "the best without any of these: fewer steps, other solvers, fixed intervals": "baseline",
}
"""Its words for kinds of rivals."""


def fill(page: Path, name: str, body: str) -> None:
    """Put `body` between the page's markers `name`:begin and `name`:end."""
    write_text(page, filled(page.read_text(encoding="utf-8"), name, body))


def filled(text: str, name: str, body: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{body}\n{end}{after}"


def readme_table(facts: Facts) -> Table:
    """Speed-up in executed MACs at three median errors."""
    drawn = curves(facts)
    arms = {curve.name: curve for curve in drawn}
    rows = [
        [words, *(times(arms[arm].reach(t) if arm in arms else None) for t in TARGETS)] for words, arm in OURS.items()
    ]
    rows += [[words, *(_short(best(drawn, {kind}, t)) for t in TARGETS)] for words, kind in THEIRS.items()]
    grid = title(facts).partition(", shift")[0]
    return [[f"{grid}: speed-up at a median error of", *(f"{target:g}" for target in TARGETS)], *rows]


def readme_losses(facts: Facts) -> str:
    """A sentence per way of dicache's: at which errors any rival is faster, and the fastest of them."""
    drawn = curves(facts)
    arms = {curve.name: curve for curve in drawn}
    lines = []
    for words, arm in OURS.items():
        reaches = [(t, arms[arm].reach(t)) for t in TARGETS] if arm in arms else []
        faster = [(t, ahead(drawn, reach.speedup, t)) for t, reach in reaches if reach is not None]
        lost = [f"at {t:g} to {rivals[0].name} ({rivals[0].reach})" for t, rivals in faster if rivals]
        lines.append(f"{words.partition(':')[0]} loses " + (" and ".join(lost) if lost else "to none of them"))
    return "Of these, " + "; ".join(lines) + "."


def budget_table(facts: Facts) -> Table:
    """What every budget came to, for whoever has to choose one."""
    rows = [["`error_budget`", "work", "speed-up", "median error", "PSNR of the picture", "attributes"]]
    for point in facts["points"]:
        if point["arm"] == "dicache" and point["failure"] is None:
            medians = f"{np.median(point['errors']):.4f}", f"{np.median(point['psnr']):.0f} dB"
            work = f"{point['work']:.2f}", f"{1 / point['work']:.2f}x"
            rows.append([f"{point['value']:g}", *work, *medians, f"{np.mean(point['attributes']):.3f}"])
    return rows


def sections(results: Mapping[str, Facts], main: str) -> dict[str, str]:
    """The tables of the page of benchmarks, by the names of their markers."""
    facts = results[main]
    of_main = [
        f"{title(facts)}. {scale(facts)}",
        *map(markdown, (speedup_table(facts), verdict_table(facts))),
    ]
    return {
        "settings": markdown(summary_table(list(results.values()))),
        "losses": "\n".join(f"- {title(facts)}. {losses(facts)}" for facts in results.values()),
        "main": "\n\n".join(of_main),
        "limit": markdown(limit_table(facts)),
    }


def _short(rival: Best | None) -> str:
    if rival is None:
        return "-"
    return f"{rival.reach} ({rival.name.removeprefix('preset ')})"
