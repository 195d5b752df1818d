"""Keep every test away from the user's own Prefect: before anything imports it, and in every worker of pytest-xdist."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

for name in [name for name in os.environ if name.upper().startswith(("PREFECT_", "ARTIFACT_RETENTION_"))]:
    del os.environ[name]

PREFECT_HOME = Path(tempfile.mkdtemp(prefix="prefect-home-"))
atexit.register(shutil.rmtree, PREFECT_HOME, ignore_errors=True)
os.environ["PREFECT_HOME"] = str(PREFECT_HOME)
os.environ["PREFECT_PROFILES_PATH"] = str(PREFECT_HOME / "profiles.toml")

from collections.abc import AsyncIterator, Callable  # noqa: E402 - Prefect reads the environment when it is imported

import pytest  # noqa: E402
from servers import Server  # noqa: E402

pytest_plugins = ["chance"]

MEASURED = "measured"


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


@pytest.fixture
async def server(running_server: Server) -> AsyncIterator[Server]:
    """The folder's server, without artifacts."""
    await running_server.database.clear()
    yield running_server
    await running_server.database.clear()
