"""Tables, plots and a page from the result files alone: `python -m dicache.bench show`

Prints, per setting, every arm's speed-up at three median errors, with dicache's ratio to the best peer and to the best
static schedule found, then every point; writes a plot per setting and one HTML page; `--readme` puts the table into the
README between its markers.
"""

import json
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np

from dicache.bench.curves import Curve, curves, median_interval, paired_ratio

TARGETS = (0.01, 0.03, 0.1)
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
_PAGE = """<!doctype html><meta charset="utf-8"><title>dicache bench</title>
<style>body{font:15px sans-serif;max-width:70em;margin:2em auto}table{border-collapse:collapse}
td,th{border-bottom:1px solid #ccc;padding:.2em .7em;text-align:right}
td:first-child,th:first-child{text-align:left}</style>
<h1>dicache bench</h1>
{% for s in settings %}<h2>{{ s.title }}</h2><p>{{ s.scale }}</p><img src="{{ s.plot }}" width="900">
{% for table in s.tables %}<table><tr>{% for h in table[0] %}<th>{{ h }}</th>{% endfor %}</tr>
{% for row in table[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table><br>
{% endfor %}
{% endfor %}"""

Table = list[list[str]]


def title(facts: dict[str, Any]) -> str:
    s = facts["setting"]
    guidance = f"guidance {s['guidance']:g}" if s["guidance"] > 1 else "no guidance"
    grid = f"{s['steps']} steps, {guidance}, shift {s['shift']:g}, batch {s['batch']}"
    return f"{grid}, {len(facts['captions'])} test captions"


def scale(facts: dict[str, Any]) -> str:
    """What the numbers are to be held against."""
    steps, own = facts["setting"]["steps"], np.median(facts["discretisation"])
    jagged = ", ".join(f"{ratio:.2f} at sigma {sigma}" for sigma, ratio in facts["jaggedness"].items())
    return (
        f"The uncached run itself is {own:.3f} (median) from one of {4 * steps} steps. "
        f"Jaggedness of the model (1 is smooth): {jagged}."
    )


def speedup_table(facts: dict[str, Any]) -> Table:
    """Speed-up in executed MACs at three median errors, and the paired error ratio to dicache at 2x."""
    found = curves(facts)
    ours = next(c for c in found if c.kind == "dicache")
    head = [
        "arm",
        *[f"speed-up at error {t:g}" for t in TARGETS],
        "median error at 2x",
        "90th pct",
        "error / dicache's",
    ]
    return [head, *[_speedup_row(curve, ours) for curve in found]]


def _speedup_row(curve: Curve, ours: Curve) -> list[str]:
    speedups = [_times(curve.speedup_at(target)) for target in TARGETS]
    here, mine = curve.at_speedup(2.0), ours.at_speedup(2.0)
    if here is None:
        return [curve.name, *speedups, "-", "-", "-"]
    low, high = median_interval(here)
    errors = [f"{np.median(here):.4f} ({low:.4f} to {high:.4f})", f"{np.quantile(here, 0.9):.4f}"]
    if mine is None:
        return [curve.name, *speedups, *errors, "-"]
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(*paired_ratio(mine, here))
    return [curve.name, *speedups, *errors, ratio]


def verdict_table(facts: dict[str, Any]) -> Table:
    """dicache's speed-up over the best peer's, the best baseline's and the best static schedule's."""
    found = curves(facts)
    ours = next(c for c in found if c.kind == "dicache")
    rows = [["dicache's speed-up over", *[f"at error {t:g}" for t in TARGETS]]]
    for words, kind, only in (
        ("the best peer", "peer", ""),
        ("the best baseline", "baseline", ""),
        ("the best static schedule found", "oracle", "static"),
    ):
        rivals = [c for c in found if c.kind == kind and only in c.name]
        rows.append([words, *[_against(ours, rivals, target) for target in TARGETS]])
    return rows


