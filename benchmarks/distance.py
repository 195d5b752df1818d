"""A server far away: a proxy, in a process of its own, that passes everything on a little later."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

LATENCY_SECONDS = 0.02
"""How long everything travels, each way: from one end of a continent to the other."""

CHUNK_BYTES = 65_536


@contextmanager
def far_away(address: str) -> Iterator[str]:
    """Put the proxy before a server, and return the address of the proxy. It ends with the context, or with this process."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.fileno()
        command = [sys.executable, "-m", "benchmarks.distance", str(number), str(urlsplit(address).port)]
        # Leaving the context closes its standard input, which ends it, and waits for it.
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[number]):  # noqa: S603 - ourselves
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"


async def serve(listening: socket.socket, port: int) -> None:
    """Pass connections on to this port of the machine until the standard input ends."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        # Cancelled when the proxy ends; asyncio of Python 3.11 would print a traceback for each connection.
        with suppress(asyncio.CancelledError):
            await asyncio.gather(_carry(reader, server_writer), _carry(server_reader, writer))

    await asyncio.start_server(connect, sock=listening)
    await asyncio.to_thread(sys.stdin.read)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Write all that is read, in its order and so much later; the end, too."""
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while data := await reader.read(CHUNK_BYTES):
            loop.call_later(LATENCY_SECONDS, writer.write, data)
    loop.call_later(LATENCY_SECONDS, writer.close)


if __name__ == "__main__":
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])))
