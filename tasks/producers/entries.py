"""The content of an artifact that is appended to, as a set of entries: versions that know different entries can be merged.

An entry is what one call appends: a text, or some rows. It has an id by which entries sort, a time and a random number, and a
version names in its metadata the ids of all entries in it, each with its length. So any two versions of a key have a union, in
which no entry is missing or there twice, whatever versions lie between them and whether these still exist.

What makes a version too long, the oldest entries, is trimmed, and a version remembers up to which id; a union trims as far as
any of its versions has. (Both are semilattices: unions can be made in any order, and again.) Pure: no request, no clock.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import orjson
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.archive.stubs import refuse_stub
from prefect_artifact_retention.tasks.producers.artifacts import MAX_METADATA_CHARS, OWN_METADATA

Units = tuple[Any, ...]
"""What an entry consists of, and can be trimmed by: one text, or rows. An entry without any only marks a version."""

OWN_ID = f"{OWN_METADATA}entry"
TRIMMED = f"{OWN_METADATA}entries-trimmed"
SEPARATOR_CHARS = f"{OWN_METADATA}separator-length"
INDEX = f"{OWN_METADATA}entries-"
CHECKSUM = f"{OWN_METADATA}data-crc32"

MAX_MARKERS = 50
"""Entries without units that are kept, the newest. With fewer than versions are written at once, some are written in vain."""

INDEX_BYTES = 30
"""What an entry takes in the metadata, at most."""

BYTES_PER_KB = 1000

_RANDOM_BITS = 24
_ID = re.compile(r"[0-9a-f]{17}")


def entry_id(milliseconds: int, number: int) -> str:
    """Return the id of an entry; ids sort by time."""
    return f"{milliseconds:011x}{number % (1 << _RANDOM_BITS):06x}"


def id_milliseconds(entry: str) -> int:
    """Return the time of an id."""
    return int(entry[:11], 16) if entry else 0


def load_json(text: str) -> Any:  # noqa: ANN401 - whatever it is
    """Read JSON; NaN and infinities, which are none, and for which the UI shows nothing of a table, become null."""
    return json.loads(text, parse_constant=lambda _name: None)


class Format(Protocol):
    """How entries are stored as the data of an artifact."""

    @property
    def type(self) -> str:
        """The type of the artifact."""

    def dump(self, units: Sequence[Any]) -> str:
        """Return the data with these units."""

    def load(self, data: object) -> Any:  # noqa: ANN401 - a text or rows
        """Read data; ValueError if they are none of this format."""

    def length(self, units: Units) -> int:
        """Return the length of an entry, as the index has it."""

    def split(self, loaded: Any, lengths: Sequence[int], separator_length: int) -> list[Units]:  # noqa: ANN401
        """Return the entries by their lengths; ValueError if these do not add up."""

    def split_edited(self, loaded: Any, lengths: Sequence[int]) -> list[Units]:  # noqa: ANN401
        """Return as many entries as there are lengths, which need not add up, for somebody has edited the data."""

    def size(self, unit: Any) -> int:  # noqa: ANN401
        """Return the bytes of a unit in the stored data, at most."""

    def without(self, units: Units, known: Sequence[Any]) -> Units:
        """Return what units have beyond known ones, if they begin with some of these, up to the last or to their own end."""


@dataclass(frozen=True, slots=True)
class Text:
    """Texts in one markdown artifact, with a separator between them."""

    separator: str
    type: str = "markdown"

    def dump(self, units: Sequence[str]) -> str:
        """Return the whole text."""
        return self.separator.join(units)

    def load(self, data: object) -> str:
        """Return the text."""
        if not isinstance(data, str):
            raise ValueError("it holds no text")  # noqa: TRY004 - what the server sends, not an argument
        return data

    def length(self, units: Units) -> int:
        """Return the number of characters; empty texts are refused, so 0 is a marker."""
        return sum(map(len, units))

    def split(self, loaded: str, lengths: Sequence[int], separator_length: int) -> list[Units]:
        """Cut the text at its separators."""
        entries: list[Units] = []
        at = 0
        for length in lengths:
            entries.append((loaded[at : at + length],) if length else ())
            at += length + separator_length if length else 0
        if at - separator_length * any(lengths) != len(loaded):
            raise ValueError("its index does not fit")
        return entries

    def split_edited(self, loaded: str, lengths: Sequence[int]) -> list[Units]:
        """Cut off what still has its length, from both ends; the rest is one entry, and others have nothing."""
        entries: list[Units] = [()] * len(lengths)
        left = [number for number, length in enumerate(lengths) if length] or [len(lengths) - 1]
        while len(left) > 1 and self.separator and loaded[lengths[left[0]] :].startswith(self.separator):
            length = lengths[left[0]]
            entries[left.pop(0)] = (loaded[:length],)
            loaded = loaded[length + len(self.separator) :]
        while len(left) > 1 and self.separator and loaded[: -lengths[left[-1]]].endswith(self.separator):
            length = lengths[left[-1]]
            entries[left.pop()] = (loaded[-length:],)
            loaded = loaded[: -length - len(self.separator)]
        entries[left[-1]] = (loaded,) if loaded else ()
        return entries

    def size(self, unit: str) -> int:
        """Return the bytes of a text and its separator as JSON."""
        return len(orjson.dumps(unit + self.separator))

    def without(self, units: Units, known: Sequence[str]) -> Units:
        """Compare text, as nothing tells where its entries end."""
        if not units or not self.separator:
            return units
        text, before, at = units[0] + self.separator, "".join(each + self.separator for each in known), 0
        for each in known:
            common = min(len(text), len(before) - at)
            if before[at : at + common] == text[:common]:
                rest = text[common : len(text) - len(self.separator)]
                return (rest,) if rest else ()
            at += len(each + self.separator)
        return units


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table artifact, as Prefect stores it: JSON in a text."""

    type: str = "table"

    def dump(self, units: Sequence[Any]) -> str:
        """Return the table."""
        return json.dumps(units if isinstance(units, list) else list(units))

    def load(self, data: object) -> list[Any]:
        """Return the rows."""
        rows = load_json(data) if isinstance(data, str) else data
        if isinstance(rows, dict):
            raise ValueError("it holds columns, and only rows can be appended to")  # noqa: TRY004 - as above
        if not isinstance(rows, list):
            raise ValueError("it holds no list of rows")  # noqa: TRY004 - as above
        return rows

    def length(self, units: Units) -> int:
        """Return the number of rows."""
        return len(units)

    def split(self, loaded: list[Any], lengths: Sequence[int], separator_length: int) -> list[Units]:  # noqa: ARG002
        """Part the rows."""
        entries: list[Units] = []
        at = 0
        for length in lengths:
            entries.append(tuple(loaded[at : at + length]))
            at += length
        if at != len(loaded):
            raise ValueError("its index does not fit")
        return entries

    def split_edited(self, loaded: list[Any], lengths: Sequence[int]) -> list[Units]:
        """Make all rows one entry, for they are trimmed one by one."""
        return [*[()] * (len(lengths) - 1), tuple(loaded)]

    def size(self, unit: Any) -> int:  # noqa: ANN401
        """Return the bytes of a row as JSON in JSON."""
        return len(orjson.dumps(json.dumps(unit))) + 2

    def without(self, units: Units, known: Sequence[Any]) -> Units:
        """Compare rows."""
        for at in range(len(known)):
            common = min(len(units), len(known) - at)
            if tuple(known[at : at + common]) == units[:common]:
                return units[common:]
        return units


