"""A report, as `Report.to_dict` gives it, as a picture, as a page, and as what a notebook shows."""

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from dicache.types import REASONS, Action, Reason

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    Action.COMPUTE: "#1f3a5f",
    Action.REUSE: "#f2b134",
    Action.EXTRAPOLATE: "#8fc1a9",
    Action.ALIGN: "#d97b66",
    Action.CORRECT: "#a58fc9",
    Action.ZERO: "#cccccc",
    Action.UNSTORED: "#4f7cac",
}
WORDS = {
    Action.COMPUTE: "computed",
    Action.REUSE: "the last output again",
    Action.EXTRAPOLATE: "extrapolated",
    Action.ALIGN: "aligned along a probe",
    Action.CORRECT: "corrected by fitted coefficients",
    Action.ZERO: "left out",
    Action.UNSTORED: "computed, not remembered",
}
PARTLY = "#8796a8"
"""Some sites computed and some did not."""
PARTLY_WORDS = "some sites computed and some did not"
_COMPUTED = ("compute", "unstored")
_TEMPLATES = jinja2.Environment(
    autoescape=True,
    loader=jinja2.DictLoader(
        {
            "fragment": """<style>.dicache td,.dicache th{padding:.2em .8em;text-align:right}
.dicache .step{display:inline-block;width:1em;height:1.2em;margin-right:1px}
.dicache th:last-child,.dicache td:last-child{text-align:left;line-height:1}
.dicache .named{display:inline-block;margin-right:1em}
.dicache .named .step{vertical-align:middle}</style>
<div class="dicache"><h3>{{ headline }}</h3>
{% if cards %}<div class="shown">{% for card in cards %}<figure>
{%- if card.pictures %}<div{% if card.pictures | length > 1 %} class="both"{% endif %}>
{%- for title, data, small in card.pictures %}
<img src="{{ data }}" alt="{{ title }}" title="{{ title }}"{% if small %} class="small"{% endif %}>{% endfor %}</div>
{%- endif %}
<figcaption>{{ loop.index0 }}{% if card.prompt %}: {{ card.prompt }}{% endif %}</figcaption></figure>{% endfor %}</div>
{% endif -%}
<table><tr><th>sample<th>budget<th>estimated error{% if audited %}<th>true error{% endif %}<th>work<th>decisions</tr>
{% for s in samples %}<tr><td>{{ loop.index0 }}<td>{{ s.budget }}<td>{{ s.error }}
{%- if audited %}<td>{{ s.true_error }}{% endif %}<td>{{ s.work }}<td>
{% for step in s.steps -%}
<span class="step" style="background:{{ step.colour }}" title="{{ step.why }}"></span>
{%- endfor %}
</tr>{% endfor %}</table>
<p class="legend">{% for name, colour in legend %}
<span class="named"><span class="step" style="background:{{ colour }}"></span> {{ name }}</span>{% endfor %}</p>
{% for warning in warnings %}<p>note: {{ warning }}</p>{% endfor %}</div>
""",
            "page": """<!doctype html><html lang="en"><meta charset="utf-8"><title>dicache</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{font:15px/1.4 sans-serif;max-width:60em;margin:1em auto;padding:0 1em;overflow-wrap:anywhere}
img{max-width:100%;height:auto}
.shown{margin-bottom:1em;display:grid;grid-template-columns:repeat(auto-fill,minmax(11em,1fr));gap:1em}
.shown figure{margin:0;min-width:0}
.shown img{width:100%}
.shown .both{display:grid;grid-template-columns:1fr 1fr;gap:2px}
.shown .small{image-rendering:pixelated}
.facts th{white-space:nowrap;vertical-align:top;padding-right:1em}
@media (max-width:40em){
.dicache table{display:block}
.dicache tbody{display:block}
.dicache tr{display:grid;grid-template-columns:repeat({{ 5 if audited else 4 }},minmax(0,1fr));margin-bottom:.6em}
body .dicache td,body .dicache th{padding:.1em .2em;text-align:left;overflow-wrap:normal}
.dicache td:last-child,.dicache th:last-child{grid-column:1/-1}
.dicache td .step{width:.72em}
.facts th{white-space:normal;overflow-wrap:normal;padding-right:.5em}
}</style>
{% include "fragment" %}
<h3>Timeline</h3>
<picture><source media="(max-width:40em)" srcset="data:image/png;base64,{{ narrow }}">
<img src="data:image/png;base64,{{ image }}" alt="decisions and estimated error over the steps"></picture>
<table class="facts">{% for name, value in facts %}
<tr><th align="left">{{ name }}<td>{{ value }}</tr>{% endfor %}</table></html>""",
        }
    ),
)
MANY = 10
"""More lines than these have no legend."""


class Shown(NamedTuple):
    """What a page shows of a sample beside its numbers."""

    prompt: str = ""
    pictures: Sequence[tuple[str, str, bool]] = ()
    """Titles, data URLs, and whether pixels are to be seen."""


