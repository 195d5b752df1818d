"""SIGTERM ends a run in an orderly way: as a cancellation of its task.

Prefect has SIGTERM raise an exception in whatever Python code is at work just then. That may be a callback of the event loop
or a library's clean-up, which swallow it, and the run would go on until somebody kills it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.exceptions import TerminationSignal


@contextmanager
def sigterm_cancels() -> Iterator[None]:
    """Let SIGTERM cancel the present task until the context ends; then, as ever, it is Prefect's `TerminationSignal`.

    Where signals cannot be had (in a thread, on Windows) nothing changes.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task  # noqa: S101 - a coroutine is running
    told = False

    def tell() -> None:
        nonlocal told
        told = True
        task.cancel()

    previous = signal.getsignal(signal.SIGTERM)
    try:
        loop.add_signal_handler(signal.SIGTERM, tell)
    except (NotImplementedError, RuntimeError, ValueError):
        yield
        return
    try:
        yield
    except asyncio.CancelledError:
        if told:
            raise TerminationSignal(signal.SIGTERM) from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
