"""Appends to an artifact: reads the latest version, merges, and creates the next, so that nobody's entry is lost.

Prefect's API cannot create a version only if nobody else has created one meanwhile. So two appenders may both read version 1
and create version 2, and the second of these becomes the latest without the entry of the first. Nothing prevents that; it is
noticed and repaired:

1. Read the newest versions of the key, and take the union of their entries (`entries`), not only those of the latest.
2. Create a version with the union and the own entry.
3. Read the newest versions again, back to what step 1 has read. If there is none but the own one, it is done. Otherwise
   somebody has created versions meanwhile, which the own one may hide, as it may be hidden. Done is who finds one version that
   has the own entry *and* those of all these versions. As others merge, too, waiting a moment is often enough; else go to step
   2 with the union of all, and a marker, an entry without content, in place of the entry.

Each version has an entry or marker of its own, so one version contains another's exactly if its writer has read that one or
a successor, and so was created after it. No entry is lost, because whoever hides a version is bound to that version: let Z
be the last version created, and all appenders be done. If Z's appender was done at step 3 at once, Z has what every other
version has. If it was done by another version that contains Z's own entry, that was created after Z, and Z is not the last.

It does not matter which version the server calls the latest, nor by which clocks it dates versions, if these are right to
within the time of a few appends: the newest versions are read, and not one. Nor does it matter which older versions the
cleanup has deleted, for each version has the ids of all of its entries. So what somebody has edited in place stays so: a
version that contains another's entry or marker was made of it, and replaces it instead of being merged with it.

An appender that is killed, or that never gets the answer to its creation, holds nobody up, as nothing is locked. Before step
2, its entry does not exist. After it, its version may hide entries until the next append, whose step 1 finds the hidden
version beside it; a cleanup that deletes that version before then would have to keep nothing but the latest.

Two requests are not enough for a first append: with a read and then a write, two that begin at once both see nothing of
each other, so one has to look again. The second append of a process within `FRESH_SECONDS` has the versions from step 3 of
the one before, and takes two requests; with contention, at least one more. A lock, such as a concurrency limit of Prefect
or a variable, would take four, and one that is killed would hold others up until its lease is over.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from numbers import Integral, Real
from typing import Any, Unpack
from uuid import UUID

import httpx
from prefect.artifacts import TableArtifact
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import Artifact
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
    BYTES_PER_KB,
    OWN_ID,
    Format,
    Log,
    MovedError,
    Rows,
    Snapshot,
    Text,
    Units,
    entry_id,
    id_milliseconds,
    load_json,
    read_snapshot,
)
from prefect_artifact_retention.tasks.producers.publishing import Options, parted
from prefect_artifact_retention.tasks.producers.requests import Steps, arun, created, read, rows, run

DEFAULT_MAX_ENTRIES = 1000
DEFAULT_MAX_KB = 250
DEFAULT_SEPARATOR = "\n\n"

FRESH_SECONDS = 2.0
"""How long a process relies on what it has read of a key, before it reads that anew. With more, it oftener creates versions
that hide others for a moment, and brings back what was deleted meanwhile; with less, it oftener reads first."""

FIRST_READ = 10
"""Versions read by a first append. With fewer, a version that an appender has hidden which was then killed may be missed."""

QUIET_READ = 3
"""Versions read after a creation. With fewer, servers whose clocks differ may show the versions that were created since in a
place where they are not looked for; with more, each append reads more."""

BUSY_READ = 16
"""The same where others append, too; about twice as many as append at once."""

PAGE = 32
"""Versions read at once where more were created meanwhile. Any server allows so many in a page."""

MAX_WRITES = 20
"""Versions that one append creates at most, so that it ends where the server does not show what has been created."""

CHECKS = 4
"""How often an append looks whether others have merged its entry, before it does so itself; that with the newest entry looks
once. With fewer, several merge at once, in vain; with more, it takes longer until one does so in place of one that was
killed."""

MAX_PAUSE_SECONDS = 1.0
"""The longest pause between two checks, also where the server is slow."""

MAX_REMEMBERED_KEYS = 8

MAX_SEEN = 300
"""Ids of versions that are remembered. With fewer than are read again, some count as new, and are merged in vain."""

MAX_BOUND = 10**9
"""A larger bound is none."""

Page = Sequence[Mapping[str, Any]]
"""Versions as the server shows them, the newest first."""

_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class _Known:
    """What an appender knows of a key.

    Attributes:
        log: The union of all versions that were read or created.
        seen: The ids of these versions, as far as they may be read again, each with a hash of its data.
        newest: The date of the newest of them; only what is dated after it may be unknown.
        taken_over: The newest version, if something else has written it, and it is not yet part of another.
        is_busy: Whether others append at present.
        description: The description of the newest version.
        at: When that was read, or the newest was created, by the monotonic clock.
        since: When the key was read without knowing anything of it.
    """

    log: Log = field(default_factory=Log)
    seen: Mapping[UUID, int] = field(default_factory=dict)
    newest: datetime = _LONG_AGO
    taken_over: Snapshot | None = None
    is_busy: bool = False
    description: str | None = None
    at: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def see(self, page: Page, store: Format, own: Container[UUID] = ()) -> tuple[_Known, list[Snapshot]]:
        """Take in a page of versions, the newest first, and return those that were not known; `own` ones replace no others.

        Raises:
            StoreError: The newest version is of another type, or nothing can be appended to it.
        """
        if page and page[0]["type"] != store.type:
            newest = f"the newest version of {page[0]['key']} is of the type {page[0]['type']}"
            raise StoreError(f"{newest}, to which nothing of the type {store.type} can be appended")
        new, foreign, edited = self._unknown(page, store, own)
        merged: list[Log] = []
        for each in new:
            # What a newer version was made of is as that one has it, also if somebody has edited that in place.
            if each is not edited and not any(each.own in newer.entries for newer in merged):
                merged.append(each.log)
        log = self.log.union(*merged)
        if edited:
            log = replace(log, entries={**log.entries, **edited.log.entries})
        is_later = False
        if foreign:
            is_later = bool(self.seen) and id_milliseconds(foreign.own) > self.newest.timestamp() * 1000
            foreign = foreign.beyond(log, store)
            new.append(foreign)
            log = log.union(foreign.log)
        is_taken_over = foreign and foreign.log.units() and (is_later or str(foreign.version_id) == page[0]["id"])
        known = replace(
            self,
            log=log,
            seen={**(self.seen if len(self.seen) < MAX_SEEN else {}), **{UUID(row["id"]): _data_hash(row) for row in page}},
            newest=max([self.newest, *map(_created, page)]),
            taken_over=foreign if is_taken_over else self.taken_over,
            description=page[0]["description"] if page else self.description,
            at=time.monotonic(),
        )
        return known, new

    def _unknown(
        self, page: Page, store: Format, own: Container[UUID]
    ) -> tuple[list[Snapshot], Snapshot | None, Snapshot | None]:
        """Return what was not known: our own versions, the newest by somebody else, and which of ours was edited since.

        Raises:
            StoreError: The newest version cannot be read; or another, in the archive by now, has what none above it has.
        """
        new: list[Snapshot] = []
        foreign: Snapshot | None = None
        edited: Snapshot | None = None
        # What a person, or Prefect's own helper, has written replaced what they had written before.
        is_replaced = False
        for row in page:
            version_id, is_edited = UUID(row["id"]), _is_edited(row, self)
            if (version_id in self.seen and not is_edited) or row["type"] != store.type:
                is_replaced = is_replaced or (version_id in self.seen and version_id not in own)
                continue
            try:
                snapshot = read_snapshot(row, store)
            except MovedError as moved:
                is_known = self.log.union(*(each.log for each in new)).knows(moved.names)
                # Once something was written, it is too late to refuse, and nothing that has come since is as old as this.
                if row is page[0] or not (own or is_known or (moved.is_foreign and is_replaced)):
                    raise
                is_replaced = is_replaced or moved.is_foreign
                continue
            except StoreError:
                if row is page[0]:
                    raise
                continue
            if not snapshot.is_foreign:
                new.append(snapshot)
                edited = snapshot if is_edited else edited
            elif not is_replaced:
                is_replaced = True
                is_taken_over = snapshot.own in self.log.entries or any(snapshot.own in each.log.entries for each in new)
                foreign = None if is_taken_over else snapshot
        return new, foreign, edited


@dataclass(frozen=True, slots=True)
class _Target:
    """The artifact that is appended to, as its next version is to be."""

    key: str
    store: Format
    description: str | None
    metadata: Mapping[str, str]
    max_units: int
    max_kb: float

    def next_log(self, known: _Known) -> Log:
        """Return the entries of the next version.

        Raises:
            StoreError: The newest version, which something else has written, would be lost as a whole.
        """
        log = known.log.trim(self.store, self.max_units, self.max_kb)
        newest = known.taken_over
        if newest and newest.own not in log.entries:
            what = f"version {newest.version_id} of {self.key}, the newest, was written by something else, and"
            size = sum(map(self.store.size, newest.log.units())) / BYTES_PER_KB
            room = f"max_kb is {self.max_kb:g}, and {self.max_units} the number of entries"
            raise StoreError(f"{what} has no room beside what is appended: it takes {size:.1f} kB; {room}")
        return log

    def version(self, log: Log, own: str, description: str | None) -> ArtifactCreate:
        """Return a version with these entries, whose own entry or marker this is."""
        data, index = log.dump(self.store, own)
        text = description if self.description is None else self.description
        metadata = {**self.metadata, **index}
        return artifact_of_run(data, type=self.store.type, key=self.key, description=text, metadata=metadata)


_Place = tuple[int, str, str, str]
"""A process, for a forked child knows nothing; a server, a key, and a type."""

remembered: OrderedDict[_Place, _Known] = OrderedDict()
"""What this process last read of keys."""


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
    on_error, retention = parted(options)
    bounds: dict[str, Any] = {"max_entries": max_entries, "separator": separator, "max_kb": max_kb}
    steps = text_steps(text, key=key, description=description, **bounds, **retention)
    return run(steps, _what(key), on_error, retries=on_error == "raise")


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
    on_error, retention = parted(options)
    bounds: dict[str, Any] = {"max_entries": max_entries, "separator": separator, "max_kb": max_kb}
    steps = text_steps(text, key=key, description=description, **bounds, **retention)
    return await arun(steps, _what(key), on_error, retries=on_error == "raise")


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
        rows: The rows; NaN becomes null, as in Prefect's own tables, and so do infinities.
        key: The key of the artifact.
        description: Its description in the UI; None leaves that of the version before.
        max_rows: As many of the newest rows are kept.
        max_kb: The size of the artifact, in 1,000 bytes, above which the oldest rows go.
        options: See `Options`.

    Returns:
        The id of the new version.
    """
    on_error, retention = parted(options)
    bounds: dict[str, Any] = {"max_rows": max_rows, "max_kb": max_kb}
    steps = rows_steps(rows, key=key, description=description, **bounds, **retention)
    return run(steps, _what(key), on_error, retries=on_error == "raise")


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
    on_error, retention = parted(options)
    bounds: dict[str, Any] = {"max_rows": max_rows, "max_kb": max_kb}
    steps = rows_steps(rows, key=key, description=description, **bounds, **retention)
    return await arun(steps, _what(key), on_error, retries=on_error == "raise")


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
    _check_bound("max_entries", max_entries, Integral)
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
        listed = list(given)
        if not all(isinstance(row, Mapping) for row in listed):
            raise TypeError("each row must be a mapping")  # noqa: TRY301 - as those that Prefect raises
        # As Prefect stores them, and reads them again.
        table = TableArtifact(table=[dict(row) for row in listed])
        stored = load_json(table.format(_sync=True))  # type: ignore[call-arg,arg-type]  # Prefect's way where a loop runs
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"rows cannot be serialized as JSON: {error}") from error
    if not stored:
        raise ValueError("there are no rows to append")
    _check_bound("max_rows", max_rows, Integral)
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
    _check_bound("max_kb", max_kb, Real)
    check_key(key)
    metadata = retention_metadata(**retention)
    new_artifact(store.dump(list(units)), type=store.type, key=key, description=description, metadata=metadata)
    if Log({entry_id(1, 0): units}).trim(store, max_units, max_kb).entries != {entry_id(1, 0): units}:
        raise ValueError(f"what is to be appended is larger than the artifact may get ({max_units} in {max_kb:g} kB)")
    target = _Target(key, store, description, metadata, max_units, max_kb)
    place = (os.getpid(), str(get_current_settings().api.url), key, store.type)
    known = _recall(place)
    if known is None:
        known, _ = _Known().see((yield from _versions(key, FIRST_READ)), store)
    written: list[UUID] = []
    try:
        known = yield from _write(target, units, known, written)
    except Exception as error:
        remembered.pop(place, None)
        if written:
            error.add_note(f"what was to be appended is stored, in version {written[0]}, which may hide what others appended")
        raise
    _remember(place, known)
    return written[-1]


