"""Nothing that the tests or the demo have started is left behind when they die, in whatever way."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from command import heed_ctrl_c
from platforms import wait_for

TEST = """
import subprocess, sys, time
from pathlib import Path

import pytest
from servers import started
from watchdog import end_with_us


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with started("postgresql", tmp_path_factory.mktemp("servers")) as server:
        yield server


def test_that_never_ends(server):
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    end_with_us(worker.pid)
    Path("started.part").write_text(f"{server.local.process.pid} {worker.pid}")
    Path("started.part").rename("started")
    time.sleep(600)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder into which also PostgreSQL can look, which runs as another user for root."""
    folder = Path(tempfile.mkdtemp(prefix="left-behind-"))
    folder.chmod(0o755)
    yield folder
    # A PostgreSQL that has been told to end may still remove files of its own.
    shutil.rmtree(folder, ignore_errors=True)


def alive(place: Path, pids: list[int]) -> list[psutil.Process]:
    """What is left of these processes, and of all whose command line names the folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        named = any(str(place) in part for part in process.info["cmdline"] or [])
        if (named or process.pid in pids) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("Ctrl-C", marks=pytest.mark.long)])
def test_what_a_test_has_started_ends_with_pytest(place: Path, how: str) -> None:
    """Prefect's server, PostgreSQL and a worker, with pytest-xdist: by Ctrl-C, and by SIGKILL of all its processes."""
    (place / "test_endless.py").write_text(TEST, encoding="utf-8")
    (place / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (place / "tmp").mkdir(mode=0o755)
    folder = Path(__file__).parents[1]
    tests = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-n", "1", "-q", "-p", "no:cacheprovider", "test_endless.py"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": f"{folder}:{folder.parent}", "TMPDIR": str(place / "tmp")},
        stdout=(place / "log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509 - it only sets a signal
    )
    pids: list[int] = []
    try:
        wait_for("the servers", lambda: True if (place / "started").exists() or tests.poll() is not None else None)
        assert tests.poll() is None, (place / "log").read_text()
        pids = [int(pid) for pid in (place / "started").read_text().split()]
        # pytest with its workers; the server with its log, PostgreSQL by its folder, the worker.
        assert {*pids} < {process.pid for process in alive(place, pids)}
        assert any("postgres" in process.name() for process in alive(place, pids))
        os.killpg(tests.pid, signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
        tests.wait(60)
        wait_for("the end of all", lambda: None if alive(place, pids) else True, timeout=60)
    finally:
        tests.kill()
        tests.wait()
        for process in alive(place, pids):
            process.kill()


def test_the_server_of_a_demo_that_is_killed_ends(tmp_path: Path) -> None:
    """It knows by its standard input that nobody needs it any more."""
    program = (
        "import sys, time; from pathlib import Path; from prefect_artifact_retention.flows.local_server import local_server\n"
        "with local_server(Path(sys.argv[1])) as server: print(server.process.pid, flush=True); time.sleep(600)"
    )
    demo = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert demo.stdout
    server = psutil.Process(int(demo.stdout.readline()))
    time.sleep(1)
    demo.kill()
    demo.communicate()
    _gone, left = psutil.wait_procs([server], 60)
    for process in left:
        process.kill()
    assert left == []
