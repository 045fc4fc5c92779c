"""One caption drawn for somebody who watches: uncached, then within a budget, told step by step.

    exact       a step of the uncached run is over: {"step", "steps"}
    uncached    its picture and seconds
    step        a step of the cached run is over: what was done, the estimate and the work so far
    done        its picture, what was saved, the estimate and the true error
    refused     why nothing is drawn

The uncached runs of the last captions are remembered: whoever moves the slider waits for the cached run alone.
"""

import base64
import io
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor

from dicache.api import enable
from dicache.errors import DicacheError
from dicache.promise.metrics import relative_error
from dicache.reference.assembly import pipeline
from dicache.reference.draw import draw, pictures
from dicache.reporting.callbacks import StepReport
from dicache.types import Action

REMEMBERED = 32
"""Uncached runs."""
Tell = Callable[[str, dict[str, Any]], None]
"""Of an event by its name. What it raises ends the drawing."""


class Wish(NamedTuple):
    """What is to be drawn."""

    caption: str
    seed: int
    steps: int


class ExactPicture(NamedTuple):
    """An uncached run."""

    latents: Tensor
    """(1, 64, 48)."""
    picture: str
    """As a data URL."""
    seconds: float


class Painter:
    """The reference pipeline, which draws for one at a time."""

    pipe: FluxPipeline
    lock: threading.Lock

    def __init__(self, make: Callable[[], FluxPipeline] = pipeline) -> None:
        self.pipe, self.lock = make(), threading.Lock()
        self.pipe.set_progress_bar_config(disable=True)
        self.remembered: OrderedDict[Wish, ExactPicture] = OrderedDict()

    def paint(self, wish: Wish, error_budget: float, tell: Tell) -> None:
        """Both runs; what dicache refuses is told. Raises what `tell` raises."""
        try:
            with self.lock:
                self._paint(wish, error_budget, tell)
        except DicacheError as error:
            tell("refused", {"error": str(error)})

    def _paint(self, wish: Wish, error_budget: float, tell: Tell) -> None:
        exact = self._exact(wish, tell)
        tell("uncached", {"picture": exact.picture, "seconds": exact.seconds})
        with enable(self.pipe, error_budget=error_budget, on_step=lambda step: tell("step", _facts(step))) as cache:
            latents, seconds = draw(self.pipe, [wish.caption], [wish.seed], wish.steps)
        report = cache.report()
        (sample,) = report.to_dict()["samples"]
        error = float(relative_error(latents, exact.latents)[0])
        facts = {"seconds": seconds, "true_error": error, "budget": error_budget, "warnings": report.warnings}
        facts |= {"work": sample["computed_fraction"], "speedup": report.compute_speedup}
        facts |= {"estimated_error": sample["estimated_error"], "decisions": report.strip(0)}
        tell("done", {"picture": self._picture(latents), **{name: _plain(value) for name, value in facts.items()}})

    def _exact(self, wish: Wish, tell: Tell) -> ExactPicture:
        if wish in self.remembered:
            self.remembered.move_to_end(wish)
            return self.remembered[wish]
        over = iter(range(1, wish.steps + 1))
        latents, seconds = draw(
            self.pipe,
            [wish.caption],
            [wish.seed],
            wish.steps,
            lambda: tell("exact", {"step": next(over), "steps": wish.steps}),
        )
        exact = self.remembered[wish] = ExactPicture(latents, self._picture(latents), seconds)
        while len(self.remembered) > REMEMBERED:
            self.remembered.popitem(last=False)
        return exact

    def _picture(self, latents: Tensor) -> str:
        (pixels,) = pictures(self.pipe, latents)
        data = io.BytesIO()
        Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy()).save(data, "PNG")
        return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _facts(step: StepReport) -> dict[str, Any]:
    """Of the one sample."""
    return {
        "step": step.step + 1,
        "steps": step.steps,
        "action": Action[step.decisions[0].upper()].name.lower(),
        "estimated_error": step.estimated_errors[0],
        "work": step.work[0],
    }


def _plain(value: Any) -> Any:  # noqa: ANN401
    """As JSON has it: what is not finite is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
