"""The tables of `python -m dicache.bench coverage`: is the promise kept, and what does it cost?

within          share of the captions within their budget; p, that of a one-sided binomial test against the confidence
median / budget how much of the budget is used
spread          standard deviation of log(true / estimated error)
work            executed MACs over those of the uncached run, its mean and standard deviation over captions, and its
                mean over captions of one thing and of four
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCES = (0.8, 0.9, 0.95)
SIGNIFICANT = 0.01
HEAD = "setting | captions | budget | confidence | within | p | median / budget | spread | work | sd | 1 to 4 things"


def table(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [HEAD.split(" | "), *(_row(line) for line in lines if line["speedup"] is None)]


def _row(line: dict[str, Any]) -> list[str]:
    errors, work = np.array(line["errors"]), np.array(line["work"])
    within, n, confidence = int((errors <= line["budget"]).sum()), len(errors), line["confidence"]
    p = None if confidence is None else stats.binomtest(within, n, confidence, alternative="less").pvalue
    ratio = np.log(np.maximum(errors, 1e-9) / np.maximum(line["estimates"], 1e-9))
    by_things = [work[np.array(line["things"])[:n] == k] for k in (1, 4)]  # interrupted, the last captions are missing
    return [
        line["case"],
        str(n),
        f"{line['budget']:g}",
        "none" if confidence is None else f"{confidence:g}",
        f"{within / n:.3f}",
        "-" if p is None else f"{p:.3f}" + (_verdict(line["case"]) if p < SIGNIFICANT else ""),
        f"{np.median(errors) / line['budget']:.2f}",
        f"{ratio.std():.2f}" if work.min() < 0.999 else "-",
        f"{work.mean():.3f}",
        f"{work.std():.3f}",
        " to ".join(f"{group.mean():.3f}" if len(group) else "-" for group in by_things),
    ]


def _verdict(case: str) -> str:
    """Of a promise that was not kept: where nothing else differs it fails, elsewhere the audit's report says drift."""
    return " DRIFT" if case.startswith("shifted") else " FAILS"


def brief(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    """`table` with the confidences of a budget side by side."""
    asked = " / ".join(f"{confidence:g}" for confidence in CONFIDENCES)
    head = ["setting", "captions", "budget", f"within at {asked}", "median / budget", "work"]
    merged: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for name, captions, budget, confidence, within, p, used, _, work, *_ in table(lines)[1:]:
        shares = " ".join([within, *p.split()[1:]])
        merged.setdefault((name, captions, budget), {})[confidence] = [shares, used, work]
    rows = [head]
    for key, cells in merged.items():
        columns = zip(*(cells.get(f"{c:g}", ["-"] * 3) for c in CONFIDENCES), strict=True)
        shown = cells["none"] if "none" in cells else [" / ".join(column) for column in columns]
        rows.append([*key, *shown])
    return rows


def speed_table(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["setting", "captions", "speedup asked", "speedup", "off by", "sd of work", "median error", "90th pct"]]
    for line in lines:
        if line["speedup"] is not None:
            work, errors = np.array(line["work"]), np.array(line["errors"])
            speedup = 1 / work.mean()
            numbers = [f"{speedup:.3f}", f"{speedup / line['speedup'] - 1:+.1%}", f"{work.std():.3f}"]
            numbers += [f"{np.median(errors):.4f}", f"{np.quantile(errors, 0.9):.4f}"]
            rows.append([line["case"], str(len(work)), f"{line['speedup']:g}", *numbers])
    return rows
