"""What the result files say, as tables: per setting, per point, over all settings, and what each arm costs to run."""

from collections.abc import Sequence

import numpy as np

from dicache.bench.harness.curves import Curve, Reach, curves, median_interval, paired_ratio
from dicache.bench.harness.store import Facts
from dicache.bench.showing.best import KINDS, OURS, RIVALS, Best, ahead, best

TARGETS = (0.01, 0.03, 0.1)
SPEEDUPS = (2.0, 3.0, 4.0)
LISTED = 3
"""Rivals that a loss names."""
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
    speedups = [times(curve.reach(target)) for target in TARGETS]
    here, mine = curve.at_speedup(2.0), None if ours is None else ours.at_speedup(2.0)
    if here is None:
        return [curve.name, *speedups, "-", "-", "-"]
    low, high = median_interval(here)
    errors = [f"{np.median(here):.4f} ({low:.4f} to {high:.4f})", f"{np.quantile(here, 0.9):.4f}"]
    if mine is None:
        return [curve.name, *speedups, *errors, "-"]
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(*paired_ratio(mine, here))
    return [curve.name, *speedups, *errors, ratio]


def verdict_table(facts: Facts) -> Table:
    """dicache's speed-up over the best rival of every kind, and that of its fastest arm over the best of all."""
    drawn = curves(facts)
    rows = [["dicache's speed-up over", *[f"at error {t:g}" for t in TARGETS]]]
    for words, kinds in KINDS.items():
        rows.append([f"the {words}", *[_against(_ours(drawn), best(drawn, kinds, t), t) for t in TARGETS]])
    fastest = [(t, _curve(drawn, best(drawn, OURS, t))) for t in TARGETS]
    cells = [_against(curve, best(drawn, RIVALS, t), t) for t, curve in fastest]
    return [*rows, ["the best rival, of its fastest arm", *cells]]


def _curve(drawn: Sequence[Curve], at: Best | None) -> Curve | None:
    return None if at is None else next(c for c in drawn if c.name == at.name)


def _against(ours: Curve | None, rival: Best | None, target: float) -> str:
    mine = None if ours is None else ours.reach(target)
    if mine is None or mine.counted is None or rival is None:
        return "-"
    return f"{mine.counted / rival.speedup:.2f} ({rival.name})"


def summary_table(results: Sequence[Facts]) -> Table:
    """Every setting at every target: dicache's speed-up, the best of each kind, and dicache's over the best rival's."""
    head = ["setting", "median error", "dicache", "dicache's fastest arm", *KINDS, "dicache / best rival"]
    return [[*head, "its fastest arm / best rival"], *[_summary_row(f, target) for f in results for target in TARGETS]]


def _summary_row(facts: Facts, target: float) -> list[str]:
    drawn = curves(facts)
    ours, rival, fastest = _ours(drawn), best(drawn, RIVALS, target), best(drawn, OURS, target)
    cells = [named(fastest), *[named(best(drawn, kinds, target)) for kinds in KINDS.values()]]
    ratios = [_against(curve, rival, target).partition(" ")[0] for curve in (ours, _curve(drawn, fastest))]
    return [title(facts), f"{target:g}", times(None if ours is None else ours.reach(target)), *cells, *ratios]


def limit_table(facts: Facts) -> Table:
    """Distance to the limit, of the uncached run and of every arm that it was looked at for: a finer grid with a cache
    against the plain run.
    """
    own = np.array(facts["discretisation"])
    head = ["arm", *[f"median at {speedup:g}x" for speedup in SPEEDUPS], "90th pct at 2x", "nearer than uncached at 2x"]
    rows = [[f"uncached, all {facts['setting']['steps']} steps", f"{np.median(own):.4f} at 1x", *["-"] * 4]]
    for curve in curves(facts, of="limit"):
        if all(curve.median_at(speedup) is None for speedup in SPEEDUPS):
            continue
        medians = [curve.median_at(speedup) for speedup in SPEEDUPS]
        here = curve.at_speedup(2.0)
        shares = ["-", "-"] if here is None else [f"{np.quantile(here, 0.9):.4f}", f"{np.mean(here < own):.0%}"]
        rows.append([curve.name, *["-" if median is None else f"{median:.4f}" for median in medians], *shares])
    return [head, *rows] if len(rows) > 1 else [head]


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
    rows = [
        ["arm", "knob", "work", "mean", "median", "90th pct", "99th pct", "to the limit", "PSNR", "SSIM", "attributes"]
    ]
    for p in facts["points"]:
        if p["failure"] is not None:
            rows.append([p["arm"], f"{p['knob']} {p['value']}", p["failure"], *[""] * 8])
            continue
        e = np.array(p["errors"])
        numbers = [e.mean(), np.median(e), np.quantile(e, 0.9), np.quantile(e, 0.99)]
        quality = [f"{np.median(p['psnr']):.1f}", f"{np.median(p['ssim']):.4f}", f"{np.mean(p['attributes']):.3f}"]
        knob = f"{p['knob']} {p['value']}"
        limit = f"{np.median(p['limit']):.4f}" if p.get("limit") else "-"
        rows.append([p["arm"], knob, f"{p['work']:.3f}", *[f"{n:.4f}" for n in numbers], limit, *quality])
    return rows


def markdown(table: Table) -> str:
    head, *rows = table
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def losses(facts: Facts) -> str:
    """Where dicache does not win, at which error, and to whom: any rival that is certainly faster."""
    drawn = curves(facts)
    if _ours(drawn) is None:
        return "dicache has not been drawn at this setting yet."
    lost = [
        line for target in TARGETS for curve in drawn if curve.kind in OURS and (line := _lost(drawn, curve, target))
    ]
    early = sum(str(c.reach(TARGETS[-1])).startswith(">=") for c in drawn if c.kind in RIVALS)
    more = f" Sweeps that end before error {TARGETS[-1]:g}, whose arms may be faster there: {early}." if early else ""
    return "Where dicache does not win: " + ("; ".join(lost) if lost else "nowhere in this table") + "." + more


def _lost(drawn: Sequence[Curve], ours: Curve, target: float) -> str:
    """Of one arm of dicache's at one error; empty where nothing is faster."""
    mine = ours.reach(target)
    if mine is None:
        return ""
    faster = ahead(drawn, mine.speedup, target)
    if not faster:
        return ""
    listed = ", ".join(f"{rival.name} ({rival.reach})" for rival in faster[:LISTED])
    more = f" and {len(faster) - LISTED} more" if len(faster) > LISTED else ""
    return f"at median error {target:g} {ours.name} ({mine}) is behind {listed}{more}"


def times(reach: Reach | None) -> str:
    return "-" if reach is None else str(reach)


def named(at: Best | None) -> str:
    return "-" if at is None else f"{at.reach} ({at.name})"
