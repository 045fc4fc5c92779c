"""A write in a process of its own, killed at a moment of the test's choice, or on a disk that is full."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable

DONE, REFUSED, FAILED = 0, 3, 4
"""Exit statuses."""


def killed_after(write: Callable[[], object], seconds: float) -> bool:
    """Whether the write had ended before it was killed."""
    child = started(write)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return ended(child)


def started(write: Callable[[], object]) -> int:
    """The process that it was started in."""
    child = os.fork()
    if child == 0:
        _end_with(write)
    return child


def killed_at(write: Callable[[], object], event: int) -> bool:
    """The same, killed where it touches the file system for the event-th time, from 0 on."""
    child = os.fork()
    if child == 0:
        left = [event]

        def count(name: str, _: object) -> None:
            if name == "open" or (name.startswith("os.") and name != "os.kill"):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        _end_with(write)
    return ended(child)


def ended(child: int) -> bool:
    """Whether it came to its end before it was killed; waits for it."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (DONE, -signal.SIGKILL), "the write failed"
    return status == DONE


def on_a_full_disk(write: Callable[[], object], most: int, error: type[Exception]) -> bool:
    """Whether a write was refused with this error, where no file may have more bytes than `most`."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        _end_with(write, error)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (DONE, REFUSED), "another error"
    return status == REFUSED


def _end_with(write: Callable[[], object], refusal: type[Exception] | None = None) -> None:
    """The child's end, which never goes back to the tests."""
    status = FAILED
    try:
        write()
        status = DONE
    except BaseException as error:
        if refusal is not None and isinstance(error, refusal):
            status = REFUSED
        else:
            traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)
