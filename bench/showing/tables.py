"""What the result files say, as tables: per setting, per point, over all settings, and what each arm costs to run."""

from collections.abc import Sequence

import numpy as np

from dicache.bench.harness.curves import Curve, curves, median_interval, paired_ratio
from dicache.bench.harness.store import Facts

TARGETS = (0.01, 0.03, 0.1)
Table = list[list[str]]


def title(facts: Facts) -> str:
    s = facts["setting"]
    guidance = f"guidance {s['guidance']:g}" if s["guidance"] > 1 else "no guidance"
    guidance += " in one call" if s.get("batched") else ""
    solver = "" if s["solver"] == "euler" else f", {s['solver']}"
    grid = f"{s['steps']} steps, {guidance}, shift {s['shift']:g}, batch {s['batch']}{solver}"
    return f"{grid}, {len(facts['captions'])} test captions"


def scale(facts: Facts) -> str:
    """What the numbers are to be held against."""
    steps, own = facts["setting"]["steps"], np.median(facts["discretisation"])
    jagged = ", ".join(f"{ratio:.2f} at sigma {sigma}" for sigma, ratio in facts["jaggedness"].items())
    pending = facts.get("pending")
    return (
        f"The uncached run itself is {own:.3f} (median) from one of {4 * steps} steps. "
        f"Jaggedness of the model (1 is smooth): {jagged}." + (f" Unfinished: {', '.join(pending)}." if pending else "")
    )


def speedup_table(facts: Facts) -> Table:
    """Speed-up in executed MACs at three median errors, and the paired error ratio to dicache at 2x."""
    drawn = curves(facts)
    ours = _ours(drawn)
    head = [
        "arm",
        *[f"speed-up at error {t:g}" for t in TARGETS],
        "median error at 2x",
        "90th pct",
        "error / dicache's",
    ]
    return [head, *[_speedup_row(curve, ours) for curve in drawn]]


def _ours(drawn: Sequence[Curve]) -> Curve | None:
    """dicache's curve; None in a file it has not been drawn into yet."""
    return next((c for c in drawn if c.kind == "dicache"), None)


def _speedup_row(curve: Curve, ours: Curve | None) -> list[str]:
    speedups = [times(curve.speedup_at(target)) for target in TARGETS]
    here, mine = curve.at_speedup(2.0), None if ours is None else ours.at_speedup(2.0)
    if here is None:
        return [curve.name, *speedups, "-", "-", "-"]
    low, high = median_interval(here)
    errors = [f"{np.median(here):.4f} ({low:.4f} to {high:.4f})", f"{np.quantile(here, 0.9):.4f}"]
    if mine is None:
        return [curve.name, *speedups, *errors, "-"]
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(*paired_ratio(mine, here))
    return [curve.name, *speedups, *errors, ratio]


RIVALS = (
    ("best peer", "peer", ""),
    ("best baseline", "baseline", ""),
    ("best static schedule found", "oracle", "static"),
)
"""Words, kind, and what the arm's name contains."""


def best(drawn: Sequence[Curve], kind: str, only: str, target: float) -> tuple[float, str] | None:
    """The largest speed-up at this median error among the arms of a kind, and whose it is."""
    rivals = [c for c in drawn if c.kind == kind and only in c.name]
    return max(((s, c.name) for c in rivals if (s := c.speedup_at(target)) is not None), default=None)


def verdict_table(facts: Facts) -> Table:
    """dicache's speed-up over the best peer's, the best baseline's and the best static schedule's."""
    drawn = curves(facts)
    rows = [["dicache's speed-up over", *[f"at error {t:g}" for t in TARGETS]]]
    for words, kind, only in RIVALS:
        rows.append([f"the {words}", *[_against(drawn, kind, only, target) for target in TARGETS]])
    return rows


def _against(drawn: Sequence[Curve], kind: str, only: str, target: float) -> str:
    ours, rival = _ours(drawn), best(drawn, kind, only, target)
    mine = None if ours is None else ours.speedup_at(target)
    return "-" if mine is None or rival is None else f"{mine / rival[0]:.2f} ({rival[1]})"


def summary_table(results: Sequence[Facts]) -> Table:
    """Every setting at every target: dicache's speed-up, the best of each kind, and dicache's over the best peer's."""
    head = ["setting", "median error", "dicache", *[words for words, *_ in RIVALS], "dicache / best peer"]
    return [head, *[_summary_row(facts, target) for facts in results for target in TARGETS]]


def _summary_row(facts: Facts, target: float) -> list[str]:
    drawn = curves(facts)
    ours = _ours(drawn)
    mine = None if ours is None else ours.speedup_at(target)
    rivals = [best(drawn, kind, only, target) for _, kind, only in RIVALS]
    cells = ["-" if rival is None else f"{rival[0]:.2f}x ({rival[1]})" for rival in rivals]
    ratio = "-" if mine is None or rivals[0] is None else f"{mine / rivals[0][0]:.2f}"
    return [title(facts), f"{target:g}", times(mine), *cells, ratio]


def cost_table(facts: Facts) -> Table:
    """What one value of each arm costs beside its work."""
    head = ["arm", "knob", "work", "wall time", "time not explained by work", "dicache's own time"]
    rows = [[*head, "cache KiB", "host waits per step"]]
    for cost in facts.get("costs", []):
        named = [cost["arm"], f"{cost['knob']} {cost['value']}", f"{cost['work']:.3f}"]
        if cost["failure"] is not None:
            rows.append([*named, cost["failure"], *[""] * 4])
            continue
        own = "-" if cost["own_time"] is None else f"{cost['own_time']:.1%}"
        times = [f"{cost['time']:.3f}", f"{cost['time'] - cost['work']:+.3f}", own]
        rows.append([*named, *times, f"{cost['cache_bytes'] / 1024:.0f}", f"{cost['waits']:.1f}"])
    return rows


def point_table(facts: Facts) -> Table:
    rows = [["arm", "knob", "work", "mean", "median", "90th pct", "99th pct", "PSNR", "SSIM", "attributes"]]
    for p in facts["points"]:
        if p["failure"] is not None:
            rows.append([p["arm"], f"{p['knob']} {p['value']}", p["failure"], *[""] * 7])
            continue
        e = np.array(p["errors"])
        numbers = [e.mean(), np.median(e), np.quantile(e, 0.9), np.quantile(e, 0.99)]
        quality = [f"{np.median(p['psnr']):.1f}", f"{np.median(p['ssim']):.4f}", f"{np.mean(p['attributes']):.3f}"]
        knob = f"{p['knob']} {p['value']}"
        rows.append([p["arm"], knob, f"{p['work']:.3f}", *[f"{n:.4f}" for n in numbers], *quality])
    return rows


def markdown(table: Table) -> str:
    head, *rows = table
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def losses(facts: Facts) -> str:
    """The line that says where dicache does not win."""
    drawn = curves(facts)
    ours = _ours(drawn)
    if ours is None:
        return "dicache has not been drawn at this setting yet."
    lost = []
    for target in TARGETS:
        mine = ours.speedup_at(target)
        if mine is None:
            lost.append(f"median error {target:g} lies beyond dicache's sweep")
            continue
        ahead = [c.name for c in drawn if c.kind not in ("oracle", "dicache") and (c.speedup_at(target) or 0) > mine]
        if ahead:
            lost.append(f"at median error {target:g} {', '.join(ahead)} {'is' if len(ahead) == 1 else 'are'} faster")
    return "Where dicache does not win: " + ("; ".join(lost) if lost else "nowhere in this table") + "."


def times(speedup: float | None) -> str:
    return "-" if speedup is None else f"{speedup:.2f}x"
