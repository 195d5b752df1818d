"""Ids of versions, of which a run may have millions: quick to read, and small to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload
from uuid import UUID

from asyncpg.pgproto import pgproto  # type: ignore[import-untyped]

ID_BYTES = 16


def read_ids(texts: Iterable[str | None]) -> list[UUID | None]:
    """Read ids as SQLite has them, into the `UUID` subclass of asyncpg, which is faster to create than Python's own."""
    read = pgproto.UUID
    return [None if text is None else read(text) for text in texts]


class Ids(Sequence[UUID]):
    """A sequence of ids, each a `UUID` only while it is looked at: in between, it takes a fifth of the memory."""

    __slots__ = ("_packed",)

    def __init__(self, ids: Iterable[UUID] = (), *, packed: bytes = b"") -> None:
        """Pack some ids, or take them packed: the bytes of each, one after the other."""
        self._packed = packed or b"".join([each.bytes for each in ids])

    def __len__(self) -> int:
        return len(self._packed) // ID_BYTES

    @overload
    def __getitem__(self, index: int) -> UUID: ...

    @overload
    def __getitem__(self, index: slice) -> Ids: ...

    def __getitem__(self, index: int | slice) -> UUID | Ids:
        if isinstance(index, int):
            return _unpack(self._packed, range(len(self))[index])
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise ValueError("ids are sliced without a step")
        return Ids(packed=self._packed[ID_BYTES * start : ID_BYTES * stop])

    def __iter__(self) -> Iterator[UUID]:
        read, packed = pgproto.UUID, self._packed
        return (read(packed[start : start + ID_BYTES]) for start in range(0, len(packed), ID_BYTES))


def _unpack(packed: bytes, index: int) -> UUID:
    found: UUID = pgproto.UUID(packed[ID_BYTES * index : ID_BYTES * (index + 1)])
    return found
