"""A session remembers one run, so it works for one thread at a time: calls of two would be a mixture of both.

    owned    from a run's first call on, by the thread that makes it
    free     when the run is complete, when it is reset or the cache is taken off; when the thread has ended, or has
             left the loop that made the calls, as one does whose run was interrupted: its stack shows that

Of the stack a place is noted, never a frame: frames hold on to their variables.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import accumulate, chain, repeat, starmap
from types import CodeType, FrameType
from typing import Any, NamedTuple

from dicache.errors import BusyError

_BRINGS_ABOUT = ("threading", "concurrent", "asyncio", "contextvars")
"""What runs a thread's own code."""


class Frame(NamedTuple):
    """Of a function that is running: how many called it, and its code."""

    depth: int
    code: CodeType

    def on(self, stack: list[FrameType]) -> bool:
        """Whether it is still running there; `stack` from the outermost function on."""
        return len(stack) > self.depth and stack[self.depth].f_code is self.code


class Owner:
    """`find_loop` gives, of the functions that led to this one's frame, that of the loop that calls the denoiser."""

    model: str
    find_loop: Callable[[FrameType], FrameType]
    lock: threading.Lock
    name: str

    def __init__(
        self, model: str = "the denoiser", find_loop: Callable[[FrameType], FrameType] = lambda frame: frame
    ) -> None:
        self.model, self.find_loop, self.lock = model, find_loop, threading.Lock()
        self.thread: int | None = None
        self.name = ""
        self.loop: Frame | None = None
        """Of the loop that calls the denoiser."""
        self.outermost: Frame | None = None
        """Of the thread's own code that led to it."""

    def claim(self) -> bool:
        """By the thread that is about to call the denoiser. Whether the thread before it has left its loop but not what
        led to it, so that two loops may be taking turns.

        Raises BusyError where another one is in the midst of a run.
        """
        frame, me = sys._getframe(1), threading.get_ident()
        stack = _stack([frame])
        if self.thread == me and self.loop is not None and self.loop.on(stack):
            return False
        with self.lock:
            self.check()
            turns = self._elsewhere(self.outermost)
            loop = self.find_loop(frame)
            depth = next(i for i, each in enumerate(stack) if each is loop)
            own = next((i for i, each in enumerate(stack) if _is_own(each)), depth)
            self.loop, self.outermost = Frame(depth, loop.f_code), Frame(own, stack[own].f_code)
            self.thread, self.name = me, threading.current_thread().name
        return turns

    def free(self) -> None:
        """The run is over."""
        self.thread = None

    def check(self, act: str = "called") -> None:
        """Raises BusyError where a run is going on in another thread; `act` is what was to be done in this one."""
        if self.elsewhere:
            raise BusyError(
                f"{self.model} is in the midst of a run in the thread {self.name!r} and was {act} in "
                f"{threading.current_thread().name!r}. A cache remembers one run at a time: run one after the other, "
                "give each thread a pipeline with a denoiser of its own and call dicache.enable on each, or "
                "dicache.disable this one. The run that is going on is as it was."
            )

    @property
    def elsewhere(self) -> bool:
        """Whether a run is going on in another thread."""
        return self._elsewhere(self.loop)

    def _elsewhere(self, frame: Frame | None) -> bool:
        thread = self.thread
        if thread is None or frame is None or thread == threading.get_ident():
            return False
        innermost = map(dict.get, starmap(sys._current_frames, [()]), [thread])  # looked up when the walk begins
        return frame.on(_stack(innermost))


def _stack(innermost: Iterable[FrameType | None]) -> list[FrameType]:
    """The functions that are running, from the outermost on; `innermost` holds one, or None.

    The whole walk is one call of C, within which no other thread goes on: a generator that is left meanwhile may have
    an `f_back` that is some other object's memory (seen under Python 3.11).
    """
    caller: Callable[[Any, Any], Any] = FrameType.f_back.__get__
    walk = accumulate(chain(innermost, repeat(FrameType)), caller)
    stack: list[Any] = []
    with suppress(TypeError):  # raised one step after None, which has the attribute itself for its own
        stack.extend(walk)
    return stack[-3::-1]


def _is_own(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] not in _BRINGS_ABOUT
