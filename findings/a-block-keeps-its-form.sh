#!/usr/bin/env bash
# Versions: Prefect 3.8.8 (server), SQLite.
#
# A block of Prefect has a schema, of which the UI makes its form. Where a new release of a package has another schema, the block
# can be given that by `PATCH /block_documents/ID` with its id. Sent alone, the server answers 204 No Content, as for a change that
# was made, and the block keeps its old schema: the UI goes on showing the old form, in which the new fields are missing. With
# `"data": {}` beside it, which is merged into what is there and changes no value, the same request changes the schema.
#
# Seen:
#   PATCH {"block_schema_id": NEW}               204, the schema is the old one
#   PATCH {"block_schema_id": NEW, "data": {}}   204, the schema is the new one, the data are as they were
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


def schema(*names):
    """The fields of a block with some texts."""
    return {"title": "Rules", "type": "object", "properties": {name: {"title": name, "type": "string"} for name in names}}


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder = Path(sys.argv[1]) / "server"
with prefect_server(folder, f"sqlite+aiosqlite:///{folder}/prefect.db") as address, httpx.Client(base_url=address, timeout=60) as client:
    def post(path, body):
        return client.post(path, json=body).raise_for_status().json()["id"]

    kind = post("/block_types/", {"name": "Rules", "slug": "rules"})
    old, new = (
        post("/block_schemas/", {"fields": schema(*names), "block_type_id": kind, "capabilities": []})
        for names in (("keep",), ("keep", "hold"))
    )
    data = {"keep": "ten"}
    block = post("/block_documents/", {"name": "mine", "data": data, "block_type_id": kind, "block_schema_id": old})
    seen = []
    for change, shown in (({}, "{\"block_schema_id\": NEW}"), ({"data": {}}, "{\"block_schema_id\": NEW, \"data\": {}}")):
        status = client.patch(f"/block_documents/{block}", json={"block_schema_id": new, **change}).status_code
        found = client.get(f"/block_documents/{block}").raise_for_status().json()
        which = {old: "old", new: "new"}[found["block_schema_id"]]
        same = ", the data are as they were" if change and found["data"] == data else ""
        print(f"PATCH {shown:38} {status}, the schema is the {which} one{same}")
        seen.append((status, which, found["data"]))
    expected = seen == [(204, "old", data), (204, "new", data)]
print("as described" if expected else "CHANGED: this is not what was described")
sys.exit(not expected)
PYTHON

run python3 -m venv "$folder/venv"
run "$folder/venv/bin/pip" install -qq --disable-pip-version-check \
  prefect==3.8.8 fastapi==0.150.0 sqlalchemy==2.0.58 aiosqlite==0.22.1
run "$folder/venv/bin/python" "$folder/finding.py" "$folder"
