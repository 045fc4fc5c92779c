"""Tables, plots and a page from the result files alone: `python -m dicache.bench show`

Prints, over all settings, the largest speed-up at three median errors of dicache and of the best of each kind of arm;
then, per setting, every arm's, every point, and what the arms cost; writes a plot per setting and one HTML page.
`--readme` and `--docs` put tables into the README and the docs (`dicache.bench.showing.pages`).
"""

from pathlib import Path

import jinja2
import matplotlib
import numpy as np

from dicache.bench.harness.curves import curves
from dicache.bench.harness.store import Facts, load
from dicache.bench.showing.tables import (
    Table,
    cost_table,
    limit_table,
    losses,
    markdown,
    point_table,
    scale,
    speedup_table,
    summary_table,
    title,
    verdict_table,
)
from dicache.files.atomic import replacing, write_text

_PAGE = """<!doctype html><meta charset="utf-8"><title>dicache bench</title>
<style>body{font:15px sans-serif;max-width:70em;margin:2em auto}table{border-collapse:collapse}
td,th{border-bottom:1px solid #ccc;padding:.2em .7em;text-align:right}
td:first-child,th:first-child{text-align:left}</style>
{% macro show(table) %}<table><tr>{% for h in table[0] %}<th>{{ h }}</th>{% endfor %}</tr>
{% for row in table[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table><br>
{% endmacro %}<h1>dicache bench</h1>
{{ show(summary) }}
{% for s in settings %}<h2>{{ s.title }}</h2><p>{{ s.scale }} {{ s.losses }}</p><img src="{{ s.plot }}" width="900">
{% for table in s.tables %}{{ show(table) }}{% endfor %}
{% endfor %}"""


def plot(facts: Facts, path: Path) -> None:
    """Median error against speed-up, both axes logarithmic, a line per arm; searched schedules dashed, presets
    dash-dotted.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 6.5))
    for i, curve in enumerate(curves(facts)):
        style = {"baseline": ":", "preset": "-.", "oracle": "--"}.get(curve.kind, "-")
        width = {"dicache": 3.0, "entrant": 3.0}.get(curve.kind, 1.2)
        marker = "o" if curve.kind == "dicache" else "osv^Dxp*+"[i % 9]
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
    with replacing(path) as part:
        figure.savefig(part, dpi=110)
    pyplot.close(figure)


def tables(facts: Facts) -> list[Table]:
    """What is shown of one setting; without costs, no cost table."""
    tables = [verdict_table(facts), speedup_table(facts), limit_table(facts), cost_table(facts), point_table(facts)]
    return [table for table in tables if len(table) > 1]


def text(facts: Facts) -> str:
    """One setting in Markdown."""
    parts = [f"## {title(facts)}", scale(facts), *map(markdown, tables(facts)), losses(facts)]
    return "\n\n".join(parts) + "\n"


def page(results: dict[Path, Facts], path: Path) -> None:
    settings = [
        {
            "title": title(facts),
            "scale": scale(facts),
            "losses": losses(facts),
            "plot": source.with_suffix(".png").name,
            "tables": tables(facts),
        }
        for source, facts in results.items()
    ]
    template = jinja2.Environment(autoescape=True).from_string(_PAGE)
    write_text(path, template.render(settings=settings, summary=summary_table(list(results.values()))))


def results(folder: Path) -> dict[Path, Facts]:
    """Every sweep, those with most captions first."""
    sweeps = [(path, load(path)) for path in sorted(folder.glob("*-batch*.json"))]
    return dict(sorted(sweeps, key=lambda item: -len(item[1]["captions"])))
