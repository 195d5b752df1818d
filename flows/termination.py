"""Turns SIGTERM into a cancellation of the run, so that it shuts down in order.

Prefect's handler of SIGTERM raises an exception in the Python code that is executing. If that is a callback of the event loop
or the clean-up of a library, the exception is swallowed, and the run goes on until it is killed.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from prefect.exceptions import TerminationSignal

Result = TypeVar("Result")


_IS_CANCELLED: ContextVar[bool] = ContextVar("is_cancelled", default=False)
"""Whether SIGTERM cancels the work of this context already: an event loop has one handler of a signal."""


async def cancel_on_sigterm(work: Coroutine[Any, Any, Result]) -> Result:
    """Await some work; SIGTERM cancels it. Within other such work, it is cancelled with that.

    Raises:
        TerminationSignal: SIGTERM was received, whether or not Prefect's own exception was swallowed.
    """
    if _IS_CANCELLED.get():
        return await work
    token = _IS_CANCELLED.set(True)
    try:
        task = asyncio.ensure_future(work)
    finally:
        _IS_CANCELLED.reset(token)
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
    """Call `on_sigterm` in the event loop at SIGTERM, until the context ends; not possible in a thread or on Windows.

    Prefect's own handler stays installed, because a worker recognizes by it that the run can be cancelled. Python notifies the
    loop of each signal besides calling the handler, once the loop has registered for it.
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
