#!/usr/bin/env bash
# Versions: httpx 0.28.1, httpcore 1.0.9.
#
# The extension `trace` of a request is called for each event of its transport, and is the way to count what has really been
# sent, for instance to know whether a DELETE may have reached its server twice. Through a proxy, it is also called for the
# CONNECT that httpcore sends to the proxy for a new tunnel, with the same names of events: the extensions of the request are
# handed on to it. So one DELETE over https seems to have been sent although only the proxy was spoken to, and through a new
# tunnel each time it seems to have been sent twice. `info["request"].method` tells the two apart.
#
# Seen, of one DELETE through a proxy that opens the tunnel and then hangs up:
#   http11.send_request_headers.started  CONNECT
#   http11.send_request_headers.complete CONNECT
#   the request itself was sent: 0 times
#   as described
set -euo pipefail
folder=$(mktemp -d)
export XDG_RUNTIME_DIR=$folder
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cat >"$folder/finding.py" <<'PYTHON'
import asyncio
import sys

import httpx


async def proxy(reader, writer):
    """Open the tunnel, and hang up."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await writer.drain()
    writer.close()


async def main():
    seen = []

    async def trace(event, info):
        if "send_request_headers" in event:
            # The end of an event says nothing of its request; it is that of its beginning.
            method = info["request"].method.decode() if "request" in info else seen[-1][1]
            seen.append((event, method))

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, httpx.AsyncClient(proxy=f"http://127.0.0.1:{port}", trust_env=False) as client:
        try:
            await client.delete("https://artifacts.invalid/1", extensions={"trace": trace})
        except httpx.TransportError:
            pass
    for event, method in seen:
        print(f"{event:36} {method}")
    sent = sum(method == "DELETE" for _event, method in seen)
    print(f"the request itself was sent: {sent} times")
    expected = sent == 0 and ("http11.send_request_headers.started", "CONNECT") in seen
    print("as described" if expected else "CHANGED: this is not what was described")
    sys.exit(not expected)


asyncio.run(main())
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check httpx==0.28.1 httpcore==1.0.9
"$folder/venv/bin/python" "$folder/finding.py"
