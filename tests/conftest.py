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

from collections.abc import AsyncIterator  # noqa: E402 - Prefect reads the environment when it is imported

import pytest  # noqa: E402
from servers import Server  # noqa: E402


@pytest.fixture
async def server(running_server: Server) -> AsyncIterator[Server]:
    """The folder's server, without artifacts."""
    await running_server.database.clear()
    yield running_server
    await running_server.database.clear()
