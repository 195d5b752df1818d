"""Shows how far a job is: one progress artifact, updated in place, about once a second however often the job advances."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from copy import copy
from datetime import datetime
from decimal import Decimal
from math import inf
from numbers import Real
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack
from uuid import UUID

import httpx
from prefect.client.schemas.actions import ArtifactUpdate
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.stores.connection import RETRIED_STATUSES
from prefect_artifact_retention.tasks.producers.artifacts import check_key, new_artifact, retention_metadata, run_ids
from prefect_artifact_retention.tasks.producers.publishing import Options, parted
from prefect_artifact_retention.tasks.producers.requests import Steps, arun, create, handled, read, rows, run, update

Item = TypeVar("Item")
Amount = float | Decimal

UPDATE_SECONDS = 1.0
"""The shortest time between two updates. Each is an event on the server, so with less it writes more rows to its database."""

MAX_UPDATE_SECONDS = 60.0
"""The same where updates fail: twice as long after each, up to this."""

PAUSE_FACTOR = 3
"""An update is followed by a pause so many times as long as it took. With less, a slow server takes more of the job's time."""

END_PAUSE_SECONDS = 1.0
"""The pause before the last update is tried again, where Prefect's client tries once."""

REQUEST_SECONDS = 5.0
"""How long a job that goes on without its updates waits for a server that does not answer, and not a minute."""

UNDER_WAY_SECONDS = 10.0
"""How long the end waits for an update under way. It is not for ever: that may need the very thread, as a task of its loop."""

MAX_REASON_CHARS = 200
"""A longer text of an error is cut off."""

MAX_DESCRIPTION_CHARS = 500
"""A longer description is cut off."""

REUSED = 10
"""Versions searched for the one that an earlier attempt of the same run has made."""

HTTP_NOT_FOUND = 404
UNFINISHED_PERCENT = 99.9
MINUTE, HOUR = 60, 3600
PRECISE_RATE = 10


class LiveArtifact:
    """A progress artifact that is updated in place: that of a job (`Progress`), and that of a cleanup.

    Attributes:
        key: Its key.
        id: Its id; None before it is created.
        created: When the server created it.
        seconds: How long a request may take; None as long as Prefect's client lets it.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.seconds: float | None = None
        self.id: UUID | None = None
        self.created: datetime | None = None

    def create(self, percent: float, description: str, metadata: Mapping[str, str] | None = None) -> Steps[None]:
        """Create it."""
        text = description[:MAX_DESCRIPTION_CHARS]
        artifact = new_artifact(percent, type="progress", key=self.key, description=text, metadata=metadata)
        made = yield self.timely(create(artifact))
        self.id, self.created = made.id, made.created

    def update(self, percent: float, description: str, metadata: Mapping[str, str] | None = None) -> Steps[None]:
        """Update it, with all of its metadata if any are given."""
        change: dict[str, Any] = {"data": round(percent, 1), "description": description[:MAX_DESCRIPTION_CHARS]}
        if metadata is not None:
            change["metadata_"] = dict(metadata)
        if self.id is not None:
            yield self.timely(update(self.id, ArtifactUpdate(**change)))

    def timely(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a step that fails after `seconds`. The client may be that of the run, so it is a copy that is in a hurry."""

        def timed(client: Any) -> Any:  # noqa: ANN401 - either kind of client
            hurried = copy(client)
            # Not by an argument of the request: before it, Prefect's client asks for a CSRF token.
            hurried._client = copy(client._client)  # noqa: SLF001
            hurried._client.timeout = self.seconds  # noqa: SLF001
            return step(hurried)

        return step if self.seconds is None else timed


