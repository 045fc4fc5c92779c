"""What processes do to a prompt memory at the same time."""

import hashlib
import random

from dicache.memory.store import Memory


def value_of(tenant: str, key: str) -> bytes:
    """What alone may be read under this name."""
    seed = hashlib.sha256(f"{tenant} {key}".encode()).digest()
    return seed * (1 + seed[0])


def work_on(memory: Memory, operations: int, seed: int) -> int:
    """Reads and writes in any order; how many reads gave something. Raises AssertionError for anything foreign."""
    rng, seen = random.Random(seed), 0
    for _ in range(operations):
        key = str(rng.randrange(40))
        if rng.random() < 0.5:
            memory.write(key, value_of(memory.tenant, key))
            continue
        entry = memory.read(key)
        assert entry is None or entry == value_of(memory.tenant, key)
        seen += entry is not None
    return seen
