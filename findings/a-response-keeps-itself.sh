#!/usr/bin/env bash
# Versions: httpx 0.28.1, httpcore 1.0.9.
#
# A response of `httpx.AsyncClient` that was read is in a reference cycle: its `stream` is a wrapper that refers to the response.
# So its body is not freed when the last name for it goes, but by the next run of Python's cyclic garbage collector. Who turns the
# collector off, as one does while many small objects are made, keeps every body that was ever read. Replacing the stream
# (`response.stream = httpx.ByteStream(b"")`) breaks the cycle; on a copy of the response, as a client that copies the
# response hands it out, that changes nothing, because the cycle is the original's.
#
# Seen:
#   responses in memory after 20 were read, with the collector off
#   as they come                   20, with bodies of 2,000,000 bytes
#   stream replaced                 0
#   stream replaced on a copy      20, with bodies of 2,000,000 bytes
#   as described
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
cat >"$folder/finding.py" <<'PYTHON'
import asyncio
import copy
import gc
import sys

import httpx

BODY = b"x" * 100_000


def answer(_request):
    return httpx.Response(200, content=BODY)


async def read(client, mend):
    response = await client.get("http://server.invalid/")
    assert response.content == BODY
    mend(response)


def replaced(response):
    response.stream = httpx.ByteStream(b"")


async def left(mend):
    gc.collect()
    gc.disable()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        for _number in range(20):
            await read(client, mend)
        found = [each for each in gc.get_objects() if isinstance(each, httpx.Response)]
        counted = len(found), sum(len(each.content) for each in found)
    gc.enable()
    return counted


print("responses in memory after 20 were read, with the collector off")
seen = []
for name, mend in (
    ("as they come", lambda response: None),
    ("stream replaced", replaced),
    ("stream replaced on a copy", lambda response: replaced(copy.copy(response))),
):
    number, size = asyncio.run(left(mend))
    seen.append((number, size))
    print(f"{name:28} {number:4}" + (f", with bodies of {size:,} bytes" if number else ""))
if seen != [(20, 2_000_000), (0, 0), (20, 2_000_000)]:
    sys.exit("another behaviour than described")
print("as described")
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check httpx==0.28.1 httpcore==1.0.9
"$folder/venv/bin/python" "$folder/finding.py"
