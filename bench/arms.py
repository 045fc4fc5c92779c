"""What is compared: an arm is a way of drawing the same captions with the same seeds, swept over its own knob.

`prepare(pipe, value, setting)` is a context: inside it the pipeline, made afresh for every point, draws in the arm's
way, under the setting it yields (fewer steps are another setting). An arm that cannot run raises, and the results say
why.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from diffusers import FluxPipeline

Kind = Literal["baseline", "dicache", "peer", "oracle"]


@dataclass(frozen=True)
class Setting:
    """How pictures are drawn. `guidance` 1 means none, more runs cond and uncond in calls of their own."""

    steps: int = 28
    guidance: float = 3.5
    batch: int = 8
    shift: float = 1.0
    """Bend of the flow-matching sigmas; above 1, more steps at high noise."""
    solver: Literal["euler", "dpm++"] = "euler"

    @property
    def calls_per_step(self) -> int:
        return 2 if self.guidance > 1 else 1


@dataclass(frozen=True)
class Arm:
    name: str
    kind: Kind
    knob: str
    """What is swept, as its own documentation calls it."""
    values: tuple[Any, ...]
    prepare: Callable[[FluxPipeline, Any, Setting], AbstractContextManager[Setting]]
    note: str = ""
    """What a reader must know, for example that the arm was calibrated on the calibration captions."""
    packages: tuple[str, ...] = field(default=())
    """Installed packages the arm needs; their versions go into the results."""
