"""A report, as `Report.to_dict` gives it, as a picture, as a page, and as what a notebook shows."""

import base64
import io
from typing import TYPE_CHECKING, Any

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
PARTLY = "#8796a8"
"""Some sites computed and some did not."""
_COMPUTED = ("compute", "unstored")
_TEMPLATES = jinja2.Environment(
    autoescape=True,
    loader=jinja2.DictLoader(
        {
            "fragment": """<style>.dicache td,.dicache th{padding:.2em .8em;text-align:right}
.dicache .step{display:inline-block;width:1em;height:1.2em;margin-right:1px}</style>
<div class="dicache"><h3>{{ "%.2f"|format(speedup) }}x less computed</h3>
<table><tr><th>sample<th>budget<th>estimated error<th>work<th>decisions</tr>
{% for s in samples %}<tr><td>{{ loop.index0 }}<td>{{ s.budget }}<td>{{ s.error }}<td>{{ s.work }}<td>
{% for step in s.steps -%}
<span class="step" style="background:{{ step.colour }}" title="{{ step.why }}"></span>
{%- endfor %}
</tr>{% endfor %}</table>
<p>{% for name, colour in legend %}
<span class="step" style="background:{{ colour }}"></span> {{ name }}{% endfor %}</p>
{% for warning in warnings %}<p>note: {{ warning }}</p>{% endfor %}</div>
""",
            "page": """<!doctype html><meta charset="utf-8"><title>dicache</title>
<style>body{font:15px sans-serif;max-width:60em;margin:2em auto}</style>
{% include "fragment" %}
<img src="data:image/png;base64,{{ image }}">""",
        }
    ),
)


def figure(facts: dict[str, Any]) -> "Figure":
    """Above, every sample's decisions over the steps; below, the error estimated so far, with the budgets dashed."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    result = Figure(figsize=(9, 5), layout="constrained")
    above, below = result.subplots(2, 1, sharex=True)
    for row, sample in enumerate(facts["samples"]):
        for i, actions in enumerate(sample["actions"]):
            above.add_patch(Rectangle((i - 0.45, row - 0.4), 0.9, 0.8, color=_colour(actions)))
        (line,) = below.plot([step["spent"][row] for step in facts["steps"]], linewidth=1)
        if sample["budget"] is not None:
            below.axhline(sample["budget"], color=line.get_color(), linestyle="--", linewidth=0.8)
    above.set(ylim=(max(1, len(facts["samples"])) - 0.5, -0.5), ylabel="sample", title="decisions")
    below.set(xlabel="step", ylabel="estimated error")
    return result


def page(facts: dict[str, Any]) -> str:
    """One page with everything in it."""
    image = io.BytesIO()
    figure(facts).savefig(image, format="png", dpi=110)
    return _TEMPLATES.get_template("page").render(
        **_shown(facts), image=base64.b64encode(image.getvalue()).decode("ascii")
    )


def fragment(facts: dict[str, Any]) -> str:
    """The table and the notes alone, as a notebook shows them."""
    return _TEMPLATES.get_template("fragment").render(**_shown(facts))


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "speedup": facts["compute_speedup"],
        "samples": [_row(sample) for sample in facts["samples"]],
        "legend": [*((action.name.lower(), colour) for action, colour in COLOURS.items()), ("partly computed", PARTLY)],
        "warnings": facts["warnings"],
    }


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    steps = [
        {"colour": _colour(actions), "why": f"step {i}: {_why(actions, reasons)}"}
        for i, (actions, reasons) in enumerate(zip(sample["actions"], sample["reasons"], strict=True))
    ]
    budget, error = ("-" if sample[key] is None else f"{sample[key]:.4f}" for key in ("budget", "estimated_error"))
    return {"budget": budget, "error": error, "work": f"{sample['computed_fraction']:.0%}", "steps": steps}


def _computed(actions: list[str]) -> int:
    """At how many sites."""
    return sum(action in _COMPUTED for action in actions)


def _why(actions: list[str], reasons: list[str]) -> str:
    if 0 < _computed(actions) < len(actions):
        return f"{_computed(actions)} of {len(actions)} sites computed"
    return f"{actions[0]}; {REASONS[Reason[reasons[0].upper()]]}"


def _colour(actions: list[str]) -> str:
    """Of one step, over its sites."""
    return PARTLY if 0 < _computed(actions) < len(actions) else COLOURS[Action[actions[0].upper()]]
