"""How many examples a law is tried on: a few in `make test`, many more, and others every time, in `make fuzz`."""

import os
from typing import Any

from hypothesis import settings

LONG = 40 if os.environ.get("DICACHE_FUZZ") else 1
"""How many times as many."""
ROUNDS = 200 if LONG > 1 else 10
"""How often threads are set against each other."""


def examples(count: int, **options: Any) -> settings:
    """For laws whose examples cost more than usual."""
    return settings(max_examples=LONG * count, **options)
