#!/usr/bin/env bash
# Versions: Prefect 3.8.8 with SQLAlchemy 2.0.58 and 2.1.9 (it asks for >=2.0,<3), fastapi 0.150.0, SQLite.
#
# SQLAlchemy 2.1 refuses a bulk INSERT of dictionaries that name a hybrid attribute without a `bulk_dml` hook, which 2.0 took.
# Prefect's scheduler inserts such ones (their `state` is a hybrid of its flow run). Its server starts with 2.1, answers, takes deployments and calls
# itself healthy, but no run of a schedule is ever made; the only trace is an error in the log at each round of the scheduler.
#
# Seen:
#   Prefect 3.8.8 asks for sqlalchemy[asyncio]<3.0.0,>=2.0 and has 2.0.58
#     runs scheduled for an hourly deployment: 3; /health: true
#     in the server's log: no error of SQLAlchemy
#   as described
#   Prefect 3.8.8 asks for sqlalchemy[asyncio]<3.0.0,>=2.0 and has 2.1.9
#     runs scheduled for an hourly deployment: 0; /health: true
#     in the server's log: ["sqlalchemy.exc.InvalidRequestError: Can't evaluate bulk DML statement; please supply a bulk_dml decorated function"]
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
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from importlib.metadata import requires, version
from pathlib import Path
from urllib.request import urlopen

import httpx

WATCHED_SECONDS = 30


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
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3",
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


def watch(address):
    """Deploy a flow that is to run every hour; how many runs are scheduled half a minute later, and whether the server is well."""
    with httpx.Client(base_url=address, timeout=60) as client:
        flow = client.post("/flows/", json={"name": "report"}).raise_for_status().json()
        schedules = [{"schedule": {"interval": 3600}, "active": True}]
        deployment = {"name": "hourly", "flow_id": flow["id"], "entrypoint": "report.py:report", "schedules": schedules}
        client.post("/deployments/", json=deployment).raise_for_status()
        runs = 0
        deadline = time.monotonic() + WATCHED_SECONDS
        while time.monotonic() < deadline and not runs:
            time.sleep(1)
            runs = client.post("/flow_runs/count", json={}).raise_for_status().json()
        return runs, client.get("/health").text


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder = Path(sys.argv[1]) / "server"
with prefect_server(folder, f"sqlite+aiosqlite:///{folder}/prefect.db") as address:
    runs, health = watch(address)
log = (folder / "server.log").read_text()
errors = sorted(set(re.findall(r"^sqlalchemy\.exc\..*", log, re.MULTILINE)))
asked = next(each for each in requires("prefect") if each.startswith("sqlalchemy"))
print(f"Prefect {version('prefect')} asks for {asked} and has {version('sqlalchemy')}")
print(f"  runs scheduled for an hourly deployment: {runs}; /health: {health}")
print(f"  in the server's log: {errors or 'no error of SQLAlchemy'}")
fails = version("sqlalchemy") >= "2.1"
expected = health == "true" and (runs == 0 and any("bulk DML" in each for each in errors) if fails else runs > 0 and not errors)
print("as described" if expected else "CHANGED: this is not what was described")
sys.exit(not expected)
PYTHON

run python3 -m venv "$folder/venv"
for sqlalchemy in 2.0.58 2.1.9; do
  run "$folder/venv/bin/pip" install -qq --disable-pip-version-check \
    prefect==3.8.8 fastapi==0.150.0 sqlalchemy==$sqlalchemy aiosqlite==0.22.1
  mkdir "$folder/$sqlalchemy"
  run "$folder/venv/bin/python" "$folder/finding.py" "$folder/$sqlalchemy"
done
