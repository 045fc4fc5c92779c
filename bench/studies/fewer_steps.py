"""What do fewer steps give, swept to the end? `python -m dicache.bench.studies.fewer_steps`

The sweeps of `pareto` stop at 0.3 of the steps, and an arm has no value beyond its last point, so at loose errors it is
left out of their tables. Here the two arms of fewer steps, by the setting's own solver and by DPM-Solver++, go on to a
tenth of the steps, on the captions and at the settings of every result file. Written setting by setting; a setting that
is there already is not drawn again.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from dicache.bench.arms.arm import Arm
from dicache.bench.arms.ours import BASELINES
from dicache.bench.harness.curves import Curve, curves
from dicache.bench.harness.measure import Comparison, Point
from dicache.bench.harness.store import RESULTS, Facts, load
from dicache.bench.models.reference import Setting
from dicache.bench.showing.show import results
from dicache.bench.showing.tables import TARGETS, markdown, title
from dicache.files.atomic import write_text

SHARES = (0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)
ARMS = tuple(arm for arm in BASELINES if arm.name.startswith("fewer steps"))


def points(facts: Facts) -> list[Point]:
    """Of both arms, on the captions of a result file."""
    setting = Setting(**facts["setting"])
    comparison = Comparison(facts["captions"], setting)
    return [comparison.point(arm, share) for arm in ARMS for share in shares(arm, setting)]


def shares(arm: Arm, setting: Setting) -> list[float]:
    """One per number of steps, and no fewer than two steps."""
    counts = {max(2, round(share * setting.steps)): share for share in reversed(SHARES)}
    return sorted(counts.values(), reverse=True)


def best(swept: list[dict[str, Any]], error: float) -> Curve | None:
    """The arm with the largest speed-up at this median error."""
    reaching = [curve for curve in curves({"points": swept}) if curve.speedup_at(error) is not None]
    return max(reaching, key=lambda curve: curve.speedup_at(error) or 0.0, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fewer steps, swept to the end, at every setting of the results.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--settings", default="", help="only result files whose name holds this")
    parser.add_argument("--out", type=Path, default=RESULTS / "fewer-steps.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    swept: dict[str, list[dict[str, Any]]] = load(args.out) if args.out.is_file() else {}
    sweeps = {path.stem: facts for path, facts in results(args.results).items() if args.settings in path.stem}
    with Progress(console=Console(stderr=True)) as progress:
        for name in progress.track([name for name in sweeps if name not in swept], description="settings"):
            swept[name] = [dataclasses.asdict(point) for point in points(sweeps[name])]
            write_text(args.out, json.dumps(swept, indent=1))
    rows = [["setting", *(f"speed-up at {target:g}" for target in TARGETS)]]
    for name, facts in sweeps.items():
        curve = [best(swept[name], target) for target in TARGETS]
        cells = [
            "-" if c is None else f"{c.speedup_at(t):.2f}x ({c.name})" for c, t in zip(curve, TARGETS, strict=True)
        ]
        rows.append([title(facts), *cells])
    Console(width=200).print(markdown(rows), highlight=False)


if __name__ == "__main__":
    main()
