"""The systems that dicache is asked to hold, one a row: where each is, what it does on a model whose every step can be
checked, which test holds its equations, and what it still lacks. Figures are read off the committed results where they
stand there; those of studies name the page that has them.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from dicache.bench.harness.store import RESULTS, Facts, load
from dicache.bench.showing.tables import Table

MAIN, SCHEDULES = "euler-28-guidance3.5-shift1-batch8.json", "schedules-28.json"
SYSTEMS, UNETS, HARD = (
    "notebook/2026-11-29-systems.md",
    "notebook/2026-11-29-inside-unets.md",
    "notebook/2026-11-29-systems.md#how-hard-prompts-are-the-prompt-memorys-near-key",
)


class Preset(NamedTuple):
    """Its figure is that of the sweep's first value, the published one, or of another."""

    arm: str
    value: float | None = None


class Schedule(NamedTuple):
    """Its figure is that of a finder's schedule, on captions that it was not found on."""

    finder: str
    cost: float = 0.51


class Page(NamedTuple):
    """Its figure stands on a page of the docs."""

    figure: str
    path: str


class System(NamedTuple):
    name: str
    where: str
    figures: tuple[Preset | Schedule | Page, ...]
    tests: str
    lacks: str = ""


ROWS = (
    System(
        "HGC, controllable generation",
        "`presets.hgc`, `Control()`",
        (Page(".585 / .0289 and .398 / .236 of both networks", UNETS),),
        "tests/presets/test_hgc.py",
        "its rule of similarities, which is not public; the branch that it drops after the gate. At .40 of the work "
        "the control is obeyed a fifth worse; `error_budget=` obeys it at .440",
    ),
    System(
        "ECAD",
        "`finders.Ecad`, `Calibration(objective=...)`",
        (Schedule("ECAD, line"), Schedule("ECAD, line", 0.36)),
        "tests/schedules/test_objectives.py",
    ),
    System(
        "Learning-to-Cache",
        "`finders.LearningToCache`",
        (Schedule("routers, seed 0", 0.8),),
        "tests/schedules/test_learning_to_cache.py",
    ),
    System(
        "SenCache",
        "`presets.sencache`",
        (Preset("sencache"), Preset("sencache", 0.25)),
        "tests/presets/test_sencache.py",
        "its published threshold never skips here: `work=0.5` finds one by the table's own run, and computes up to a "
        "step more",
    ),
    System(
        "DiCache",
        "`presets.dicache`",
        (Preset("dicache"), Preset("dicache", 0.2)),
        "tests/parts/test_parts.py",
    ),
    System("FastCache", "`presets.fastcache`", (Preset("fastcache"),), "tests/presets/test_fitted_presets.py"),
    System(
        "InvarDiff",
        "`finders.InvarDiff`",
        (Schedule("InvarDiff"), Schedule("InvarDiff", 0.36)),
        "tests/schedules/test_finders.py",
    ),
    System(
        "ClusCa", "`presets.clusca`", (Preset("clusca"), Preset("clusca", 3)), "tests/presets/test_presets_inner.py"
    ),
    System(
        "TokenCache",
        "`presets.tokencache`",
        (Preset("tokencache"), Preset("tokencache", 2)),
        "tests/tokens/test_token_choice.py",
    ),
    System(
        "ICC",
        "`presets.icc`, `Linears()`",
        (Preset("icc"),),
        "tests/presets/test_icc.py",
        "layers that read the time are computed, not held. The figure is of maps fitted to sublayers",
    ),
    System(
        "EB-Cache",
        "`finders.EBCache`",
        (Page(".786 / .088", "#eb-cache"),),
        "tests/schedules/test_finders.py",
        "the scaling of outputs, which acts on the sampler",
    ),
    System(
        "gradient-optimised caching",
        "`presets.gradient_optimized_cache`",
        (Preset("gradient_optimized_cache"),),
        "tests/presets/test_presets_inner.py",
    ),
    System(
        "CacheQuant",
        "`presets.cachequant`, `finders.DynamicProgramming`, `dicache.int8`",
        (Page(".360 / .0322 with 8 bits, .0283 without", SYSTEMS), Schedule("optimal")),
        "tests/schedules/test_dynamic_programming.py",
    ),
    System(
        "LazyDiT",
        "`presets.lazydit`",
        (Page(".724 / .0442", SYSTEMS),),
        "tests/presets/test_gates.py",
    ),
    System(
        "SmoothCache",
        "`finders.SmoothCache`",
        (Schedule("SmoothCache"), Schedule("SmoothCache, line")),
        "tests/schedules/test_finders.py",
    ),
    System("FORA", "`presets.fora`", (Preset("fora"), Preset("fora sublayers")), "tests/presets/test_presets.py"),
    System(
        "Block Caching",
        "`presets.block_caching`, `finders.BlockCaching`",
        (Preset("block_caching"), Preset("block_caching", 0.1), Schedule("Block Caching")),
        "tests/presets/test_fitted_presets.py",
        "maps that are distilled: they are fitted by least squares",
    ),
    System(
        "DeepCache",
        "`presets.deepcache`, `Skips()`",
        (Page(".720 / .0149 and .626 / .0295 of both networks", UNETS),),
        "tests/presets/test_deepcache.py",
        "At the errors of the package DeepCache `error_budget=` is 1.35 to 2.1 times as fast "
        "every 2nd to 4th step, `speedup=` 1.47 to 2.4 times every 2nd to 5th",
    ),
    System(
        "DyDiT",
        "refused",
        (),
        "",
        "it changes the weights by fine-tuning, and nothing is retrained here",
    ),
    System(
        "LLMCache",
        "`memory=`",
        (Page("other seeds of an audited caption: log errors foretold with a correlation of .67", HARD),),
        "tests/memory/test_hardness.py",
        "activations of other prompts, which are never reused",
    ),
    System(
        "WTA-CRS",
        "`dicache.measuring.token_looks`",
        (Page("8 of 64 tokens tell a feed-forward's error to 4.8 %", SYSTEMS),),
        "tests/parts/test_token_looks.py",
        "a use that pays: whole evaluations do better",
    ),
    System(
        "layer pruning on demand",
        "`finders.Nested`, `dicache.fit(kind='innovation')`",
        (Schedule("nested, line"), Schedule("nested, line", 0.36)),
        "tests/schedules/test_layer_pruning.py",
    ),
)


