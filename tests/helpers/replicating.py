"""What replicas of a server are made with, in processes of their own: they say who they are, and wait to be let go."""

import os
import time
from functools import wraps
from pathlib import Path
from typing import Any

import dicache.reference

GO = "go"


def marked(folder: Path) -> Any:
    """The reference pipeline, which leaves a file `replica-<process>` and draws once there is a file `go`."""
    pipe = dicache.reference.pipeline()
    kind = type(pipe)

    def draws(self: Any, *args: Any, **kwargs: Any) -> Any:
        while not (folder / GO).exists():
            time.sleep(0.02)
        return kind.__call__(self, *args, **kwargs)

    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": wraps(kind.__call__)(draws)})
    (folder / f"replica-{os.getpid()}").touch()
    return pipe


def replicas(folder: Path) -> list[int]:
    """Their processes, in the order in which they came."""
    paths = sorted(folder.glob("replica-*"), key=lambda path: path.stat().st_mtime_ns)
    return [int(path.name.partition("-")[2]) for path in paths]