def figure(facts: dict[str, Any], *, narrow: bool = False) -> "Figure":
    """Above, every sample's decisions over the steps; below, the error estimated so far, with the budgets dashed, both
    in units of the final latent. `narrow` for a phone.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.ticker import MaxNLocator

    result = Figure(figsize=(4.2, 6) if narrow else (9, 5), layout="constrained")
    above, below = result.subplots(2, 1, sharex=True)
    seen: dict[str, str] = {}
    named: set[float] = set()
    for row, sample in enumerate(facts["samples"]):
        for i, actions in enumerate(sample["actions"]):
            above.add_patch(Rectangle((i - 0.45, row - 0.4), 0.9, 0.8, color=_colour(actions)))
            seen[_word(actions)] = _colour(actions)
        errors = [_drawn(step["estimated_error"][row]) for step in facts["steps"]]
        (line,) = below.plot(errors, linewidth=1, label=f"sample {row}")
        if sample["budget"] is not None:
            below.axhline(sample["budget"], color=line.get_color(), linestyle="--", linewidth=0.8)
            if sample["budget"] not in named:
                below.text(0, sample["budget"], f"budget {sample['budget']:g}", fontsize=8, verticalalignment="bottom")
            named.add(sample["budget"])
    above.set(ylim=(max(1, len(facts["samples"])) - 0.5, -0.5), ylabel="sample", title="decisions")
    above.yaxis.set_major_locator(MaxNLocator(integer=True))
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    right: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    under: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.02), "fontsize": 8}
    if seen:
        above.legend(handles=[Patch(color=c, label=name) for name, c in seen.items()], **(under if narrow else right))
    if 1 < len(facts["samples"]) <= MANY:
        below.legend(**(under | {"bbox_to_anchor": (0.5, -0.2), "ncol": 3} if narrow else right))
    below.margins(y=0.1)
    below.set(xlabel="step", ylabel="estimated error, of the final latent")
    return result


def _drawn(number: float | None) -> float:
    return math.nan if number is None else number


def page(facts: dict[str, Any], shown: Sequence[Shown] = ()) -> str:
    """One page with everything in it, and of each sample what is shown."""
    drawn = {"image": _png(figure(facts)), "narrow": _png(figure(facts, narrow=True))}
    return _TEMPLATES.get_template("page").render(**_shown(facts), **drawn, cards=shown)


def _png(drawn: "Figure") -> str:
    image = io.BytesIO()
    drawn.savefig(image, format="png", dpi=110)
    return base64.b64encode(image.getvalue()).decode("ascii")


def fragment(facts: dict[str, Any]) -> str:
    """The table and the notes alone, as a notebook shows them."""
    return _TEMPLATES.get_template("fragment").render(**_shown(facts))


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "headline": facts["headline"],
        "audited": any(sample["true_error"] is not None for sample in facts["samples"]),
        "facts": _facts(facts),
        "samples": [_row(sample) for sample in facts["samples"]],
        "legend": [*((WORDS[action], colour) for action, colour in COLOURS.items()), (PARTLY_WORDS, PARTLY)],
        "warnings": facts["warnings"],
    }


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    steps = [
        {"colour": _colour(actions), "why": f"step {i}: {_why(actions, reasons)}"}
        for i, (actions, reasons) in enumerate(zip(sample["actions"], sample["reasons"], strict=True))
    ]
    keys = ("budget", "estimated_error", "true_error")
    budget, error, true_error = ("-" if sample[key] is None else f"{sample[key]:.4f}" for key in keys)
    shown = {"budget": budget, "error": error, "true_error": true_error}
    return {**shown, "work": f"{sample['computed_fraction']:.0%}", "steps": steps}


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What the page says beside the table."""
    audit = facts["audit"]
    within = "" if audit is None or audit["within"] is None else f", {audit['within']:.1%} within budget"
    named = {
        "model": facts["model"],
        "scheduler": facts["scheduler"],
        "MACs executed": f"{facts['executed_macs']:.4g}",
        "MACs uncached": f"{facts['uncached_macs']:.4g}",
        "beside the denoiser": ", ".join(f"{n['name']} {n['share']:.0%}" for n in facts["side_networks"]),
        "profile": facts["profile"],
        "most kept, in bytes": str(facts["cache_bytes"]),
        "audited in all runs": None if audit is None else f"{audit['samples']} samples{within}",
    }
    return [(name, value) for name, value in named.items() if value]


def _computed(actions: list[str]) -> int:
    """At how many sites."""
    return sum(action in _COMPUTED for action in actions)


def _why(actions: list[str], reasons: list[str]) -> str:
    if 0 < _computed(actions) < len(actions):
        return f"{_computed(actions)} of {len(actions)} sites computed"
    return f"{_word(actions)}; {REASONS[Reason[reasons[0].upper()]]}"


def _word(actions: list[str]) -> str:
    """What was done in one step, over its sites."""
    return PARTLY_WORDS if 0 < _computed(actions) < len(actions) else WORDS[Action[actions[0].upper()]]


def _colour(actions: list[str]) -> str:
    """Of one step, over its sites."""
    return PARTLY if 0 < _computed(actions) < len(actions) else COLOURS[Action[actions[0].upper()]]
