"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, cast

from django.core.management.base import OutputWrapper
from rich.console import Console
from rich.progress import Progress

__all__ = ["progress"]


@contextmanager
def progress(stream: OutputWrapper, label: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told of each step's size; `stream` gets the bar or the lines."""
    console = Console(file=cast("IO[str]", stream))
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda step: bar.advance(task, step)
        return
    done = 0

    def tell(step: int) -> None:
        nonlocal done
        done += step
        stream.write(f"{label}: {done:,} of {total:,}")

    yield tell
