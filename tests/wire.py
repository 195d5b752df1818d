"""A line to PostgreSQL that fails when it is told to: what a restart, a failover or a firewall does to a connection."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import sqlalchemy as sa

Fault = Literal["", "before the commit", "after the commit", "everything"]
COMMIT = b"COMMIT;"


@dataclass
class Line:
    """The line, with what goes wrong on it from now on."""

    url: str
    fault: Fault = ""
    is_due: Callable[[bytes], bool] = lambda _sent: True
    """Whether the fault happens at a COMMIT, by what its connection has sent."""
    failures: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """End all connections, and refuse further ones."""
        self.fault = "everything"
        for writer in list(self.writers):
            writer.transport.abort()


async def _up(line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_deaf: asyncio.Event) -> None:
    history = bytearray()
    while data := await reader.read(65536):
        history.extend(data)
        fault = line.fault if COMMIT in data and line.fault.endswith("commit") and line.is_due(bytes(history)) else ""
        if fault:
            line.fault = ""
            line.failures += 1
        if fault == "before the commit":
            return
        if fault == "after the commit":
            is_deaf.set()
        writer.write(data)
        await writer.drain()


async def _down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_deaf: asyncio.Event) -> None:
    while data := await reader.read(65536):
        if is_deaf.is_set():
            # The answer, which is lost with the connection.
            return
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def line_to(url: str) -> AsyncIterator[Line]:
    """A line to the database at `url`, until the context ends. A fault at a COMMIT happens once."""
    database = sa.make_url(url)
    path = f"{database.query['host']}/.s.PGSQL.{database.port or 5432}"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if line.fault == "everything":
            line.failures += 1
            writer.transport.abort()
            return
        server_reader, server_writer = await asyncio.open_unix_connection(path)
        line.writers |= {writer, server_writer}
        is_deaf = asyncio.Event()
        ends = _up(line, reader, server_writer, is_deaf), _down(server_reader, writer, is_deaf)
        with suppress(OSError):
            await asyncio.wait([asyncio.ensure_future(end) for end in ends], return_when="FIRST_COMPLETED")
        for each in (writer, server_writer):
            line.writers.discard(each)
            each.transport.abort()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    line = Line(f"postgresql+asyncpg://{database.username}@127.0.0.1:{port}/{database.database}")
    try:
        yield line
    finally:
        listening.close()
