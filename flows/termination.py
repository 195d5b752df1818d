"""SIGTERM ends a run in an orderly way: as a cancellation of its work.

Prefect has SIGTERM raise an exception in whatever Python code is at work just then. That may be a callback of the event loop
or a library's clean-up, which swallow it, and the run would go on until somebody kills it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from prefect.exceptions import TerminationSignal

Result = TypeVar("Result")


async def cancel_on_sigterm(work: Coroutine[Any, Any, Result]) -> Result:
    """Await some work; SIGTERM cancels it.

    Raises:
        TerminationSignal: SIGTERM has come, wherever Prefect's own exception went.
    """
    task = asyncio.ensure_future(work)
    is_terminated = False

    def on_sigterm() -> None:
        nonlocal is_terminated
        is_terminated = True
        task.cancel()

    with _at_sigterm(on_sigterm):
        try:
            return await task
        except asyncio.CancelledError:
            if is_terminated:
                raise TerminationSignal(signal.SIGTERM) from None
            raise
        finally:
            task.cancel()
            await asyncio.wait([task])


@contextmanager
def _at_sigterm(on_sigterm: Callable[[], None]) -> Iterator[None]:
    """Have the event loop told of SIGTERM, too, until the context ends; in a thread and on Windows that cannot be had.

    Prefect's own handler stays where it is: a worker takes a run for one that can be cancelled by that. Python writes each
    signal to the loop's pipe as well, whatever handler there is, once the loop has asked for it.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    handler = signal.getsignal(signal.SIGTERM)
    loop.add_signal_handler(signal.SIGTERM, on_sigterm)
    try:
        if callable(handler):
            signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        if callable(handler):
            signal.signal(signal.SIGTERM, handler)
