"""Which pipeline is running? Pipelines may share a denoiser and have a scheduler each (`from_pipe`); only who calls the
denoiser knows the time. So the frames that led to the call are looked through for what holds this denoiser and a
scheduler; where nothing does, it is the pipeline that dicache was enabled on.
"""

import sys
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

from torch import nn

from dicache.solvers.clock import Loop

DENOISERS = ("transformer", "transformer_2", "unet")
"""What pipelines call them."""
_FAR = 40
_OWN_NAMES = ("self", "components")
_NAMES = (*_OWN_NAMES, "pipe", "pipeline")
_OPTIONS = "extra_step_kwargs"
"""What pipelines call that which they hand to every step of the scheduler."""
_PASSED_BY = ("torch.", "accelerate.", "dicache.")


class Running:
    """Its scheduler, when called from within the denoiser's hooks."""

    pipe: Any
    denoisers: Mapping[str, nn.Module]

    def __init__(self, pipe: Any, denoisers: Mapping[str, nn.Module]) -> None:  # noqa: ANN401
        self.pipe, self.denoisers = pipe, denoisers

    def __call__(self) -> Any:  # noqa: ANN401
        return self.pipeline.scheduler

    @property
    def pipeline(self) -> Any:  # noqa: ANN401
        """The one that runs."""
        pipe, _, _ = self._running()
        return pipe or self.pipe

    def loop(self) -> Loop:
        """What its loop does with the scheduler. Of a loop by hand nothing is known: what the pipeline has noted down
        is of a run of its own, before.
        """
        pipe, frame, by_itself = self._running()
        calls = vars(pipe).get("_num_timesteps") if by_itself else None
        options = {} if frame is None else frame.f_locals.get(_OPTIONS, {})
        return Loop(calls, {name: value for name, value in options.items() if name != "generator"})

    def _running(self) -> tuple[Any, FrameType | None, bool]:
        """The pipeline that runs, and the frame of its loop; None where none is found. Whether the loop is its own."""
        frame: FrameType | None = sys._getframe(1)
        running, by_itself = None, False
        for _ in range(_FAR):
            if frame is None:
                break
            if running is None:
                running, by_itself = self._in(frame)
            if running is not None and _OPTIONS in frame.f_code.co_varnames:
                return running, frame, by_itself
            frame = frame.f_back
        return running, None, by_itself

    def _in(self, frame: FrameType) -> tuple[Any, bool]:
        """What holds the denoiser and a scheduler among the frame's variables, and whether the frame is one of its own;
        None if nothing does.
        """
        if _passed_by(frame):
            return None, False
        for name in _NAMES:
            if name not in frame.f_code.co_varnames:
                continue
            holder = frame.f_locals.get(name)
            if _drives(holder, self.denoisers, self.denoisers.values()):
                return holder, name in _OWN_NAMES
        return None, False


def loop_of(denoiser: nn.Module, frame: FrameType) -> FrameType:
    """The frame of the loop that calls the denoiser, seen from this one: the pipeline's, where one of its methods led
    here, else that of whoever called the denoiser.
    """
    caller, pipeline, outer = None, None, frame.f_back
    while outer is not None:
        if not _passed_by(outer):
            caller = caller or outer
            if "self" in outer.f_code.co_varnames and _drives(outer.f_locals.get("self"), DENOISERS, [denoiser]):
                pipeline = outer
        outer = outer.f_back
    return pipeline or caller or frame


def _passed_by(frame: FrameType) -> bool:
    return bool(frame.f_globals.get("__name__", "").startswith(_PASSED_BY))


def _drives(holder: object, names: Iterable[str], denoisers: Iterable[nn.Module]) -> bool:
    """Anything may be called `pipe`, so this asks instead of expecting."""
    scheduler, *parts = (getattr(holder, name, None) for name in ("scheduler", *names))
    if isinstance(holder, nn.Module) or scheduler is None:
        return False
    return any(part is denoiser for part in parts for denoiser in denoisers)
