"""How far something long has come, on stderr: a bar in a terminal, and where stderr is a file or a pipe a line now and
then, which a log can show.
"""

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dicache.reporting.words import duration

SOON, LATE = 1.0, 30.0
"""Seconds between two lines of one task: at least, where another tenth is done; at most, where anything is."""


def progress(shown: bool = True) -> Progress:
    """A context manager with tasks; its `console` prints lines beside them."""
    console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
    if shown and not sys.stderr.isatty():
        return LineProgress(console)
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=console, disable=not shown)


class LineProgress(Progress):
    """A line of each task at every tenth and every half minute, and one when it is done; nothing is overwritten."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, disable=True)
        self.started: dict[TaskID, float] = {}
        self.reported: dict[TaskID, tuple[float, float]] = {}
        """When a task was told of last, and how much of it was done then."""

    def add_task(self, *args: Any, **fields: Any) -> TaskID:  # noqa: ANN401
        task_id = super().add_task(*args, **fields)
        self.started[task_id], self.reported[task_id] = time.monotonic(), (time.monotonic(), 0.0)
        return task_id

    def update(self, task_id: TaskID, **fields: Any) -> None:  # noqa: ANN401
        super().update(task_id, **fields)
        self._report(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._report(task_id)

    def _report(self, task_id: TaskID) -> None:
        task, moment = next(task for task in self.tasks if task.id == task_id), time.monotonic()
        begun, (when, done) = self.started[task_id], self.reported[task_id]
        if not task.total or task.completed <= done:
            return
        tenth, since = int(10 * task.completed / task.total) > int(10 * done / task.total), moment - when
        over = task.completed >= task.total
        if not over and not (tenth and since >= SOON) and since < LATE:
            return
        self.reported[task_id] = moment, task.completed
        left = (moment - begun) * (task.total / task.completed - 1)
        ahead = f"done in {duration(moment - begun)}" if over else f"about {duration(left)} to go"
        self.console.print(f"{task.description}: {task.completed:g} of {task.total:g}, {ahead}")


@dataclass
class Watched:
    """Shows every kind of work on a line of its own."""

    bar: Progress
    tasks: dict[str, Any] = field(default_factory=dict)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what)
        self.bar.update(self.tasks[what], completed=done, total=total)
