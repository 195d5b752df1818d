"""Keep every test away from the user's own Prefect: before anything imports it, and in every worker of pytest-xdist."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import certifi

for name in [name for name in os.environ if name.upper().startswith(("PREFECT_", "ARTIFACT_RETENTION_"))]:
    del os.environ[name]

PREFECT_HOME = Path(tempfile.mkdtemp(prefix="prefect-home-"))
atexit.register(shutil.rmtree, PREFECT_HOME, ignore_errors=True)
os.environ["PREFECT_HOME"] = str(PREFECT_HOME)
os.environ["PREFECT_PROFILES_PATH"] = str(PREFECT_HOME / "profiles.toml")
# Each of Prefect's clients reads all the certificates that it trusts, for a seventh of a second; no test talks TLS.
_, first, *_others = Path(certifi.where()).read_text(encoding="utf-8").split("-----BEGIN CERTIFICATE-----")
ONE_CERTIFICATE = PREFECT_HOME / "certificate.pem"
ONE_CERTIFICATE.write_text(f"-----BEGIN CERTIFICATE-----{first}", encoding="utf-8")
os.environ["PREFECT_API_SSL_CERT_FILE"] = str(ONE_CERTIFICATE)

from collections import defaultdict  # noqa: E402
from collections.abc import AsyncIterator, Callable, Iterator  # noqa: E402 - Prefect reads the environment when it is imported
from dataclasses import replace  # noqa: E402
from zlib import crc32  # noqa: E402

import pytest  # noqa: E402
from fake import FakeServer  # noqa: E402
from prefect_artifact_retention.tasks import verify  # noqa: E402
from servers import EACH_ONCE, Server, started_when_asked  # noqa: E402

pytest_plugins = ["chance"]

MEASURED = "measured"
LATE_DELETION_SECONDS = verify.LATE_DELETION_SECONDS


SHARED = ("deployed", "guarded", "image", "vacuuming")
"""Fixtures that take long to make: with `--dist loadgroup`, all tests that need one run in the same process."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let combinations take turns: of those left to `make test-all`, each test has one in the thorough suite, by its name.

    The others are in the long one.
    """
    left: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        assert isinstance(item, pytest.Function)
        for fixture in {*SHARED}.intersection(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(fixture))
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if (combination := parameters.get("server")) and item.get_closest_marker("thorough"):
            left[f"{item.path.name} {item.name.replace('-'.join(combination), '')}"].append(item)
    for name, alike in left.items():
        del alike[crc32(name.encode()) % len(alike)]
        for item in alike:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session", autouse=True)
def nobody_deletes_meanwhile() -> Iterator[None]:
    """Let no run wait for the deletions of others before it verifies: hundreds of runs would, for a second each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "LATE_DELETION_SECONDS", 0)
        yield


@pytest.fixture
def others_delete_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs wait for them as they do elsewhere."""
    monkeypatch.setattr(verify, "LATE_DELETION_SECONDS", LATE_DELETION_SECONDS)


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Tell a figure that stands in the documentation, to be shown in the end."""
    return lambda figure: record_property(MEASURED, figure)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures, also those from other processes."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    if figures := [figure for report in reports for name, figure in report.user_properties if name == MEASURED]:
        terminalreporter.section("figures")
        for figure in dict.fromkeys(figures):
            terminalreporter.write_line(figure)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """The servers of this process, for all its tests."""
    with started_when_asked(tmp_path_factory.mktemp("servers")) as get:
        yield get


@pytest.fixture(params=EACH_ONCE, ids="-".join)
async def server(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> AsyncIterator[Server | FakeServer]:
    """A server without artifacts: the one in memory reached through its API, and PostgreSQL in its database.

    The other combinations are thorough tests. A test that is about others is marked `@on(...)`.
    """
    kind, store = request.param
    if kind == "fake":
        with FakeServer().listening() as fake:
            yield fake
        return
    made = replace(servers(kind), store=store)
    await made.database.clear()
    yield made
    await made.database.clear()
