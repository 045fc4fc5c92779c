"""How many examples a law is tried on: a few in `make test`, many more, and others every time, in `make fuzz`."""

import os
from collections.abc import Iterable
from typing import Any, TypeVar

from hypothesis import settings

T = TypeVar("T")
LONG = 40 if os.environ.get("DICACHE_FUZZ") else 1
"""How many times as many."""
ROUNDS = 200 if LONG > 1 else 10
"""How often threads are set against each other."""


def spread(cases: Iterable[T], among: int) -> list[T]:
    """All cases in the long form; in the short form one of every so many that follow each other, in turn the first, the
    second, ...
    """
    cases = list(cases)
    return cases if LONG > 1 else [cases[k + k // among % among] for k in range(0, len(cases), among)]


def examples(count: int, **options: Any) -> settings:
    """For laws whose examples cost more than usual."""
    return settings(max_examples=LONG * count, **options)
