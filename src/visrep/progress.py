"""Progress of long work: a bar on a terminal and none elsewhere, where a training still says what is worth a line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


class Bars:
    """Bars of work within work, one below the other; each vanishes when its work is done.

    They are lines of one display, since two that write to the same terminal overwrite each other.
    """

    def __init__(self) -> None:
        self.display: Progress | None = None

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Callable[[int, str], None]]:
        outermost = self.display is None
        display = self.display = self.display or _display()
        if outermost:
            display.start()
        task = display.add_task(title, total=total, note="")
        try:
            yield lambda items, note: display.update(task, advance=items, note=note)
        finally:
            display.remove_task(task)
            if outermost:
                display.stop()
                self.display = None


BARS = Bars()


@contextmanager
def counted(title: str, total: int | None, *, shown: bool) -> Iterator[Callable[[int, str], None]]:
    """A bar on a terminal, else nothing; yields a function that moves it on by so many and sets the note beside it."""
    if shown and sys.stderr.isatty():
        with BARS.bar(title, total) as advance:
            yield advance
    else:
        yield lambda items, note: None


def tracked(items: Iterable[T], title: str, *, total: int | None = None, shown: bool) -> Iterator[T]:
    """The items, counted by a bar; ``total`` where ``len`` does not know it."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with counted(title, total, shown=shown) as advance:
        for item in items:
            yield item
            advance(1, "")


def within(items: Iterable[T], title: str, *, total: int | None = None) -> Iterator[T]:
    """`tracked` below the bar of the work that this is part of, and silent where none is shown."""
    return tracked(items, title, total=total, shown=BARS.display is not None)


def _display() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


class TrainingProgress:
    """A bar with loss, images a second and time left."""

    def __init__(self, total: int, start: int, *, shown: bool) -> None:
        self.shown = shown
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
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
        """A line above the bar; of its own where there is none, as in a log file."""
        if line and self.shown:
            self.console.print(line)