def table() -> Table:
    """With a line of names first."""
    lines = [["system", "where", "work / median error", "its test", "what it lacks"]]
    for row in ROWS:
        figures = "; ".join(map(figure, row.figures)) or "-"
        lines.append([row.name, row.where, figures, f"`{row.tests}`" if row.tests else "-", row.lacks or "-"])
    return lines


def figure(of: Preset | Schedule | Page) -> str:
    """Raises LookupError for what the results do not hold."""
    if isinstance(of, Page):
        return f"[{of.figure}]({of.path})"
    return _preset(of) if isinstance(of, Preset) else _schedule(of)


def _preset(of: Preset) -> str:
    points = [p for p in _results(MAIN)["points"] if p["arm"] == f"preset {of.arm}" and p["failure"] is None]
    points = [p for p in points if of.value in (None, p["value"])]
    if not points:
        raise LookupError(f"{MAIN} has no point of {of}.")
    return _written(points[0]["work"], points[0]["errors"])


def _schedule(of: Schedule) -> str:
    rows = [row for row in _results(SCHEDULES)["measured"].get(of.finder, []) if row.get("cost") == of.cost]
    if not rows:
        raise LookupError(f"{SCHEDULES} has no row of {of}.")
    return _written(rows[0]["work"], rows[0]["errors"])


@cache
def _results(name: str) -> Facts:
    return load(RESULTS / name)


def _written(work: float, errors: list[float]) -> str:
    return f"{work:.3f} / {np.median(errors):.4f}"
