"""Python's garbage collector, which would traverse millions of versions again and again, and free none of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

MAX_FROZEN_BY_PYTHON = 1_000
"""Objects that Python may have frozen itself when it started: 375 in 3.12, none in 3.11 and 3.13. More are somebody's."""


@contextmanager
def without_collector() -> Iterator[None]:
    """Disable the collector while versions are read, of which it takes half of the time; none are in reference cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def frozen() -> Iterator[None]:
    """Let the collector pass over what there is already: during a deletion or a restore, which may take hours.

    Nothing is done where somebody has frozen objects, which are to stay so: another run in this process, or its host.
    """
    if gc.get_freeze_count() > MAX_FROZEN_BY_PYTHON:
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
