"""Appends to an artifact: reads the latest version, merges, and creates the next, so that nobody's entry is lost.

Prefect's API cannot create a version only if nobody else has created one meanwhile. So two appenders may both read version 1
and create version 2, and the second of these becomes the latest without the entry of the first. Nothing prevents that; it is
noticed and repaired:

1. Read the newest versions of the key, and take the union of their entries (`entries`), not only those of the latest.
2. Create a version with the union and the own entry.
3. Read the newest versions again. If none is there but the own one and those known at the time of step 2, it is done.
   Otherwise somebody has created versions meanwhile, which the own one may hide, as it may be hidden. Done is who finds one
   version that has the own entry *and* those of all these versions. As others merge, too, waiting a moment is often enough;
   else go to step 2 with the union of all, and a marker, an entry without content, in place of the entry.

Each version has an entry or marker of its own, so one version contains another's exactly if its writer has read that one or
a successor, and so was created after it. No entry is lost, because whoever hides a version is bound to that version: let Z
be the last version created, and all appenders be done. If Z's appender was done at step 3 at once, Z has what every other
version has. If it was done by another version that contains Z's own entry, that was created after Z, and Z is not the last.

It does not matter which version the server calls the latest, nor by which clocks it dates versions, if these are right to
within the time of a few appends: the newest versions are read, and not one. Nor does it matter which older versions the
cleanup has deleted, for each version has the ids of all of its entries.

An appender that is killed holds nobody up, as nothing is locked. Before step 2, its entry does not exist. After it, its
version may hide entries until the next append, whose step 1 finds the hidden version beside it; a cleanup that deletes that
version before then would have to keep nothing but the latest. The same holds for a creation that the server
carries out only after Prefect's client has given up on it and sent it again.

Two requests are not enough for a first append: with a read and then a write, two that begin at once both see nothing of
each other, so one has to look again. The second append of a process within `FRESH_SECONDS` has the versions from step 3 of
the one before, and takes two requests; with contention, at least one more. A lock, such as a concurrency limit of Prefect
or a variable, would take four, and one that is killed would hold others up until its lease is over.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack
from uuid import UUID

from prefect.artifacts import TableArtifact
from prefect.settings import get_current_settings
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.tasks.producers.artifacts import (
    Retention,
    artifact_of_run,
    check_key,
    new_artifact,
    retention_metadata,
)
from prefect_artifact_retention.tasks.producers.entries import (
    Format,
    Log,
    Rows,
    Snapshot,
    Text,
    Units,
    entry_id,
    id_milliseconds,
    read_snapshot,
)
from prefect_artifact_retention.tasks.producers.publishing import Options
from prefect_artifact_retention.tasks.producers.requests import Steps, arun, create, read, rows, run

DEFAULT_MAX_ENTRIES = 1000
DEFAULT_MAX_KB = 250
DEFAULT_SEPARATOR = "\n\n"

FRESH_SECONDS = 2.0
"""How long a process relies on what it last read of a key. With more, it oftener creates versions that hide others for a
moment; with less, it oftener reads them first."""

FIRST_READ = 10
"""Versions read by a first append. With fewer, a version that an appender has hidden which was then killed may be missed."""

QUIET_READ = 3
"""Versions read after a creation. With fewer, servers whose clocks differ may show the versions that were created since in a
place where they are not looked for; with more, each append reads more."""

BUSY_READ = 16
"""The same where others append, too; about twice as many as append at once."""

MAX_READ = 32
"""Versions read if none of those is known. Any server allows so many in a page."""

MAX_WRITES = 20
"""Versions that one append creates at most, so that it ends where the server does not show what has been created."""

CHECKS = 4
"""How often an append looks whether others have merged its entry, before it does so itself; that with the newest entry looks
once. With fewer, several merge at once, in vain; with more, it takes longer until one does so in place of one that was
killed."""

MAX_PAUSE_SECONDS = 1.0
"""The longest pause between two checks, also where the server is slow."""

MAX_REMEMBERED_KEYS = 8


@dataclass(frozen=True, slots=True)
class _Known:
    """What an appender knows of a key.

    Attributes:
        log: The union of all versions that were read or created.
        seen: The ids of these versions, as far as they may be read again.
        taken_over: The id of the entry that the newest version became, which something else has written; empty if it was not.
        is_busy: Whether others append at present.
        description: The description of the newest version.
        at: When that was read.
    """

    log: Log = field(default_factory=Log)
    seen: frozenset[UUID] = frozenset()
    taken_over: str = ""
    is_busy: bool = False
    description: str | None = None
    at: float = 0.0

    def see(self, page: Sequence[Mapping[str, Any]], store: Format, own: UUID | None = None) -> tuple[_Known, list[Snapshot]]:
        """Take in a page of versions, the newest first, and return those that were not known, without the `own` one.

        Raises:
            StoreError: The newest version is of another type, or nothing can be appended to it.
        """
        if page and page[0]["type"] != store.type:
            newest = f"the newest version of {page[0]['key']} is of the type {page[0]['type']}"
            raise StoreError(f"{newest}, to which nothing of the type {store.type} can be appended")
        new: list[Snapshot] = []
        # What a person, or Prefect's own helper, has written replaced what they had written before.
        is_replaced = False
        for row in page:
            version_id = UUID(row["id"])
            if version_id in self.seen or row["type"] != store.type:
                is_replaced = is_replaced or version_id in self.seen - {own}
                continue
            snapshot = read_snapshot(row, store)
            if not (snapshot.is_foreign and is_replaced):
                new.append(snapshot)
            is_replaced = is_replaced or snapshot.is_foreign
        first = new[0] if new and str(new[0].version_id) == page[0]["id"] else None
        known = replace(
            self,
            log=self.log.union(*(each.log for each in new)),
            seen=frozenset(UUID(row["id"]) for row in page) | (self.seen if len(self.seen) < MAX_READ else frozenset()),
            taken_over=first.own if first and first.is_foreign and first.log.entries[first.own] else "",
            description=page[0]["description"] if page else self.description,
            at=time.monotonic(),
        )
        return known, new

    def trimmed(self, store: Format, max_units: int, max_kb: float) -> Log:
        """Return the entries of the next version.

        Raises:
            StoreError: The newest version, which something else has written, would be lost as a whole.
        """
        log = self.log.trim(store, max_units, max_kb)
        if self.taken_over and self.taken_over not in log.entries:
            raise StoreError(
                "the newest version was written by something else, and is too large or too old to become an entry"
            )
        return log


remembered: OrderedDict[tuple[str, str, str], _Known] = OrderedDict()
"""What this process last read of keys, by server, key and type."""


def append_markdown(  # noqa: PLR0913 - what bounds the artifact
    text: str,
    key: str,
    description: str | None = None,
    *,
    max_entries: int = DEFAULT_MAX_ENTRIES,
    separator: str = DEFAULT_SEPARATOR,
    max_kb: float = DEFAULT_MAX_KB,
    **options: Unpack[Options],
) -> UUID | None:
    """Append a text to a markdown artifact: create a version with all texts so far and this one.

    Nobody's text is lost, also if many append at once. See `Options`; the TTL and the hold are those of the new version.

    Args:
        text: What to append.
        key: The key of the artifact.
        description: Its description in the UI; None leaves that of the version before.
        max_entries: As many of the newest texts are kept.
        separator: What stands between two texts.
        max_kb: The size of the artifact, in 1,000 bytes, above which the oldest texts go.
        options: See `Options`.

    Returns:
        The id of the new version.
    """
    on_error = options.pop("on_error", "raise")
    bounds = {"max_entries": max_entries, "separator": separator, "max_kb": max_kb}
    steps = text_steps(text, key=key, description=description, **bounds, **options)  # type: ignore[arg-type,misc]
    return run(steps, _what(key), on_error)


async def aappend_markdown(  # noqa: PLR0913 - what bounds the artifact
    text: str,
    key: str,
    description: str | None = None,
    *,
    max_entries: int = DEFAULT_MAX_ENTRIES,
    separator: str = DEFAULT_SEPARATOR,
    max_kb: float = DEFAULT_MAX_KB,
    **options: Unpack[Options],
) -> UUID | None:
    """Append a text to a markdown artifact in async code; see `append_markdown`."""
    on_error = options.pop("on_error", "raise")
    bounds = {"max_entries": max_entries, "separator": separator, "max_kb": max_kb}
    steps = text_steps(text, key=key, description=description, **bounds, **options)  # type: ignore[arg-type,misc]
    return await arun(steps, _what(key), on_error)


def append_rows(
    rows: Sequence[Mapping[str, Any]],
    key: str,
    description: str | None = None,
    *,
    max_rows: int = DEFAULT_MAX_ENTRIES,
    max_kb: float = DEFAULT_MAX_KB,
    **options: Unpack[Options],
) -> UUID | None:
    """Append rows to a table artifact: create a version with all rows so far and these.

    Nobody's row is lost, also if many append at once. See `Options`; the TTL and the hold are those of the new version.

    Args:
        rows: The rows; NaN becomes null, as in Prefect's own tables.
        key: The key of the artifact.
        description: Its description in the UI; None leaves that of the version before.
        max_rows: As many of the newest rows are kept.
        max_kb: The size of the artifact, in 1,000 bytes, above which the oldest rows go.
        options: See `Options`.

    Returns:
        The id of the new version.
    """
    on_error = options.pop("on_error", "raise")
    bounds = {"max_rows": max_rows, "max_kb": max_kb}
    steps = rows_steps(rows, key=key, description=description, **bounds, **options)  # type: ignore[arg-type,misc]
    return run(steps, _what(key), on_error)


async def aappend_rows(
    rows: Sequence[Mapping[str, Any]],
    key: str,
    description: str | None = None,
    *,
    max_rows: int = DEFAULT_MAX_ENTRIES,
    max_kb: float = DEFAULT_MAX_KB,
    **options: Unpack[Options],
) -> UUID | None:
    """Append rows to a table artifact in async code; see `append_rows`."""
    on_error = options.pop("on_error", "raise")
    bounds = {"max_rows": max_rows, "max_kb": max_kb}
    steps = rows_steps(rows, key=key, description=description, **bounds, **options)  # type: ignore[arg-type,misc]
    return await arun(steps, _what(key), on_error)


def text_steps(  # noqa: PLR0913 - what bounds the artifact
    text: str,
    *,
    key: str,
    description: str | None,
    max_entries: int,
    separator: str,
    max_kb: float,
    **retention: Unpack[Retention],
) -> Steps[UUID]:
    """Append a text, see `append_markdown`."""
    if not isinstance(text, str) or not text:
        raise ValueError(f"text = {text!r} is no text to append")
    if not isinstance(separator, str):
        raise ValueError(f"separator = {separator!r} is no text")  # noqa: TRY004 - one error for all arguments
    _check_bound("max_entries", max_entries)
    bounds: dict[str, Any] = {"max_units": max_entries, "max_kb": max_kb}
    return (yield from _append(Text(separator), (text,), key=key, description=description, **bounds, **retention))


def rows_steps(
    given: Iterable[Mapping[str, Any]],
    *,
    key: str,
    description: str | None,
    max_rows: int,
    max_kb: float,
    **retention: Unpack[Retention],
) -> Steps[UUID]:
    """Append rows, see `append_rows`."""
    try:
        # As Prefect stores them, and reads them again.
        table = TableArtifact(table=[dict(row) for row in given])
        stored = json.loads(table.format(_sync=True))  # type: ignore[call-arg,arg-type]  # Prefect's way where a loop runs
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"rows cannot be serialized as JSON: {error}") from error
    if not stored:
        raise ValueError("there are no rows to append")
    _check_bound("max_rows", max_rows)
    bounds: dict[str, Any] = {"max_units": max_rows, "max_kb": max_kb}
    return (yield from _append(Rows(), tuple(stored), key=key, description=description, **bounds, **retention))


def _append(  # noqa: PLR0913 - what bounds the artifact
    store: Format,
    units: Units,
    *,
    key: str,
    description: str | None,
    max_units: int,
    max_kb: float,
    **retention: Unpack[Retention],
) -> Steps[UUID]:
    """Append one entry; the module describes the protocol."""
    _check_bound("max_kb", max_kb)
    check_key(key)
    metadata = retention_metadata(**retention)
    new_artifact(store.dump(list(units)), type=store.type, key=key, description=description, metadata=metadata)
    if Log({entry_id(1, 0): units}).trim(store, max_units, max_kb).entries != {entry_id(1, 0): units}:
        raise ValueError(f"what is to be appended is larger than the artifact may get ({max_units} in {max_kb:g} kB)")
    place = (str(get_current_settings().api.url), key, store.type)
    only = {"key": {"any_": [key]}}
    known = _recall(place)
    if known is None:
        known, _ = _Known().see(rows((yield read(only, FIRST_READ))), store)
    own = _next_id(known.log)
    known = replace(known, log=known.log.union(Log({own: units})))
    wanted = {own}
    for _write in range(MAX_WRITES):
        log = known.trimmed(store, max_units, max_kb)
        data, index = log.dump(store, own)
        text = known.description if description is None else description
        began = time.monotonic()
        made = yield create(artifact_of_run(data, type=store.type, key=key, description=text, metadata=metadata | index))
        before = known.seen
        known = replace(known, log=log, seen=before | {made.id})
        page = rows((yield read(only, BUSY_READ if known.is_busy else QUIET_READ)))
        if len(page) >= QUIET_READ and not any(UUID(row["id"]) in before for row in page):
            page = rows((yield read(only, MAX_READ)))
        seconds = time.monotonic() - began
        known, new = known.see(page, store, made.id)
        wanted |= {name for each in new for name, units in each.log.entries.items() if units}
        is_done = not new
        known = replace(known, is_busy=bool(new))
        # One of them comes first, lest all that wait in step also write in step.
        for _check in range(1 if all(each.own < own for each in new) else CHECKS):
            if is_done := is_done or any(each.log.contains(own, wanted) for each in new):
                break
            yield min(MAX_PAUSE_SECONDS, random.uniform(0.2, 1.5) * seconds)  # noqa: S311 - so that not all write at once
            known, new = known.see(rows((yield read(only, BUSY_READ))), store, made.id)
        if is_done or any(each.log.contains(own, wanted) for each in new):
            _remember(place, known)
            version_id: UUID = made.id
            return version_id
        own = _next_id(known.log)
        known = replace(known, log=known.log.union(Log({own: ()})))
    raise StoreError(f"the server does not show the versions of {key} that were created: {MAX_WRITES} attempts")


def _next_id(log: Log) -> str:
    """Return an id that sorts after all that is known, also if the clock of who wrote that is ahead."""
    now = time.time_ns() // 1_000_000
    return entry_id(max(now, id_milliseconds(log.newest()) + 1), secrets.randbits(24))


def _recall(place: tuple[str, str, str]) -> _Known | None:
    known = remembered.get(place)
    return known if known and time.monotonic() - known.at < FRESH_SECONDS else None


def _remember(place: tuple[str, str, str], known: _Known) -> None:
    remembered[place] = known
    while len(remembered) > MAX_REMEMBERED_KEYS:
        remembered.popitem(last=False)


def _check_bound(name: str, value: object) -> None:
    is_number = isinstance(value, int if name != "max_kb" else int | float) and not isinstance(value, bool)
    if not is_number or not value > 0:  # type: ignore[operator]
        raise ValueError(f"{name} = {value!r} is no number above 0")


def _what(key: object) -> str:
    return f"append to the artifact of the key {key!r}"
