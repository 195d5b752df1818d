#!/usr/bin/env bash
# Versions: Prefect 3.8.8 (client, command line and server), SQLite.
#
# `prefect artifact delete KEY` reads one page of the key's versions and deletes these: 200 of them, however many there are.
# The page is sorted by id, and ids are random, so the 200 are neither the oldest nor the newest: what is left is a random
# sample of the history. The command says how many it has deleted, not that there are others, and its exit code is 0.
#
# Seen:
#   $ prefect artifact delete report
#   Deleted 200 artifact(s) with key 'report'.
#   (exit code 0)
#   versions, from the oldest to the newest; # is left, . is deleted:
#   .#..#######..#...#....#...#...##.#....#.##.#.####.##...##..#...#.##..#.#.#.....#....##..............
#   #..##.###.#.....#....#.#..#.###.......#...###.#....#.###..#....#..##.#.....#....#.##..#.........#...
#   #.#.#.........#.....#..#..........##..##.#....#.....#.#.##........#.#.###.##.##..#........#.#.#.....
#   100 of 300 versions are left, in 135 stretches of deleted and kept ones
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

VERSIONS = 300


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


def delete(address, key):
    """Let Prefect's own command delete a key."""
    environment = os.environ | {"PREFECT_HOME": str(folder), "PREFECT_API_URL": address, "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "prefect", "artifact", "delete", key]
    done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    print(f"$ prefect artifact delete {key}\n{done.stdout.strip()}\n(exit code {done.returncode})")
    return done.returncode


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder = Path(sys.argv[1]) / "server"
with prefect_server(folder, f"sqlite+aiosqlite:///{folder}/prefect.db") as address, httpx.Client(base_url=address, timeout=60) as client:
    ids = []
    for number in range(VERSIONS):
        artifact = {"key": "report", "type": "markdown", "data": f"version {number}"}
        ids.append(client.post("/artifacts/", json=artifact).raise_for_status().json()["id"])
    code = delete(address, "report")
    left = {each["id"] for each in client.post("/artifacts/filter", json={}).raise_for_status().json()}
    strip = "".join("#" if each in left else "." for each in ids)
    print("versions, from the oldest to the newest; # is left, . is deleted:")
    print("\n".join(strip[start : start + 100] for start in range(0, VERSIONS, 100)))
    changes = sum(one != other for one, other in zip(strip, strip[1:], strict=False))
    print(f"{len(left)} of {VERSIONS} versions are left, in {changes + 1} stretches of deleted and kept ones")
    expected = code == 0 and len(left) == VERSIONS - 200 and changes > 50
print("as described" if expected else "CHANGED: this is not what was described")
sys.exit(not expected)
PYTHON

run python3 -m venv "$folder/venv"
run "$folder/venv/bin/pip" install -qq --disable-pip-version-check \
  prefect==3.8.8 fastapi==0.150.0 sqlalchemy==2.0.58 aiosqlite==0.22.1
run "$folder/venv/bin/python" "$folder/finding.py" "$folder"
