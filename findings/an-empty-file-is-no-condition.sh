#!/usr/bin/env bash
# Versions: s3fs 2026.9.0, fsspec 2026.9.0, moto 5.2.5 (a server of the S3 protocol).
#
# `fs.open(path, "xb")` creates an object only if there is none: s3fs sends `If-None-Match: *`, and closing the file raises
# FileExistsError where another one is there. But a file to which nothing was written is put without that condition: closing it
# replaces the object that is there by an empty one, and raises nothing. So it is, too, where the writer gave up before its first
# byte. `put_file(mode="create")` is conditional at any size, the empty one included.
#
# Seen:
#   s3fs 2026.9.0
#   xb, 5 bytes written           FileExistsError   the object has 8 bytes
#   xb, nothing written           nothing raised    the object has 0 bytes
#   xb, gave up before a byte     nothing raised    the object has 0 bytes
#   put_file(create), empty file  FileExistsError   the object has 8 bytes
#   as described
set -euo pipefail
unset "${!AWS_@}"
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
import logging
import sys
from pathlib import Path

import s3fs
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
host, port = server.get_host_and_port()
options = {"key": "testing", "secret": "testing", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
fs = s3fs.S3FileSystem(**options, use_listings_cache=False, skip_instance_cache=True)
fs.mkdir("bucket")
empty = Path(sys.argv[1]) / "empty"
empty.touch()


class GaveUp(Exception):
    pass


def write(content):
    with fs.open("bucket/object", "xb") as file:
        file.write(content)


def give_up():
    try:
        with fs.open("bucket/object", "xb"):
            raise GaveUp
    except GaveUp:
        pass


def put():
    fs.put_file(str(empty), "bucket/object", mode="create")


print(f"s3fs {s3fs.__version__}")
seen = []
for name, act in (
    ("xb, 5 bytes written", lambda: write(b"other")),
    ("xb, nothing written", lambda: write(b"")),
    ("xb, gave up before a byte", give_up),
    ("put_file(create), empty file", put),
):
    fs.pipe_file("bucket/object", b"precious")
    try:
        act()
        raised = "nothing raised"
    except FileExistsError as error:
        raised = type(error).__name__
    size = len(fs.cat_file("bucket/object"))
    seen.append((raised, size))
    print(f"{name:28}  {raised:16}  the object has {size} bytes")
server.stop()
refused, replaced = ("FileExistsError", 8), ("nothing raised", 0)
expected = seen == [refused, replaced, replaced, refused]
print("as described" if expected else "CHANGED: this is not what was described")
sys.exit(not expected)
PYTHON

run python3 -m venv "$folder/venv"
run "$folder/venv/bin/pip" install -qq --disable-pip-version-check s3fs==2026.9.0 fsspec==2026.9.0 'moto[server]==5.2.5'
run "$folder/venv/bin/python" "$folder/finding.py" "$folder"