class Progress:
    """The progress of a job, as an artifact: a context manager in sync and in async code; see `progress`."""

    def __init__(self, key: str, total: Amount | None = None, description: str = "", **options: Unpack[Options]) -> None:
        self._given, self._description = total, description
        self._total: float | None = None
        self._on_error, self._retention = parted(options)
        self._what = f"show the progress {key!r}"
        self._artifact = LiveArtifact(key)
        self._metadata: dict[str, str] = {}
        self._has_begun = self._is_valid = self._has_searched = False
        self._lock, self._under_way = threading.Lock(), threading.Lock()
        self._done = 0.0
        self._began = self._due = 0.0
        self._pause = UPDATE_SECONDS

    def __enter__(self) -> Self:
        self._begin()
        with self._timed():
            run(self._start(), self._what, self._on_error, retries=self._is_patient())
        return self

    async def __aenter__(self) -> Self:
        self._begin()
        with self._timed():
            await arun(self._start(), self._what, self._on_error, retries=self._is_patient())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._ends():
            self._under_way.acquire(timeout=UNDER_WAY_SECONDS)
            on_error = self._on_error if error is None else "log"
            run(self._end(error), self._what, on_error, retries=self._is_patient(error))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ends():
            if not self._under_way.acquire(blocking=False):
                await asyncio.to_thread(self._under_way.acquire, timeout=UNDER_WAY_SECONDS)
            on_error = self._on_error if error is None else "log"
            await arun(self._end(error), self._what, on_error, retries=self._is_patient(error))

    def advance(self, steps: Amount = 1) -> None:
        """Count steps as done, and show it if the last update is long enough ago. Threads may call it, too.

        Once the block has ended, it does nothing.
        """
        if self._count(steps):
            with self._timed():
                run(self._show(), self._what, self._on_error, retries=self._is_patient())

    async def aadvance(self, steps: Amount = 1) -> None:
        """Count steps as done in async code; see `advance`."""
        if self._count(steps):
            with self._timed():
                await arun(self._show(), self._what, self._on_error, retries=self._is_patient())

    def _is_patient(self, error: BaseException | None = None) -> bool:
        """Return whether Prefect's client may send a request again for minutes: a job that goes on without does not wait."""
        return self._on_error == "raise" and error is None

    def _begin(self) -> None:
        with self._lock:
            if self._has_begun:
                raise RuntimeError(f"the progress {self._artifact.key!r} has begun before: make one for each block")
            self._has_begun = True
        self._under_way.acquire()

    def _ends(self) -> bool:
        """Count no more, and return whether there is something to be shown."""
        with self._lock:
            was_valid, self._is_valid = self._is_valid, False
        return was_valid

    def _count(self, steps: Amount) -> bool:
        """Add steps, and return whether an update is due, which is then under way."""
        if not self._has_begun:
            raise RuntimeError(f"the progress {self._artifact.key!r} has not begun: use it in a `with` or an `async with`")
        with handled(self._what, self._on_error):
            if not _is_amount(steps):
                raise ValueError(f"steps = {steps!r} is no number of steps")
            with self._lock:
                if self._is_valid:
                    self._done += float(steps)
                    if time.monotonic() >= self._due and self._under_way.acquire(blocking=False):
                        self._due = inf
                        return True
        return False

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Say when the next update is due, once the one under way has ended: later if this fails, or takes long."""
        began, self._pause = time.monotonic(), min(2 * self._pause, MAX_UPDATE_SECONDS)
        try:
            yield
        finally:
            ended = time.monotonic()
            self._due = ended + max(self._pause, PAUSE_FACTOR * (ended - began))
            self._under_way.release()

    def _start(self) -> Steps[UUID | None]:
        check_key(self._artifact.key)
        if self._given is not None:
            if not _is_amount(self._given):
                raise ValueError(f"total = {self._given!r} is no number of steps")
            self._total = float(self._given)
        self._metadata = retention_metadata(**self._retention)
        self._began = time.monotonic()
        new_artifact(0.0, type="progress", key=self._artifact.key, description=self._text(), metadata=self._metadata)
        self._artifact.seconds = None if self._is_patient() else REQUEST_SECONDS
        self._is_valid = True
        return (yield from self._show())

    def _end(self, error: BaseException | None) -> Steps[UUID | None]:
        if error is None:
            seconds = time.monotonic() - self._began
            percent, text = 100.0, self._named(f"{self._counted()} in {_duration(seconds)}{_rate(self._done, seconds)}")
        else:
            why = type(error).__name__ + (f": {error}" if str(error) else "")
            if isinstance(error, GeneratorExit):
                why = "the loop over it ended early"
            percent = self._percent()
            text = self._named(f"stopped at {self._counted()}: {printable(why[:MAX_REASON_CHARS])}")
        self._artifact.seconds = None if self._is_patient(error) else REQUEST_SECONDS
        try:
            return (yield from self._show(percent, text))
        except httpx.HTTPError as failure:
            is_refused = isinstance(failure, httpx.HTTPStatusError) and failure.response.status_code not in RETRIED_STATUSES
            if is_refused or self._is_patient(error):
                raise
        yield END_PAUSE_SECONDS
        return (yield from self._show(percent, text))

    def _show(self, percent: float | None = None, text: str | None = None) -> Steps[UUID | None]:
        """Update the artifact; create it if there is none, or none any more."""
        percent = self._percent() if percent is None else percent
        text = self._text() if text is None else text
        metadata = None if self._has_searched else (yield from self._search())
        if self._artifact.id is not None:
            try:
                yield from self._artifact.update(percent, text, metadata)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != HTTP_NOT_FOUND:
                    raise
                self._artifact.id = None
        if self._artifact.id is None:
            yield from self._artifact.create(percent, text, self._metadata)
        # Only now: if the answer to a creation is lost, the next search finds what was created.
        self._has_searched, self._pause = True, UPDATE_SECONDS
        return self._artifact.id

    def _search(self) -> Steps[dict[str, str] | None]:
        """Find the artifact of an earlier attempt of the same run; return its metadata, if ours are missing, with these."""
        flow_run_id, task_run_id = run_ids()
        own = {"task_run_id": {"any_": [str(task_run_id)]}} if task_run_id else {"flow_run_id": {"any_": [str(flow_run_id)]}}
        found: list[dict[str, Any]] = []
        if flow_run_id or task_run_id:
            only = {"key": {"any_": [self._artifact.key]}, "type": {"any_": ["progress"]}, **own}
            found = rows((yield self._artifact.timely(read(only, REUSED))))
        for row in found:
            # A flow's own one is none of its tasks'.
            if task_run_id or not row["task_run_id"]:
                self._artifact.id = UUID(row["id"])
                # Of what somebody has changed meanwhile, such as a hold, nothing is changed back.
                present = row["metadata_"] or {}
                return None if self._metadata.keys() <= present.keys() else {**self._metadata, **present}
        return None

    def _percent(self) -> float:
        return min(UNFINISHED_PERCENT, round(100 * self._done / self._total, 1)) if self._total else 0.0

    def _counted(self) -> str:
        return _number(self._done) if self._total is None else f"{_number(self._done)}/{_number(self._total)}"

    def _text(self) -> str:
        """Say how many steps are done, and how long the others will take at the same rate."""
        seconds = time.monotonic() - self._began
        left = ""
        if self._total and 0 < self._done < self._total:
            left = f", {_duration(seconds * (self._total - self._done) / self._done)} left"
        return self._named(f"{self._counted()}{left}{_rate(self._done, seconds) if self._done else ''}")

    def _named(self, text: str) -> str:
        """Put the name before a text, cut off so that all of the text is shown."""
        name, room = self._description, max(MAX_DESCRIPTION_CHARS - len(text) - len(": "), 1)
        if len(name) > room:
            name = name[: room - 1] + "…"
        return f"{name}: {text}" if name else text


def progress(key: str, total: Amount | None = None, description: str = "", **options: Unpack[Options]) -> Progress:
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
    items: Iterable[Item], key: str, total: Amount | None = None, description: str = "", **options: Unpack[Options]
) -> Iterator[Item]:
    """Yield items, and show as a progress artifact how many have been; see `progress`."""
    with progress(key, _length(items) if total is None else total, description, **options) as bar:
        for item in items:
            yield item
            bar.advance()


async def atrack(
    items: Iterable[Item] | AsyncIterable[Item],
    key: str,
    total: Amount | None = None,
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
    if isinstance(value, bool) or not isinstance(value, Real | Decimal) or (isinstance(value, Decimal) and value.is_nan()):
        return False
    return 0 <= value <= sys.float_info.max  # type: ignore[operator]


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
