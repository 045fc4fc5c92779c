"""A picture to choose a number from: prompts uncached and at several budgets, side by side, with what each one saves
and loses; as a page and as a figure.
"""

import math
import textwrap
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np
import torch
from torch import Tensor

from dicache.promise.metrics import loss, resolved
from dicache.reporting.shown import embedded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOW = (
    "Take the largest budget whose column you would not tell from the first one, or go between two of them by factors "
    "of two. Prompts differ: look at the worst row."
)


class Column(NamedTuple):
    """What one budget gave, over the prompts; `budget` is None for the uncached ones."""

    budget: float | None
    pictures: Sequence[Any]
    """A picture of PIL per prompt, or of a video a list of them."""
    seconds: float
    speedup: float = 1.0
    """Uncached over executed multiply-accumulates."""
    time_speedup: float = 1.0
    errors: Sequence[float] | None = None
    """Relative L2 of the final latents, per prompt; None where the pipeline does not tell them."""
    psnr: Sequence[float] = ()
    ssim: Sequence[float] = ()
    """Per prompt; empty where it is not measured."""

    @property
    def title(self) -> str:
        return "uncached" if self.budget is None else f"error_budget={self.budget:g}"

    @property
    def cells(self) -> tuple[str, ...]:
        """Speed-up, time, error, PSNR and SSIM in words: the worst of the prompts, and the middle one."""
        if self.budget is None:
            return "1x", f"{self.seconds:.3g} s", *("-",) * 3
        return (
            f"{self.speedup:.2f}x",
            f"{self.seconds:.3g} s ({self.time_speedup:.2f}x)",
            _spread(self.errors or (), ".4f", most=True),
            _spread(self.psnr, ".1f", most=False),
            _spread(self.ssim, ".3f", most=False),
        )

    def below(self, row: int) -> str:
        """What stands below the picture of a prompt."""
        if self.budget is None:
            return ""
        numbers = (self.errors, "error {:.4f}"), (self.psnr, "{:.1f} dB"), (self.ssim, "SSIM {:.3f}")
        return ", ".join(words.format(values[row]) for values, words in numbers if values)


NAMES = (
    "less computed",
    "wall time",
    "error, median (worst)",
    "PSNR in dB, median (worst)",
    "SSIM, median (worst)",
)


def _spread(values: Sequence[float], digits: str, *, most: bool) -> str:
    if not values:
        return "not measured"
    middle, worst = median(values), max(values) if most else min(values)
    return f"{middle:{digits}} ({worst:{digits}})"


def figure(columns: Sequence[Column], prompts: Sequence[str]) -> "Figure":
    """A row a prompt, a column a budget; of videos the middle frames."""
    from matplotlib.figure import Figure

    result = Figure(figsize=(2.5 * len(columns), 3.0 * len(prompts) + 0.9), layout="constrained")
    grid = result.subplots(len(prompts), len(columns), squeeze=False)
    for j, column in enumerate(columns):
        head = f"{column.title}\n{column.cells[0]} less computed\n{column.cells[1]}"
        grid[0, j].set_title(head if j else f"uncached\n\n{column.cells[1]}", fontsize=9)
        for i in range(len(prompts)):
            shown = column.pictures[i]
            grid[i, j].imshow(shown[len(shown) // 2] if isinstance(shown, list) else shown)
            grid[i, j].set(xticks=[], yticks=[])
            below = column.below(i).replace(", ", "\n", 1) if j else _short(prompts[i])
            grid[i, j].set_xlabel(below, fontsize=8, parse_math=False)
    return result


def _short(prompt: str) -> str:
    return "\n".join(textwrap.wrap(prompt, 30, max_lines=3, placeholder=" ..."))


_PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html><html lang="en"><meta charset="utf-8">
<title>Which budget?</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{font:15px/1.4 sans-serif;max-width:90em;margin:1em auto;padding:0 1em;overflow-wrap:anywhere}
.row{display:grid;grid-template-columns:repeat({{ columns | length }},minmax(0,1fr));gap:4px;margin-bottom:1em}
figure{margin:0;min-width:0}
img{width:100%;height:auto}
.small{image-rendering:pixelated}
figcaption{font-size:.8em}
td,th{padding:.2em .8em;text-align:left;vertical-align:top}
@media (max-width:40em){
.row{grid-template-columns:repeat(2,minmax(0,1fr))}
table,tbody{display:block}
tr{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));margin-bottom:.6em}
tr:first-child{display:none}
td::before{content:attr(data-name);display:block;font-size:.8em;color:#555}
td,th{padding:.1em .2em}
td:first-child{grid-column:1/-1;font-weight:bold}
}</style>
<h3>{{ title }}</h3><p>{{ how }}</p>
<table><tr><th>budget{% for name in names %}<th>{{ name }}{% endfor %}</tr>
{% for column in columns %}<tr><td>{{ column.title }}{% for cell in column.cells %}
<td data-name="{{ names[loop.index0] }}">{{ cell }}{% endfor %}</tr>{% endfor %}</table>
{% for prompt, cards in rows %}<h4>{{ prompt }}</h4><div class="row">
{% for title, below, data, small in cards %}<figure>
<img src="{{ data }}" alt="{{ title }}"{% if small %} class="small"{% endif %}>
<figcaption>{{ title }}{% if below %}<br>{{ below }}{% endif %}</figcaption></figure>{% endfor %}</div>
{% endfor %}</html>""")


def page(columns: Sequence[Column], prompts: Sequence[str], title: str) -> str:
    """One page with everything in it; videos move."""
    rows = [
        (prompt, [(column.title, column.below(i), *embedded(column.pictures[i])) for column in columns])
        for i, prompt in enumerate(prompts)
    ]
    return _PAGE.render(columns=columns, rows=rows, names=NAMES, title=title, how=HOW)


def notes(columns: Sequence[Column]) -> list[str]:
    """What is said of budgets that the median picture did not keep, and of what was not measured."""
    cached = [column for column in columns if column.budget is not None]
    missing = [
        "note: SSIM is measured where torchmetrics is installed: pip install torchmetrics."
        for _ in cached[:1]
        if not any(column.ssim for column in cached)
    ]
    over = [column for column in cached if column.errors and median(column.errors) > (column.budget or 0)]
    if not over:
        return missing
    budgets = ", ".join(f"{column.budget:g}" for column in over)
    return [
        *missing,
        f"note: at a budget of {budgets} the median error passed it: what is estimated of this model without a "
        "calibration is too little. Go by the measured errors, or let `dicache calibrate` make the budget a promise.",
    ]


def facts_of(column: Column) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "budget": column.budget,
        "speedup": column.speedup,
        "seconds": column.seconds,
        "time_speedup": column.time_speedup,
        "errors": column.errors,
        "psnr": [value for value in column.psnr if math.isfinite(value)],
        "ssim": list(column.ssim),
    }


def losses(name: str, pictures: Sequence[Any], exact: Sequence[Any]) -> list[float]:
    """Per prompt; the frames of a video stand below each other."""
    metric = resolved(name)[name]
    return [loss(name, metric, _tensor(a), _tensor(b)).item() for a, b in zip(pictures, exact, strict=True)]


def _tensor(picture: Any) -> Tensor:  # noqa: ANN401
    """(1, 3, H, W) in [0, 1]."""
    frames = picture if isinstance(picture, list) else [picture]
    rows = np.concatenate([np.asarray(frame.convert("RGB")) for frame in frames])
    return torch.from_numpy(rows).permute(2, 0, 1)[None].float() / 255