def _write(target: _Target, units: Units, known: _Known, written: list[UUID]) -> Steps[_Known]:
    """Create versions, whose ids go into `written`, until one is known that hides nothing of anybody."""
    own = _next_id(known)
    wanted = {own}
    for _attempt in range(MAX_WRITES):
        log = target.next_log(replace(known, log=known.log.union(Log({own: units}))))
        began = time.monotonic()
        version = target.version(log, own, known.description)
        try:
            made_id, made_at = _identity((yield from created(version)))
        except httpx.HTTPError as error:
            made_id, made_at = yield from _found(target.key, own, error, is_entry=bool(units))
        written.append(made_id)
        known = replace(known, log=log, seen={**known.seen, made_id: hash(version.data)}, taken_over=None)
        limit = BUSY_READ if known.is_busy else QUIET_READ
        page = yield from _read_back(target.key, limit, min(known.newest, made_at))
        seconds = time.monotonic() - began
        _check_hidden(page, known, target.store)
        known, new = known.see(page, target.store, written)
        known = replace(known, is_busy=bool(new), at=began)
        wanted |= {name for each in new for name, units in each.log.entries.items() if units}
        is_done = not new and any(row["id"] == str(made_id) for row in page)
        # One of them comes first, lest all that wait in step also write in step.
        checks = 1 if all(each.own < own for each in new) else CHECKS
        while not (is_done := is_done or any(each.log.contains(own, wanted) for each in new)) and checks:
            yield min(MAX_PAUSE_SECONDS, random.uniform(0.2, 1.5) * seconds)  # noqa: S311 - so that not all write at once
            page = yield from _read_back(target.key, BUSY_READ, known.newest)
            known, new = known.see(page, target.store, written)
            checks -= 1
        if is_done:
            return replace(known, taken_over=None)
        own, units = _next_id(known), ()
    raise StoreError(f"the server does not show the versions of {target.key} that were created: {MAX_WRITES} attempts")


