"""A sweep over many targets, beside one over a single target. They are servers in memory, far away, all in one process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import uvicorn
from command import LAUNCHER
from database import series
from fake import FakeServer
from filling import Size
from prefect_artifact_retention.flows.local_server import LocalServer
from prefect_artifact_retention.tasks.sweep import SweepReport

LATENCY_SECONDS = 0.1
"""How long each answer takes. Far more than the client needs for a request, or its one processor is what is measured."""

POLICIES = [{"name": "keep all but one", "keep_last": 2}]

AT_ONCE = 4
"""Targets at work at the same time, as by default."""

CLIENT = f"""
import asyncio
from prefect_artifact_retention.flows.sweep import artifact_sweep
print(asyncio.run(artifact_sweep(mode="delete", at_once={AT_ONCE})).model_dump_json())
"""


@contextmanager
def targets(number: int, size: Size) -> Iterator[list[str]]:
    """Serve so many targets, and yield the addresses of their APIs. They end with the context, or with this process."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [
            sys.executable,
            "-m",
            "benchmarks.sweeping",
            *map(str, (listening.fileno(), number, size.keys, size.versions)),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        # Leaving the context closes its standard input, which ends it, and waits for it.
        with subprocess.Popen(  # noqa: S603 - ourselves
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listening.fileno()], env=environment
        ) as process:
            assert process.stdout is not None  # noqa: S101 - for the type
            process.stdout.readline()
            yield [f"{address}/{each}/api" for each in range(number)]


def sweep(home: LocalServer, addresses: Sequence[str]) -> tuple[SweepReport, float]:
    """Delete on these targets, in a process of its own. Return the report, and the peak of memory in MB."""
    tables = "".join(f'[[targets]]\nname = "target-{each}"\napi_url = "{there}"\n' for each, there in enumerate(addresses))
    with TemporaryDirectory() as folder:
        config = Path(folder, "retention.toml")
        config.write_text(tables, encoding="utf-8")
        variables = {"ARTIFACT_RETENTION_CONFIG": str(config), "ARTIFACT_RETENTION_POLICIES": json.dumps(POLICIES)}
        command = [sys.executable, "-IS", "-c", LAUNCHER, sys.executable, "-c", CLIENT]
        done = subprocess.run(  # noqa: S603 - our own interpreter, our own arguments
            command, cwd=folder, env=home.environment | variables, check=True, capture_output=True, text=True
        )
    report = SweepReport.model_validate_json(done.stdout.splitlines()[-1])
    return report, int(done.stderr.splitlines()[-1]) / 1024


class _Targets:
    """An application of ASGI: each target below a number of its own."""

    def __init__(self, number: int) -> None:
        self.fakes = [FakeServer() for _ in range(number)]

    async def fill(self, size: Size) -> None:
        for fake in self.fakes:
            fake.takes_several = True
            fake.end_run(fake.start_run())
            keys = (f"key-{number:06}" for number in range(size.keys))
            await fake.database.insert([row for key in keys for row in series(key, range(1, size.versions + 1))])

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401 - as ASGI has them
        content, is_whole = b"", False
        while not is_whole:
            message = await receive()
            content += message["body"]
            is_whole = not message["more_body"]
        await asyncio.sleep(LATENCY_SECONDS)
        _, target, path = scope["path"].split("/", 2)
        answer = await self.fakes[int(target)].answer(httpx.Request(scope["method"], f"http://fake/{path}", content=content))
        await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.headers.raw})
        await send({"type": "http.response.body", "body": answer.content})


async def serve(listening: socket.socket, number: int, size: Size) -> None:
    """Serve the targets until the standard input ends."""
    application = _Targets(number)
    await application.fill(size)
    config = uvicorn.Config(application, lifespan="off", log_level="warning", date_header=False, timeout_keep_alive=75)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listening]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await serving


if __name__ == "__main__":
    descriptor, how_many, keys, versions = map(int, sys.argv[1:])
    asyncio.run(serve(socket.socket(fileno=descriptor), how_many, Size(keys, versions)))
