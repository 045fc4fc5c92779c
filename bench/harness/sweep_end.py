"""When a sweep is at its end: once the median error is past all that the tables ask for, or the knob has no more.

An arm that was dropped where its sweep happened to end made others look best. So `values` are drawn always, and
`onward` one after another until a median error is above PASSED, or a value changes nothing any more, or fails.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dicache.bench.arms.arm import Arm
from dicache.bench.harness.measure import Point

PASSED = 0.12
"""The tables ask for a median error of 0.1 at most."""
MISSING = object()


def next_value(arm: Arm, points: Sequence[Point]) -> Any:  # noqa: ANN401
    """What is to be drawn next of an arm with these points; MISSING where there is nothing more."""
    drawn = {str(point.value): point for point in points}
    for i, value in enumerate(arm.order):
        if i >= len(arm.values) and at_end([drawn[str(before)] for before in arm.order[:i]]):
            return MISSING
        if str(value) not in drawn:
            return value
    return MISSING


def at_end(points: Sequence[Point]) -> bool:
    """Of points in the order of the knob: whether to draw no further."""
    if not points:
        return False
    ran = [point for point in points if point.failure is None]
    if not ran or points[-1].failure is not None or any(np.median(point.errors) > PASSED for point in ran):
        return True
    return len(points) > 1 and (points[-1].work, points[-1].errors) == (points[-2].work, points[-2].errors)