def _read_back(key: str, limit: int, until: datetime) -> Steps[Page]:
    """Read as many of the newest versions, and on to one that is dated no later than that."""
    page = found = yield from _versions(key, limit)
    while len(page) >= limit and _created(page[-1]) > until:
        page, limit = (yield from _versions(key, PAGE, len(found) - 1)), PAGE
        known = {row["id"] for row in found}
        older = [row for row in page if row["id"] not in known]
        if len(older) < len(page) and (older or len(page) < PAGE):
            found = [*found, *older]
        else:
            # The last one is not there any more: versions were deleted, or many created, and some may have been missed.
            page = found = yield from _versions(key, PAGE)
    return found


def _versions(key: str, limit: int, offset: int = 0) -> Steps[Page]:
    """Read the newest versions.

    Raises:
        StoreError: They are of another key, as where two processes share a connection; they would be merged for good.
    """
    page = rows((yield read({"key": {"any_": [key]}}, limit, offset)))
    for row in page:
        if row["key"] != key:
            raise StoreError(f"the server was asked for the key {key!r}, and answered with a version of {row['key']!r}")
    return page


def _found(key: str, own: str, error: httpx.HTTPError, *, is_entry: bool) -> Steps[tuple[UUID, datetime]]:
    """Return the version with this own id, whose creation has failed although it is there: only the answer was lost."""
    if isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error:
        raise error
    try:
        page = yield from _versions(key, BUSY_READ)
    except Exception:  # noqa: BLE001 - the first error says more
        page = ()
    for row in page:
        if (row["metadata_"] or {}).get(OWN_ID) == own:
            return UUID(row["id"]), _created(row)
    if is_entry:
        error.add_note("what was to be appended may be stored all the same")
    raise error


