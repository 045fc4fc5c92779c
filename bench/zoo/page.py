"""What the zoo's results say, on one page: `bench/results/zoo/README.md`, with a plot per model beside it.

First over all cells, then a table per way of dicache's with a row per setting, then what did not run and why.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console

from dicache.bench.harness.curves import curves
from dicache.bench.harness.store import Facts, load
from dicache.bench.showing.tables import Table, markdown
from dicache.bench.zoo.cells import ERRORS, OURS, WORKS, Cell, cells, verdicts
from dicache.files.atomic import replacing, write_text


def write(folder: Path, console: Console) -> None:
    """The page and the plots, from the results in the folder. Prints the summary."""
    results = [load(path) for path in sorted(folder.glob("*.json"))]
    if not results:
        console.print(f"there are no results in {folder}")
        return
    compared = [cell for facts in results for cell in cells(facts)]
    summary = summary_table(compared)
    parts = ["# The zoo: dicache on all models", INTRODUCTION, markdown(summary)]
    for ours in OURS:
        table = ratio_table([cell for cell in compared if cell.ours == ours and cell.rivals == "best of everything"])
        if len(table) > 1:
            parts += [f"## {ours}: ratio to the best of everything", markdown(table)]
    parts += ["## Plots", *(plot(facts, folder) for facts in results if facts["main"])]
    parts += ["## What did not run", markdown(failure_table(results))]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")
    console.print(markdown(summary), markup=False)
    console.print(f"{folder / 'README.md'} has all of it")


INTRODUCTION = """Drawn by `python -m dicache.bench zoo`, written by `--show`. A ratio above 1 says that dicache is \
ahead: speed-up over the best rival's speed-up at a median error, the best rival's median error over dicache's at a \
share of the work. Intervals are 95 %, from drawing the conditions again. Rivals are fewer steps by every solver of \
the model, fixed intervals with reuse or a line, cache-dit, diffusers' caches and DeepCache, as far as they run."""


def summary_table(compared: Sequence[Cell]) -> Table:
    head = ["dicache by", "against the", "cells", "geometric mean", "level or better", "worst cell"]
    return [
        head,
        *(
            [
                v.ours,
                v.rivals,
                str(v.count),
                f"{v.mean:.2f}",
                f"{v.level:.0%}",
                f"{v.worst.ratio:.2f} ({v.worst.setting}, {v.worst.kind} {v.worst.target:g}, {v.worst.best})",
            ]
            for v in verdicts(compared)
        ),
    ]


def ratio_table(compared: Sequence[Cell]) -> Table:
    """A row per setting."""
    columns = [("error", target) for target in ERRORS] + [("work", target) for target in WORKS]
    rows = [["setting", *(f"{kind} {target:g}" for kind, target in columns)]]
    for setting in dict.fromkeys(cell.setting for cell in compared):
        own = {(cell.kind, cell.target): cell for cell in compared if cell.setting == setting}
        rows.append([setting, *(_short(own.get((kind, target))) for kind, target in columns)])  # type: ignore[arg-type]
    return rows


def _short(cell: Cell | None) -> str:
    return "-" if cell is None else f"{cell.ratio:.2f} ({cell.low:.2f} to {cell.high:.2f}; {cell.best})"


def failure_table(results: Sequence[Facts]) -> Table:
    rows = [["setting", "arm", "why"]]
    for facts in results:
        failed = {p["arm"]: p["failure"] for p in facts["points"] if p["failure"] is not None}
        setting = ", ".join(str(value) for value in facts["setting"].values())
        rows += [[setting, arm, why.splitlines()[0][:160].replace("|", "/")] for arm, why in failed.items()]
    return rows


def plot(facts: Facts, folder: Path) -> str:
    """Median error against speed-up, a line per arm; the Markdown that shows it."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    setting = ", ".join(str(value) for value in facts["setting"].values())
    name = str(facts["setting"]["model"]).replace(", ", "-").replace(" ", "-") + ".png"
    figure, axis = pyplot.subplots(figsize=(9, 5.5))
    for i, curve in enumerate(curves(facts)):
        style = {"baseline": ":", "dicache": "-"}.get(curve.kind, "--")
        width = 3.0 if curve.kind == "dicache" else 1.2
        median = np.median(curve.errors, axis=1)
        axis.plot(curve.speedups, median, style, marker="osv^Dxp*+"[i % 9], markersize=4, lw=width, label=curve.name)
    axis.axhline(
        np.median(facts["discretisation"]), color="grey", lw=0.8, label="distance of the uncached run to the limit"
    )
    axis.set(xscale="log", yscale="log", xlabel="speed-up in executed MACs", ylabel="median relative L2 of the latent")
    axis.set_title(f"{setting} steps, {facts['conditions']} conditions", fontsize=10)
    axis.legend(fontsize=7)
    figure.tight_layout()
    with replacing(folder / name) as part:
        figure.savefig(part, dpi=90, format="png")
    pyplot.close(figure)
    return f"![{setting}]({name})"
