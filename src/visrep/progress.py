"""Progress of long work: a bar on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainingProgress:
    """A bar with loss, images a second and time left."""

    def __init__(self, total: int, start: int, *, shown: bool) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[rate]:,.0f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (shown and sys.stderr.isatty()),
        )
        self.start = start
        self.task = self.bar.add_task("", total=total, completed=start, loss=float("nan"), rate=0.0)

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def advance(self, loss: float, images: int) -> None:
        task = self.bar.tasks[0]
        rate = images * (task.completed - self.start + 1) / max(task.elapsed or 0.0, 1e-9)
        self.bar.update(self.task, advance=1, loss=loss, rate=rate)

    def say(self, line: str) -> None:
        """A line above the bar."""
        if line and not self.bar.disable:
            self.bar.console.print(line)
