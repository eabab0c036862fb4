"""Progress of long work: a bar on a terminal, plain lines or nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """A display of how far the work is."""

    def step(self, text: str, *, done: int | None = None) -> None:
        """Show the present step, and how many units are done."""
        ...


class _Lines:
    """A line for each tenth of the work, or for each step where the total is unknown."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._tenth = -1

    def step(self, text: str, *, done: int | None = None) -> None:
        if done is not None and self._total:
            tenth = 10 * done // self._total
            if tenth == self._tenth:
                return
            self._tenth = tenth
            text = f"{100 * done // self._total:3d}%  {text}"
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class _Nothing:
    """No progress."""

    def step(self, text: str, *, done: int | None = None) -> None:
        pass


class _Bar:
    """A rich progress bar."""

    def __init__(self, bar: object, task: object) -> None:
        self._bar = bar
        self._task = task

    def step(self, text: str, *, done: int | None = None) -> None:
        self._bar.update(self._task, description=text, completed=done)  # type: ignore[attr-defined]


@contextmanager
def progress(total: int | None = None, *, lines: bool = True) -> Iterator[Progress]:
    """Show progress on standard error for the time of the block.

    Args:
        total: Units of work; None if unknown.
        lines: Whether to write lines where standard error is not a terminal.
    """
    if not sys.stderr.isatty():
        yield _Lines(total) if lines else _Nothing()
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, bar.add_task("", total=total))
