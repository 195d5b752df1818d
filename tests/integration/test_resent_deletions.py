"""An HTTP/2 server that closes a connection with GOAWAY, for which the transport sends a request again by itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf
from uuid import UUID, uuid4

import httpcore
import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.connection import _trace_resends, connect
from prefect_artifact_retention.stores.store import OutdatedCheckError


@dataclass
class Server:
    """Versions behind HTTP/2 without TLS.

    Attributes:
        versions: What it has.
        acts: Whether it deletes before it says that it has not acted.
        pause: The seconds before it says so.
        deletions: The deletions that were sent to it.
    """

    versions: set[UUID]
    acts: bool = True
    pause: float = 0
    deletions: list[UUID] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        goes_away = False
        writer.write(connection.data_to_send())
        while not goes_away and (data := await self.read(reader)):
            for event in connection.receive_data(data):
                if isinstance(event, RequestReceived) and event.stream_id:
                    headers = dict(event.headers)
                    goes_away |= self.answer(connection, event.stream_id, str(headers[":method"]), str(headers[":path"]))
                    await asyncio.sleep(self.pause if goes_away else 0)
            writer.write(connection.data_to_send())
            await writer.drain()
        writer.close()

    async def read(self, reader: asyncio.StreamReader) -> bytes:
        """Read what has come; nothing once the listener is closed."""
        try:
            return await reader.read(65_536)
        except asyncio.CancelledError:
            return b""

    def answer(self, connection: H2Connection, stream: int, method: str, path: str) -> bool:
        """Answer one request; True: the connection is over, and the request was not taken, the server says."""
        status, body = ("200", b"0") if method == "POST" else ("404", b"{}")
        if method == "DELETE":
            version_id = UUID(path.rpartition("/")[2])
            self.deletions.append(version_id)
            if len(self.deletions) == 1:
                if self.acts:
                    self.versions.discard(version_id)
                connection.close_connection(last_stream_id=1)
                return True
            status = "204" if version_id in self.versions else "404"
            body = b""
            self.versions.discard(version_id)
        connection.send_headers(stream, [(":status", status), ("content-type", "application/json")])
        connection.send_data(stream, body, end_stream=True)
        return False


@asynccontextmanager
async def listening(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiStore]:
    """The store of a server, over a connection on which one request has been answered."""
    create = httpx.AsyncHTTPTransport.__init__

    def speak_http2(transport: httpx.AsyncHTTPTransport, **options: object) -> None:
        # Without TLS, nobody negotiates it.
        create(transport, **{**options, "http1": False, "http2": True})  # type: ignore[arg-type]

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "__init__", speak_http2)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with temporary_settings(updates={PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
            async with connect() as connection:
                await connection.request("POST", "/artifacts/count", {})
                yield ApiStore(connection)


@pytest.mark.parametrize("acts", [True, False], ids=["acts before", "does not act before"])
async def test_a_deletion_that_the_transport_sends_twice_is_ours(monkeypatch: pytest.MonkeyPatch, *, acts: bool) -> None:
    """The second one finds nothing, because the first was carried out; or it is carried out itself."""
    version_id = uuid4()
    server = Server({version_id}, acts=acts)
    async with listening(server, monkeypatch) as store:
        assert await store.delete(version_id)
    assert server.deletions == [version_id] * 2
    assert server.versions == set()


async def test_a_version_that_was_gone_before_its_first_deletion_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else has deleted it."""
    gone, version_id = uuid4(), uuid4()
    server = Server({version_id})
    async with listening(server, monkeypatch) as store:
        assert await store.delete(version_id)
        assert not await store.delete(gone)
    assert server.deletions[2:] == [gone]


async def test_the_transport_sends_no_deletion_again_whose_check_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Prefect's client sends again is held to that, too."""
    version_id = uuid4()
    server = Server({version_id}, acts=False, pause=1)
    async with listening(server, monkeypatch) as store:
        with pytest.raises(OutdatedCheckError) as late:
            await store.delete(version_id, deadline=time.monotonic() + 0.5)
    assert late.value.is_sent
    assert server.deletions == [version_id]
    assert server.versions == {version_id}


async def test_what_opens_the_tunnel_of_a_proxy_is_no_deletion() -> None:
    """Else the 404 to the only one that was sent would pass for the answer to a second, and the version for ours."""
    answers = [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]
    # The first attempt, which `connect` notes.
    attempts = [0.0]
    trace = _trace_resends(attempts, inf)
    async with httpcore.AsyncHTTPProxy("http://proxy.invalid", network_backend=httpcore.AsyncMockBackend(answers)) as proxy:
        answer = await proxy.request("DELETE", "https://prefect.invalid/api/artifacts/1", extensions={"trace": trace})
    assert (answer.status, attempts) == (404, [0.0])
