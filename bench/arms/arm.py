"""What is compared: an arm is a way of drawing the same captions with the same seeds, swept over its own knob.

`prepare(pipe, value, setting)` is a context: inside it the pipeline, made afresh for every point, draws in the arm's
way, under the setting it yields (fewer steps are another setting). An arm that cannot run raises, and the results say
why. Its sweep goes on until its error is beyond all that is asked for, or its knob ends.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from diffusers import FluxPipeline

from dicache.bench.models.reference import Setting
from dicache.cache import Cache

Kind = Literal["baseline", "dicache", "peer", "preset", "oracle", "entrant"]


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
    warmup: float | None = None
    """Share of the steps computed at the start; None for arms that have no such knob."""
    cache: Callable[[FluxPipeline, Any, Setting], Cache] | None = None
    """For arms made of dicache: what `prepare` enables, so that its own time can be read off."""
    onward: tuple[Any, ...] = ()
    """Values beyond `values`, each skipping more than the one before: drawn one after another until the sweep is at its
    end (`dicache.bench.harness.sweep_end`).
    """

    @property
    def order(self) -> tuple[Any, ...]:
        """All values that the knob can take here."""
        return (*self.values, *self.onward)

    def enter(self, pipe: FluxPipeline, value: Any, setting: Setting) -> AbstractContextManager[Setting]:  # noqa: ANN401
        """`prepare` with the arm's own warm-up."""
        own = setting if self.warmup is None else dataclasses.replace(setting, warmup=self.warmup)
        return self.prepare(pipe, value, own)


def coarse(arms: Sequence[Arm]) -> list[Arm]:
    """Every second value of the knob, from the first; dicache's own arms stay as they are."""
    return [arm if arm.kind == "dicache" else dataclasses.replace(arm, values=arm.values[::2]) for arm in arms]
