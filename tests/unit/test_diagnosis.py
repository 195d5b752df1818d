"""A client that cannot be made, or reaches no Prefect API: one sentence that names the variable, for every command."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import pytest
from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.connection import connect

NOBODY = "http://127.0.0.1:9/api"
COMMANDS = (["preview"], ["delete"], ["explain", "report"], ["alarm", "slack-webhook/ops"], ["metrics"])
SHAPE = "It looks like http://HOST:4200/api".lower()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with policies; no proxy, and an environment that is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retention.toml").write_text('[[policies]]\nname = "all"\nkeep_last = 3\n', encoding="utf-8")
    with patch.dict(os.environ), temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: 0}):
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            del os.environ[name]
        yield tmp_path


async def failure(url: str) -> str:
    """What is said of an address."""
    with temporary_settings(updates={PREFECT_API_URL: url}), pytest.raises(StoreError) as failed:
        async with connect() as connection:
            await connection.now()
    message = str(failed.value)
    assert "secret" not in message
    assert "\n" not in message
    return message


# --- settings that cannot be used


def no_file(folder: Path) -> str:
    """A file that is not there."""
    return str(folder / "missing.pem")


def no_certificate(folder: Path) -> str:
    """A file without a certificate."""
    (folder / "empty.pem").write_text("nothing", encoding="utf-8")
    return str(folder / "empty.pem")


@pytest.mark.parametrize("variable", ["PREFECT_API_SSL_CERT_FILE", "SSL_CERT_FILE"])
@pytest.mark.parametrize(("make", "why"), [(no_file, "No such file or directory"), (no_certificate, "holds no certificate")])
async def test_a_file_of_certificates_that_cannot_be_used_is_named(
    folder: Path, variable: str, make: Callable[[Path], str], why: str
) -> None:
    """By the variable of the two that is set, and by its path."""
    file = make(folder)
    os.environ.pop("PREFECT_API_SSL_CERT_FILE", None)
    os.environ[variable] = file
    with temporary_settings(updates={PREFECT_API_SSL_CERT_FILE: file}):
        message = await failure(NOBODY)
    assert message.startswith(f"no Prefect server to talk to: {variable} names {file}, which ")
    assert why in message


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("HTTPS_PROXY", "socks5://user:secret@127.0.0.1:9", "names a SOCKS proxy, which needs the package socksio"),
        ("all_proxy", "socks5h://user:secret@127.0.0.1:9", "names a SOCKS proxy, which needs the package socksio"),
        ("ALL_PROXY", "ftp://user:secret@127.0.0.1:9", "names no proxy of the form http://HOST:PORT"),
        ("http_proxy", "http://user:secret@127.0.0.1:port", "names no proxy of the form http://HOST:PORT"),
        ("http_proxy", "http://user:secret@127.0.0.1:99999", "names a proxy whose port is above 65535"),
        ("ALL_PROXY", "127.0.0.1:99999", "names a proxy whose port is above 65535"),
    ],
)
async def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(variable: str, value: str, why: str) -> None:
    """Also where it is not for this address: the HTTP client reads all of them; its value, with its password, is not shown."""
    os.environ[variable] = value
    assert await failure(NOBODY) == f"no Prefect server to talk to: {variable} {why}" + (
        ": pip install 'httpx[socks]'" if "SOCKS" in why else ""
    )


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("network", ["fd00::/8", "localhost, ::1/128", "[fd00::]/8"])
async def test_hosts_without_a_proxy_that_cannot_be_read_are_named_by_their_variable(variable: str, network: str) -> None:
    """The HTTP client takes a network of IPv6 for a host with a port; the address of the server is fine."""
    os.environ[variable] = network
    assert (await failure(NOBODY)).startswith(f"no Prefect server to talk to: {variable} names what is no host or address")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_port_that_is_none_is_told(scheme: str) -> None:
    """Connecting would raise an error that nobody expects."""
    message = await failure(f"{scheme}://user:secret@127.0.0.1:65536/api")
    assert message == "no Prefect server to talk to: PREFECT_API_URL is no valid address: its port is above 65535"


async def test_an_address_that_is_reached_through_a_proxy_is_told_so() -> None:
    """Else one would look for the fault at the server."""
    os.environ["HTTP_PROXY"] = "http://user:secret@127.0.0.1:9"
    os.environ["no_proxy"] = "localhost"
    assert "through the proxy that HTTP_PROXY names" in await failure(NOBODY)
    assert "proxy" not in await failure("http://localhost:9/api")


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_each_command_says_it_in_one_line(folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And ends as with a server that cannot be reached: with 1."""
    os.environ["PREFECT_API_SSL_CERT_FILE"] = file = no_file(folder)
    with temporary_settings(updates={PREFECT_API_URL: NOBODY, PREFECT_API_SSL_CERT_FILE: file}):
        code = main(arguments)
    printed = capsys.readouterr()
    assert (code, printed.out) == (1, "")
    (line,) = printed.err.splitlines()
    assert line == (
        f"artifact-retention: no Prefect server to talk to: PREFECT_API_SSL_CERT_FILE names {file}, "
        "which cannot be read: No such file or directory"
    )


# --- addresses of something else


class OtherThings(BaseHTTPRequestHandler):
    """A server of web pages, which answers by the first part of the path."""

    def do_GET(self) -> None:
        """Show a page, or say what is wrong."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.path.split("/")[1]
        status = int(kind) if kind.isdigit() else 200
        self.send_response(404 if "csrf" in self.path and kind != "pages" else status)
        content = b"<html>The plain HTTP request was sent to HTTPS port</html>"
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - the name of the base class

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def other_things() -> Iterator[str]:
    """The address of such a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), OtherThings)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("http://{}/404", "404 Not Found"),
        ("http://{}/405", "405 Method Not Allowed"),
        ("http://{}/400", "400 Bad Request"),
        ("http://{}/200", "does not answer like a Prefect API"),
        ("http://{}/pages", "does not answer like a Prefect API"),
        ("https://{}/api", "SSL"),
        ("{}/api", "missing an 'http://' or 'https://' protocol"),
    ],
)
async def test_an_address_of_something_else_is_told_what_it_should_look_like(
    other_things: str, address: str, what: str
) -> None:
    """Without its /api, with a wrong prefix, http for https and the reverse, and the pages of a user interface."""
    message = await failure(address.format(other_things))
    assert what in message
    assert "is PREFECT_API_URL right? " in message
    assert SHAPE in message.lower()


async def test_http_to_a_port_that_speaks_tls_is_told_so() -> None:
    """It hangs up, as on all that is no greeting of TLS."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listener:
        message = await failure(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/api")
    assert SHAPE in message.lower()


async def test_a_server_that_is_down_is_not_taken_for_a_wrong_address() -> None:
    """Nothing listens there: the address may be right."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        message = await failure(f"http://127.0.0.1:{free.getsockname()[1]}/api")
    assert "cannot reach the Prefect server" in message
    assert SHAPE not in message.lower()