def _check_hidden(page: Page, known: _Known, store: Format) -> None:
    """Refuse to hide a version of another type that was created since the last look."""
    for row in page[1:]:
        if row["type"] != store.type and UUID(row["id"]) not in known.seen and _created(row) > known.newest:
            hidden = f"version {row['id']} of {row['key']}, of the type {row['type']}"
            raise StoreError(f"{hidden}, was created meanwhile, and is hidden by what was appended")


def _identity(made: Artifact) -> tuple[UUID, Any]:
    return made.id, made.created


def _created(row: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(row["created"])


def _data_hash(row: Mapping[str, Any]) -> int:
    return hash(str(row["data"]))


def _is_edited(row: Mapping[str, Any], known: _Known) -> bool:
    """Return whether the newest version that was known is not as it was, for somebody has edited it in place."""
    before = known.seen.get(UUID(row["id"]))
    return before is not None and before != _data_hash(row) and _created(row) >= known.newest


def _next_id(known: _Known) -> str:
    """Return an id that sorts after all that is known.

    By the dates of the server, as those of versions that something else writes; the clock of this process may be wrong.
    """
    now = known.newest.timestamp() + time.monotonic() - known.at
    return entry_id(max(int(now * 1000), id_milliseconds(known.log.newest())) + 1, secrets.randbits(24))


def _recall(place: _Place) -> _Known | None:
    known = remembered.get(place)
    return known if known and time.monotonic() - known.since < FRESH_SECONDS else None


def _remember(place: _Place, known: _Known) -> None:
    remembered[place] = known
    while len(remembered) > MAX_REMEMBERED_KEYS:
        remembered.popitem(last=False)


def _check_bound(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < MAX_BOUND:  # type: ignore[operator]
        raise ValueError(f"{name} = {value!r} is no number above 0")


def _what(key: object) -> str:
    return f"append to the artifact of the key {key!r}"
