"""Shows how far a job is: one progress artifact, updated in place, about once a second however often the job advances."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sized
from math import isfinite
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack
from uuid import UUID

import httpx
from prefect.client.schemas.actions import ArtifactUpdate
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.tasks.producers.artifacts import check_key, new_artifact, retention_metadata, run_ids
from prefect_artifact_retention.tasks.producers.publishing import Options
from prefect_artifact_retention.tasks.producers.requests import Steps, arun, create, handled, read, rows, run, update

Item = TypeVar("Item")

UPDATE_SECONDS = 1.0
"""The shortest time between two updates. Each is an event on the server, so with less it writes more rows to its database."""

RETRY_SECONDS = 60.0
"""The same after an update that failed. With less, a server that is out of reach holds up the job more often."""

MAX_REASON_CHARS = 200
"""A longer text of an error is cut off."""

REUSED = 10
"""Versions searched for the one that an earlier attempt of the same run has made."""

HTTP_NOT_FOUND = 404
UNFINISHED_PERCENT = 99.9
MINUTE, HOUR = 60, 3600
PRECISE_RATE = 10


class Progress:
    """The progress of a job, as an artifact: a context manager in sync and in async code; see `progress`."""

    def __init__(self, key: str, total: float | None = None, description: str = "", **options: Unpack[Options]) -> None:
        self._key, self._total, self._description = key, total, description
        self._on_error = options.pop("on_error", "raise")
        self._retention = options
        self._what = f"show the progress {key!r}"
        self._lock = threading.Lock()
        self._done = 0.0
        self._began = self._due = 0.0
        self._id: UUID | None = None
        self._metadata: dict[str, str] = {}

    def __enter__(self) -> Self:
        run(self._start(), self._what, self._on_error)
        return self

    async def __aenter__(self) -> Self:
        await arun(self._start(), self._what, self._on_error)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        run(self._end(error), self._what, self._on_error if error is None else "log")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await arun(self._end(error), self._what, self._on_error if error is None else "log")

    def advance(self, steps: float = 1) -> None:
        """Count steps as done, and show it if the last update is long enough ago. Threads may call it, too."""
        if self._count(steps):
            run(self._show(self._percent(), self._text()), self._what, self._on_error)

    async def aadvance(self, steps: float = 1) -> None:
        """Count steps as done in async code; see `advance`."""
        if self._count(steps):
            await arun(self._show(self._percent(), self._text()), self._what, self._on_error)

    def _count(self, steps: float) -> bool:
        """Add steps, and return whether an update is due."""
        with handled(self._what, self._on_error):
            if not _is_amount(steps):
                raise ValueError(f"steps = {steps!r} is no number of steps")
            with self._lock:
                self._done += steps
                if (now := time.monotonic()) >= self._due:
                    self._due = now + RETRY_SECONDS
                    return True
        return False

    def _start(self) -> Steps[UUID]:
        check_key(self._key)
        if self._total is not None and not _is_amount(self._total):
            raise ValueError(f"total = {self._total!r} is no number of steps")
        retention = {name: value for name, value in self._retention.items() if name != "on_error"}
        self._metadata = retention_metadata(**retention)  # type: ignore[arg-type]
        text = self._text()
        new_artifact(0.0, type="progress", key=self._key, description=text, metadata=self._metadata)
        self._began = time.monotonic()
        flow_run_id, task_run_id = run_ids()
        if flow_run_id or task_run_id:
            own = (
                {"task_run_id": {"any_": [str(task_run_id)]}} if task_run_id else {"flow_run_id": {"any_": [str(flow_run_id)]}}
            )
            found = rows((yield read({"key": {"any_": [self._key]}, "type": {"any_": ["progress"]}, **own}, REUSED)))
            # A flow's own one is none of its tasks'.
            ids = [row["id"] for row in found if task_run_id or not row["task_run_id"]]
            self._id = UUID(ids[0]) if ids else None
        return (yield from self._show(0.0, text))

    def _end(self, error: BaseException | None) -> Steps[UUID]:
        name = f"{self._description}: " if self._description else ""
        if error is None:
            seconds = time.monotonic() - self._began
            text = f"{name}{self._counted()} in {_duration(seconds)}{_rate(self._done, seconds)}"
            return (yield from self._show(100.0, text))
        why = type(error).__name__ + (f": {error}" if str(error) else "")
        if isinstance(error, GeneratorExit):
            why = "the loop over it ended early"
        text = f"{name}stopped at {self._counted()}: {printable(why[:MAX_REASON_CHARS])}"
        return (yield from self._show(self._percent(), text))

    def _show(self, percent: float, text: str) -> Steps[UUID]:
        """Update the artifact; create it if there is none, or none any more."""
        if self._id is not None:
            change: dict[str, Any] = {"data": percent, "description": text}
            if self._metadata:
                change["metadata_"] = self._metadata
            try:
                yield update(self._id, ArtifactUpdate(**change))
            except httpx.HTTPStatusError as error:
                if error.response.status_code != HTTP_NOT_FOUND:
                    raise
                self._id = None
        if self._id is None:
            artifact = new_artifact(percent, type="progress", key=self._key, description=text, metadata=self._metadata)
            self._id = (yield create(artifact)).id
        self._due = time.monotonic() + UPDATE_SECONDS
        return self._id

    def _percent(self) -> float:
        return min(UNFINISHED_PERCENT, round(100 * self._done / self._total, 1)) if self._total else 0.0

    def _counted(self) -> str:
        return _number(self._done) if self._total is None else f"{_number(self._done)}/{_number(self._total)}"

    def _text(self) -> str:
        """Say how many steps are done, and how long the others will take at the same rate."""
        seconds = time.monotonic() - self._began
        name = f"{self._description}: " if self._description else ""
        left = ""
        if self._total and 0 < self._done < self._total:
            left = f", {_duration(seconds * (self._total - self._done) / self._done)} left"
        return f"{name}{self._counted()}{left}{_rate(self._done, seconds) if self._done else ''}"


def progress(key: str, total: float | None = None, description: str = "", **options: Unpack[Options]) -> Progress:
    """Show the progress of a block of code as an artifact that is updated in place.

    In sync code `with progress(...) as bar` and `bar.advance(10)`; in async code `async with` and `await bar.aadvance(10)`.
    The artifact says how many steps are done, the rate, and the time left. It ends at 100 %, or says where the block has
    stopped and why. A second attempt of the same run updates the artifact of the first.

    Args:
        key: The key of the artifact.
        total: The number of all steps; None if it is not known.
        description: What is done: "Loading".
        options: See `Options`. With `on_error="log"`, an update that fails does not fail the job.
    """
    return Progress(key, total, description, **options)


def track(
    items: Iterable[Item], key: str, total: float | None = None, description: str = "", **options: Unpack[Options]
) -> Iterator[Item]:
    """Yield items, and show as a progress artifact how many have been; see `progress`."""
    with progress(key, _length(items) if total is None else total, description, **options) as bar:
        for item in items:
            yield item
            bar.advance()


async def atrack(
    items: Iterable[Item] | AsyncIterable[Item],
    key: str,
    total: float | None = None,
    description: str = "",
    **options: Unpack[Options],
) -> AsyncIterator[Item]:
    """Yield items in async code, and show as a progress artifact how many have been; see `progress`."""
    async with progress(key, _length(items) if total is None else total, description, **options) as bar:
        if isinstance(items, AsyncIterable):
            async for item in items:
                yield item
                await bar.aadvance()
        else:
            for item in items:
                yield item
                await bar.aadvance()


def _length(items: object) -> int | None:
    return len(items) if isinstance(items, Sized) else None


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"


def _duration(seconds: float) -> str:
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds // HOUR:.0f} h {seconds % HOUR // MINUTE:.0f} min"


def _rate(done: float, seconds: float) -> str:
    """Return the steps a second, or a minute or an hour if that is less than one."""
    if done <= 0 or seconds <= 0:
        return ""
    units = ((1, "s"), (MINUTE, "min"), (HOUR, "h"))
    rate, unit = next(
        (each for each in ((done / seconds * factor, unit) for factor, unit in units) if each[0] >= 1), (0.0, "")
    )
    if not unit:
        return ""
    return f", {rate:.0f}/{unit}" if rate >= PRECISE_RATE else f", {rate:.1f}/{unit}"
