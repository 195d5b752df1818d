"""An archive in a bucket behaves as one in a folder, on a server that speaks S3's protocol, also when requests fail."""

import http.client
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import httpx
import pytest
from archives import NIGHT, SERVER, archived, by, columns, end, ledger_ids, plain, read, write
from moto.server import ThreadedMotoServer
from prefect_artifact_retention.stores.archive.archive import Archive, open_archive
from prefect_artifact_retention.stores.archive.model import ArchiveError, LedgerQuery, RunManifest

pytestmark = pytest.mark.thorough

SECRET = "not-for-any-log"  # noqa: S105 - no server knows it
VERSIONS = [archived(f"k-{number}") for number in range(5)]
RUN = RunManifest(
    run_id="run-1", run_name="fox", server="http://prefect.example/api", ended_at=NIGHT,
    outcome="completed", parts=[], versions=0, deleted=0, spared=[], policies=[],
)  # fmt: skip


@dataclass
class Proxy:
    """Stands before the server, and fails some of the requests for objects: before the server sees them, or after."""

    server: tuple[str, int]
    url: str = ""
    fails: range = range(0)
    lost: bool = False
    status: int = 403
    sent: int = 0
    direct: httpx.Client = field(default_factory=httpx.Client)
    seen: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=Lock)

    def forward(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        with self.lock:
            self.seen.append(f"{request.command} {request.path}")
            fails = len(self.seen) in self.fails
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if fails and not self.lost:
            self._answer(request, self.status, {}, b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>")
            return
        connection = http.client.HTTPConnection(*self.server)
        connection.request(request.command, request.path, body, dict(request.headers))
        answer = connection.getresponse()
        content = answer.read()
        if fails:
            self._answer(request, self.status, {}, b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>")
        else:
            self._answer(request, answer.status, dict(answer.headers), content)
        connection.close()

    def _answer(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
        request.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                request.send_header(name, value)
        length = headers.get("Content-Length") or headers.get("content-length") or "0"
        request.send_header("Content-Length", length if request.command == "HEAD" else str(len(content)))
        request.end_headers()
        self.sent += len(content)
        if request.command != "HEAD":
            request.wfile.write(content)


@pytest.fixture(scope="module")
def moto() -> Iterator[tuple[str, int]]:
    """The address of a server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def proxy(moto: tuple[str, int]) -> Iterator[Proxy]:
    """A proxy before a server that has an empty bucket."""
    made = Proxy(moto)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = lambda self: made.forward(self)  # noqa: N815, PLW0108 - `forward` is of the proxy, and no method of this class

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{listening.server_port}"
    Thread(target=listening.serve_forever, daemon=True).start()
    made.direct = httpx.Client(base_url="http://{}:{}".format(*moto), timeout=60)
    with made.direct:
        made.direct.put("/bucket").raise_for_status()
        yield made
        made.direct.post("/moto-api/reset").raise_for_status()
    listening.shutdown()
    listening.server_close()


def at(proxy: Proxy, url: str = "s3://bucket/prefect/archive") -> Archive:
    """The archive in the bucket, as another process opens it."""
    return open_archive(
        url,
        {"key": "somebody", "secret": SECRET, "client_kwargs": {"endpoint_url": proxy.url, "region_name": "us-east-1"}},
    )


def archive_all(archive: Archive) -> None:
    """What a run does."""
    archive.check_writable()
    write(archive, VERSIONS[:2], VERSIONS[2:3])
    write(archive, VERSIONS[3:])
    end(archive, 1)


def test_an_archive_in_a_bucket_is_read_back_as_it_was(proxy: Proxy) -> None:
    """By another process, which sees at once what was written; and it prunes itself."""
    archive = at(proxy)
    assert archive.manifests() == archive.problems() == []
    archive_all(archive)
    other = at(proxy)
    assert [*read(other)] == [plain(each) for each in VERSIONS]
    assert ledger_ids(other, LedgerQuery(keys=["k-[13]"])) == [VERSIONS[1].id, VERSIONS[3].id]
    assert other.first_free_number("run-1") == 3
    write(other, by(2, [archived()]))
    assert len(archive.manifests()) == 3
    pruned = archive.prune(archive.manifests()[-1].written_at.replace(year=2028), 30, 0, SERVER)
    assert pruned.runs == ("run-1", "run-2")
    assert len(ledger_ids(other)) == 6
    assert other.ledger()["has_payload"].to_pylist() == [False] * 6
    assert other.problems() == []


def test_a_reader_of_the_ledger_fetches_no_payload(proxy: Proxy) -> None:
    """A part has megabytes of them, and the ledger some kilobytes."""
    noise = "".join(f"{number:x}" for number in range(400_000))
    write(at(proxy), [archived(data=noise)])
    proxy.sent = 0
    assert len(ledger_ids(at(proxy))) == 1
    assert proxy.sent < 200_000 < len(noise) / 4
    assert [each.data for each in read(at(proxy))] == [noise]
    assert proxy.sent > 200_000


def test_a_ledger_is_fetched_by_a_few_requests_for_each_part(proxy: Proxy) -> None:
    """Each takes some tens of milliseconds, and a part has many columns in several row groups."""
    write(at(proxy), *([archived(key=f"k-{number}")] for number in range(5)))
    proxy.seen.clear()
    assert len(ledger_ids(at(proxy))) == 5
    fetched = [each for each in proxy.seen if each.startswith("GET") and ".parquet" in each]
    assert 1 <= len(fetched) <= 4


def check_fault(proxy: Proxy, number: int) -> None:
    """Let all requests fail from one on, and then none."""
    url = f"s3://bucket/{number}"
    archive = at(proxy, url)
    proxy.seen, proxy.fails = [], range(number, number + 1000)
    with pytest.raises(ArchiveError, match=f"the archive {url}: cannot ") as told:
        archive_all(archive)
    assert SECRET not in str(told.value)
    proxy.fails = range(0)
    counting = ledger_ids(archive)
    assert counting == [each.id for each in read(archive)]
    assert counting in [[], [each.id for each in VERSIONS[:3]], [each.id for each in VERSIONS]]
    archive_all(archive)
    assert [*read(archive)] == [plain(each) for each in VERSIONS]


@pytest.mark.parametrize("lost", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_a_fault_of_a_write_leaves_nothing_half(proxy: Proxy, *, lost: bool) -> None:
    """Credentials that expire, and stay so for the rest of the run: what counts is whole, and the next run completes."""
    archive_all(at(proxy, "s3://bucket/undisturbed"))
    writes = [number for number, request in enumerate(proxy.seen, 1) if request.startswith("PUT")]
    proxy.lost = lost
    for number in writes[:: 1 if lost else 4]:
        check_fault(proxy, number)


@pytest.mark.long
@pytest.mark.parametrize("lost", [False, True])
def test_a_fault_of_any_request_leaves_nothing_half(proxy: Proxy, *, lost: bool) -> None:
    """As of a write: also of what lists and reads."""
    archive_all(at(proxy, "s3://bucket/undisturbed"))
    total = len(proxy.seen)
    proxy.lost = lost
    for number in range(1, total + 1):
        check_fault(proxy, number)


@pytest.mark.thorough
def test_a_write_whose_answer_is_lost_is_found_by_the_next_attempt(proxy: Proxy) -> None:
    """The driver tries again, finds what it wrote the first time, and that is what was meant."""
    archive = at(proxy)
    proxy.lost, proxy.status = True, 503
    proxy.fails = range(1, 1000, 2)
    archive.publish_run(RUN)
    proxy.fails = range(0)
    assert archive.runs() == [RUN]


def test_a_bucket_that_is_not_there_is_no_empty_archive(proxy: Proxy) -> None:
    """Neither for whoever writes, nor for whoever reads."""
    archive = at(proxy, "s3://vanished/archive")
    for look in (archive.manifests, archive.ledger, archive.problems, archive.check_writable):
        with pytest.raises(ArchiveError, match=r"s3://vanished/archive: cannot .*bucket does not exist"):
            look()


def test_no_secret_is_shown() -> None:
    """Neither by what the archive says of itself, nor by an error whose driver quotes it."""
    archive = open_archive(
        "s3://bucket/x",
        {
            "key": SECRET,
            "secret": SECRET,
            "nothing": SECRET,
            "client_kwargs": {"endpoint_url": f"http://user:{SECRET}@127.0.0.1:9"},
        },
    )
    with pytest.raises(ArchiveError) as told:
        archive.check_writable()
    assert SECRET not in f"{told.value} {archive!r} {vars(archive)!r} {told.value.__cause__!r}"
    assert told.value.__suppress_context__


def test_a_part_in_a_bucket_is_never_replaced(proxy: Proxy) -> None:
    """The second of two that write under one name is told."""
    archive = at(proxy)
    with archive.stage("run-1-00001") as first, archive.stage("run-1-00001") as second:
        first.add(columns(VERSIONS[:2]))
        second.add(columns(VERSIONS[2:]))
        first.publish()
        with pytest.raises(ArchiveError, match=r"there is another data/run-1-00001.parquet already"):
            second.publish()
    assert [*read(archive)] == [plain(each) for each in VERSIONS[:2]]


def test_a_bucket_of_something_else_is_left_alone(proxy: Proxy) -> None:
    """Nothing is written beside it."""
    proxy.direct.put("/bucket/prefect/archive/report.csv", content=b"somebody's").raise_for_status()
    with pytest.raises(ArchiveError, match=r"there is something else .report.csv., and no archive"):
        at(proxy).check_writable()
    assert re.findall("<Key>(.*?)</Key>", proxy.direct.get("/bucket?list-type=2").text) == ["prefect/archive/report.csv"]
