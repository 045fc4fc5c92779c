"""Does drawing again give what the file holds? `python -m dicache.bench pareto --check`

Executed work must be the same, so the decisions were; errors per caption may differ by 1e-3 of themselves, or by 1e-6.
"""

import math
from collections.abc import Sequence

from rich.console import Console

from dicache.bench.arms.arm import Arm
from dicache.bench.harness.measure import Comparison, Point
from dicache.bench.harness.store import Facts, differences

RELATIVE, ABSOLUTE = 1e-3, 1e-6
SAME_WORK = 1e-9


def check(facts: Facts, wanted: Facts, comparison: Comparison, arms: Sequence[Arm]) -> None:
    """Prints a line per point of these arms. Raises SystemExit(1) if one differs, or if there is none."""
    console = Console()
    if changed := differences(facts, wanted, [package for arm in arms for package in arm.packages]):
        console.print(f"the file was measured with other {', '.join(changed)}")
    points = {(p["arm"], str(p["value"])): Point(**p) for p in facts["points"]}
    pairs = [(arm, value) for arm in arms for value in arm.order if (arm.name, str(value)) in points]
    differing = 0
    for arm, value in pairs:
        change = difference(points[arm.name, str(value)], comparison.point(arm, value))
        differing += change is not None
        console.print(f"{arm.name}, {arm.knob} {value}: {change or 'the same'}", highlight=False)
    console.print(f"{len(pairs)} points drawn again, {differing} differ")
    if differing or not pairs:
        raise SystemExit(1)


def difference(before: Point, after: Point) -> str | None:
    """In words; None if there is none."""
    if before.work is None or after.work is None:
        return None if before.failure == after.failure else f"failure was {before.failure}, is {after.failure}"
    if not math.isclose(before.work, after.work, rel_tol=SAME_WORK):
        return f"work was {before.work}, is {after.work}"
    pairs = list(zip(before.errors, after.errors, strict=True))
    if all(math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE) for a, b in pairs):
        return None
    a, b = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    return f"an error was {a}, is {b}"