def _against(ours: Curve, rivals: list[Curve], target: float) -> str:
    mine = ours.speedup_at(target)
    theirs = [(s, c.name) for c in rivals if (s := c.speedup_at(target)) is not None]
    if mine is None or not theirs:
        return "-"
    best, name = max(theirs)
    return f"{mine / best:.2f} ({name})"


def point_table(facts: dict[str, Any]) -> Table:
    rows = [["arm", "knob", "work", "mean", "median", "90th pct", "99th pct", "PSNR", "SSIM", "attributes", "time"]]
    for p in facts["points"]:
        if p["failure"] is not None:
            rows.append([p["arm"], f"{p['knob']} {p['value']}", p["failure"], *[""] * 8])
            continue
        e = np.array(p["errors"])
        numbers = [e.mean(), np.median(e), np.quantile(e, 0.9), np.quantile(e, 0.99)]
        quality = [f"{np.median(p['psnr']):.1f}", f"{np.median(p['ssim']):.4f}", f"{np.mean(p['attributes']):.3f}"]
        time = f"{facts['uncached_seconds'] / p['seconds']:.2f}x"
        knob = f"{p['knob']} {p['value']}"
        rows.append([p["arm"], knob, f"{p['work']:.3f}", *[f"{n:.4f}" for n in numbers], *quality, time])
    return rows


def markdown(table: Table) -> str:
    head, *rows = table
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def plot(facts: dict[str, Any], path: Path) -> None:
    """Median error against speed-up, a line per arm, searched schedules dashed, both axes logarithmic."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 6.5))
    for i, curve in enumerate(curves(facts)):
        style = {"dicache": "-", "baseline": ":", "peer": "-", "oracle": "--"}[curve.kind]
        width, marker = (3, "o") if curve.kind == "dicache" else (1.2, "osv^Dxp*+"[i % 9])
        median = np.median(curve.errors, axis=1)
        axis.plot(curve.speedups, median, style, marker=marker, markersize=4, linewidth=width, label=curve.name)
    axis.axhline(
        np.median(facts["discretisation"]), color="grey", linewidth=0.8, label="error of the uncached run itself"
    )
    axis.set(
        xscale="log", yscale="log", xlabel="speed-up in executed MACs", ylabel="median relative L2 of the final latent"
    )
    axis.set_title(title(facts), fontsize=10)
    axis.legend(fontsize=7, ncol=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def page(results: dict[Path, dict[str, Any]], path: Path) -> None:
    settings = [
        {
            "title": title(facts),
            "scale": scale(facts),
            "plot": source.with_suffix(".png").name,
            "tables": [verdict_table(facts), speedup_table(facts), point_table(facts)],
        }
        for source, facts in results.items()
    ]
    path.write_text(jinja2.Environment(autoescape=True).from_string(_PAGE).render(settings=settings))


def into_readme(readme: Path, facts: dict[str, Any]) -> None:
    """Replace what stands between the README's markers."""
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    body = [
        title(facts) + ". " + scale(facts),
        markdown(speedup_table(facts)),
        markdown(verdict_table(facts)),
        losses(facts),
    ]
    readme.write_text(before + BEGIN + "\n" + "\n\n".join(body) + "\n" + END + after)


def losses(facts: dict[str, Any]) -> str:
    """The line that says where dicache does not win."""
    found = curves(facts)
    ours = next(c for c in found if c.kind == "dicache")
    lost = []
    for target in TARGETS:
        mine = ours.speedup_at(target)
        if mine is None:
            lost.append(f"median error {target:g} lies beyond dicache's sweep")
            continue
        ahead = [c.name for c in found if c.kind != "oracle" and c is not ours and (c.speedup_at(target) or 0) > mine]
        if ahead:
            lost.append(f"at median error {target:g} {', '.join(ahead)} {'is' if len(ahead) == 1 else 'are'} faster")
    return "Where dicache does not win: " + ("; ".join(lost) if lost else "nowhere in this table") + "."


def _times(speedup: float | None) -> str:
    return "-" if speedup is None else f"{speedup:.2f}x"


def load(folder: Path) -> dict[Path, dict[str, Any]]:
    return {path: json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))}
