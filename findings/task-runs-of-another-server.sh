#!/usr/bin/env bash
# Versions: Prefect 3.8.8 (client and server), SQLite.
#
# A process runs a flow on one Prefect server and then, with another `PREFECT_API_URL` by `temporary_settings`, on a second one. The second
# flow run is created there and ends there as Completed, but its task runs are shown nowhere: Prefect tells of task runs by events, and the
# one worker that sends events goes on with the connection to the server that it began with. Each event that is lost is an ERROR in
# Prefect's log, "failed to process item", and nothing else tells of it. Once the worker was drained, `EventsWorker.drain_all()`, the
# next flow run has its task runs.
#
# Seen:
#                                        flow runs  task runs
#   a flow on the first server, then one on the second
#     first server                               1          2
#     second server                              1          0
#   drained, and one more on the second
#     first server                               1          2
#     second server                              2          2
#   as described
set -euo pipefail
unset "${!PREFECT_@}"
folder=$(mktemp -d)
child=
clean_up() {
  trap '' INT TERM
  if [ -n "$child" ]; then kill "$child" 2>/dev/null && wait "$child" || true; fi
  rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
run() { "$@" & child=$!; wait "$child"; child=; }

cat >"$folder/finding.py" <<'PYTHON'
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import httpx
from prefect import flow, task
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

@contextmanager
def prefect_server(folder, database_url):
    """A Prefect server on a free port of the loopback, apart from the user's Prefect."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    settings = {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    app = ["--factory", "prefect.server.api.server:create_app"]
    command = [sys.executable, "-m", "uvicorn", *app, "--port", str(port), "--timeout-keep-alive", "75"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log)
        try:
            # Its first start creates the database, which takes half a minute, and more on a busy machine.
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline and process.poll() is None:
                with suppress(OSError):
                    urlopen(f"{address}/health", timeout=5).close()
                    break
                time.sleep(1)
            else:
                sys.exit(f"the Prefect server did not start:\n{(folder / 'server.log').read_text()[-2000:]}")
            yield address
        finally:
            process.terminate()
            process.wait()


@task
def work(number):
    return number


@flow
def two_tasks():
    return [work(number) for number in range(2)]


def counted(address):
    """The flow runs and the task runs that a server shows, once they no longer change."""
    seen, before = None, ()
    while seen != before:
        before = seen
        time.sleep(5)
        with httpx.Client(base_url=address, timeout=60) as client:
            seen = tuple(client.post(f"/{what}/count", json={}).raise_for_status().json() for what in ("flow_runs", "task_runs"))
    return seen


def run_on(*addresses):
    for address in addresses:
        with temporary_settings({PREFECT_API_URL: address}):
            two_tasks()


def show(said):
    print(said)
    found = []
    for name, each in (("first", first), ("second", second)):
        found.append(counted(each))
        print(f"  {name + ' server':36} {found[-1][0]:9}  {found[-1][1]:9}")
    return found


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
here = Path(sys.argv[1])
with (
    prefect_server(here / "first", f"sqlite+aiosqlite:///{here}/first/prefect.db") as first,
    prefect_server(here / "second", f"sqlite+aiosqlite:///{here}/second/prefect.db") as second,
):
    print(f"{'':38} flow runs  task runs")
    run_on(first, second)
    seen = [show("a flow on the first server, then one on the second")]
    EventsWorker.drain_all()
    run_on(second)
    seen.append(show("drained, and one more on the second"))
expected = seen == [[(1, 2), (1, 0)], [(1, 2), (2, 2)]]
print("as described" if expected else "CHANGED: this is not what was described")
sys.exit(not expected)
PYTHON

run python3 -m venv "$folder/venv"
run "$folder/venv/bin/pip" install -qq --disable-pip-version-check \
  prefect==3.8.8 fastapi==0.150.0 sqlalchemy==2.0.58 aiosqlite==0.22.1
export PREFECT_HOME="$folder/home" PREFECT_LOGGING_LEVEL=CRITICAL DO_NOT_TRACK=1
run "$folder/venv/bin/python" "$folder/finding.py" "$folder" 2>/dev/null