@dataclass(frozen=True, slots=True)
class Log:
    """Entries by their ids, and the id up to which older ones were trimmed."""

    entries: Mapping[str, Units] = field(default_factory=dict)
    trimmed: str = ""

    def units(self) -> list[Any]:
        """Return what it consists of, in order."""
        return [unit for name in sorted(self.entries) for unit in self.entries[name]]

    def union(self, *others: Log) -> Log:
        """Merge with others: what any of them has, but for what any of them has trimmed.

        An entry that somebody has edited in place is that of the first one that has it.
        """
        trimmed = max((self.trimmed, *(other.trimmed for other in others)))
        merged: dict[str, Units] = {}
        for log in (self, *others):
            for name, units in log.entries.items():
                # Of an entry that was trimmed itself, each has some of the last rows.
                if name > trimmed and (name not in merged or len(merged[name]) < len(units)):
                    merged[name] = units
        return Log(merged, trimmed)

    def knows(self, names: Iterable[str]) -> bool:
        """Return whether all these entries are in it, or were trimmed."""
        return all(name in self.entries or name <= self.trimmed for name in names)

    def contains(self, own: str, names: Iterable[str]) -> bool:
        """Return whether it was made of a version whose own id this is, and knows these entries."""
        return own in self.entries and self.knows(names)

    def newest(self) -> str:
        """Return the newest id; empty if there is none."""
        return max(self.entries, default=self.trimmed)

    def trim(self, store: Format, max_units: int, max_kb: float) -> Log:
        """Leave the newest units, as many as there may be, and the markers of the newest versions, beside these."""
        left, room, markers = max_units, max_kb * BYTES_PER_KB - INDEX_BYTES, MAX_MARKERS
        kept: dict[str, Units] = {}
        trimmed = self.trimmed
        for name in sorted(self.entries, reverse=True):
            units = self.entries[name]
            if not units:
                if markers:
                    kept[name] = ()
                    markers -= 1
                continue
            room -= INDEX_BYTES
            fitting = 0
            for unit in reversed(units):
                size = store.size(unit)
                if fitting >= left or size > room:
                    break
                room -= size
                fitting += 1
            left -= fitting
            if fitting:
                kept[name] = units[len(units) - fitting :]
            if fitting < len(units):
                trimmed = max(trimmed, name if not fitting else trimmed)
                left = 0
        return Log({name: units for name, units in kept.items() if name > trimmed}, trimmed)

    def dump(self, store: Format, own: str) -> tuple[str, dict[str, str]]:
        """Return the data and the metadata of a version with these entries, whose own id is `own`."""
        names = sorted(self.entries)
        tokens = [f"{name}:{store.length(self.entries[name])}" for name in names]
        lines: list[str] = []
        for token in tokens:
            if lines and len(lines[-1]) + 1 + len(token) <= MAX_METADATA_CHARS:
                lines[-1] += f" {token}"
            else:
                lines.append(token)
        data = store.dump(self.units())
        metadata = {OWN_ID: own, TRIMMED: self.trimmed, CHECKSUM: _checksum(data)}
        metadata |= {f"{INDEX}{number}": line for number, line in enumerate(lines)}
        if isinstance(store, Text):
            metadata[SEPARATOR_CHARS] = str(len(store.separator))
        return data, metadata


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version as the server has it.

    Attributes:
        version_id: The id of the version.
        own: The id of the entry, or the marker, with which it was written.
        log: Its entries.
        is_foreign: Whether something else wrote it: all of it is one entry then.

    One that somebody has edited in place still has the ids of all of its entries, so it replaces what it was made of.
    """

    version_id: UUID
    own: str
    log: Log
    is_foreign: bool

    def beyond(self, known: Log, store: Format) -> Snapshot:
        """Return the version without what it has of known entries.

        Whoever copied the artifact and added to it, or replaced the metadata in which its index is, has doubled nothing.
        """
        return replace(self, log=Log({self.own: store.without(self.log.entries[self.own], known.units())}))


class MovedError(StoreError):
    """The data of a version were moved to the archive, so its entries cannot be read.

    Attributes:
        names: The ids of its entries, as far as they have anything.
        is_foreign: As of a `Snapshot`.
    """

    def __init__(self, message: str, row: Mapping[str, Any]) -> None:
        super().__init__(message)
        try:
            names, lengths = _index(row.get("metadata_") or {})
        except ValueError:
            names, lengths = [], []
        self.is_foreign = not names
        self.names = [name for name, length in zip(names, lengths, strict=True) if length] if names else [_foreign_id(row)]


def read_snapshot(row: Mapping[str, Any], store: Format) -> Snapshot:
    """Read a version from a row of the server.

    Raises:
        MovedError: Its data were moved to the archive.
        StoreError: It holds something that nothing can be appended to.
    """
    version_id = UUID(str(row["id"]))
    try:
        refuse_stub(version_id, row["data"])
    except ValueError as error:
        raise MovedError(f"version {version_id} of {row['key']} cannot be appended to: {error}", row) from None
    try:
        loaded = store.load(row["data"])
    except (ValueError, RecursionError) as error:
        raise StoreError(f"version {version_id} of {row['key']} cannot be appended to: {error}") from None
    try:
        own, log = _indexed(row.get("metadata_") or {}, row["data"], loaded, store)
        return Snapshot(version_id, own, log, is_foreign=False)
    except (KeyError, ValueError):
        # A person, or Prefect's own helper.
        own = _foreign_id(row)
        units = tuple(loaded) if isinstance(loaded, list) else (loaded,) if loaded else ()
        return Snapshot(version_id, own, Log({own: units}), is_foreign=True)


def _foreign_id(row: Mapping[str, Any]) -> str:
    """Derive an id from a version of others, so that everybody takes it over as the same entry."""
    created = datetime.fromisoformat(row["created"])
    return entry_id(int(created.timestamp() * 1000), UUID(str(row["id"])).int)


def _checksum(data: object) -> str:
    """Tell data for which an index was made from such that were edited since, whatever their length."""
    return f"{zlib.crc32(str(data).encode(errors='surrogatepass')):08x}"


def _index(metadata: Mapping[str, str]) -> tuple[list[str], list[int]]:
    """Read the ids of the entries, and their lengths; ValueError if they cannot be read."""
    lines: list[str] = []
    while (line := metadata.get(f"{INDEX}{len(lines)}")) is not None:
        lines.append(line)
    pairs = [token.split(":") for line in lines for token in line.split()]
    return [name for name, _ in pairs], [int(length) for _, length in pairs]


def _indexed(metadata: Mapping[str, str], data: object, loaded: Any, store: Format) -> tuple[str, Log]:  # noqa: ANN401
    """Read the entries by the index; KeyError or ValueError if there is none of ours."""
    names, lengths = _index(metadata)
    own, trimmed = metadata[OWN_ID], metadata[TRIMMED]
    if (
        names != sorted(set(names))
        or not all(map(_ID.fullmatch, (own, trimmed or own, *names)))
        or min(lengths, default=0) < 0
    ):
        raise ValueError("the index is none that this module writes")
    separator_length = int(metadata.get(SEPARATOR_CHARS, 0))
    if metadata[CHECKSUM] == _checksum(data) or not names:
        entries = store.split(loaded, lengths, separator_length)
    else:
        entries = store.split_edited(loaded, lengths)
    return own, Log(dict(zip(names, entries, strict=True)), trimmed)
