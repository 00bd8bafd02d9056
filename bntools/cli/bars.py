"""Bars for long work: how far it is, how fast, and how long it will take."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Bars:
    """One bar for each kind of work, below one another, which vanish at the end.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            _Count(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def advance(self, name: str, done: float, total: float | None) -> None:
        """Set how much of a kind of work is done, and of how much, None if nobody knows."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def stop(self) -> None:
        """Take them away."""
        self._progress.stop()


class _Count(ProgressColumn):
    """How many are done, of how many, and how many a second."""

    def render(self, task: Task) -> Text:
        """As ``320 of 8192 samples, 107/s``."""
        whole = f" of {task.total:.0f}" if task.total is not None else ""
        rate = f", {task.speed:.0f}/s" if task.speed else ""
        unit = "steps" if task.description == "tuning" else "samples"
        return Text(f"{task.completed:.0f}{whole} {unit}{rate}")
