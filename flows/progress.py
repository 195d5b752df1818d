"""Shows the progress of a run on stderr: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect_artifact_retention.tasks.run import Listener, Step
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

MAX_PLAIN_LINES = 10
"""Plain lines for each step, at most; more fill the log."""


@contextmanager
def progress_display(*, quiet: bool) -> Iterator[Listener]:
    """Yield a listener that shows the progress; with `quiet`, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _silent if quiet else _PlainLines().listen
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=console, transient=True)
    shown = {step: bars.add_task(step, total=None, visible=False) for step in ("planning", "deleting")}

    async def listen(step: Step, done: int, total: int) -> None:
        bar = shown["planning" if step == "planning" else "deleting"]
        bars.update(bar, description=step, completed=done, total=total, visible=True)

    # A terminal that has gone must not cost a run its result.
    with suppress(OSError):
        bars.start()
    try:
        yield listen
    finally:
        with suppress(OSError):
            bars.stop()


async def _silent(step: Step, done: int, total: int) -> None:
    """Show nothing."""


class _PlainLines:
    def __init__(self) -> None:
        self._shown: dict[Step, int] = {}

    async def listen(self, step: Step, done: int, total: int) -> None:
        if step == "archiving":
            return
        tenth = MAX_PLAIN_LINES * done // total if total else MAX_PLAIN_LINES
        if tenth > self._shown.get(step, -1) and done:
            self._shown[step] = tenth
            noun = "keys" if step == "planning" else "versions"
            sys.stderr.write(f"{step}: {done:,}/{total:,} {noun}\n")
