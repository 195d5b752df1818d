"""Those who append to a key at once: processes, each started anew, as flow runs are, and one that can be held up."""

import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from threading import Semaphore, Thread, current_thread
from unittest.mock import patch

import httpx
from prefect_artifact_retention import append_rows
from prefect_artifact_retention.tasks.producers import appending
from watchdog import end_with_us

SCRIPT = """
import sys
from prefect import flow
from prefect_artifact_retention import append_markdown, append_rows
kind, key, name, count = sys.argv[1:]

@flow
def write():
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(count)):
        if kind == "rows":
            append_rows([{"name": f"{name}-{number}"}], key=key)
        else:
            append_markdown(f"- {name}-{number}", key=key, separator="\\n")
    print("done", flush=True)

write()
"""


@contextmanager
def appender(api: str, *arguments: object, script: str = SCRIPT) -> Iterator[subprocess.Popen[str]]:
    """A process that appends once told to: of which kind, to which key, by which name, how often. It is killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PREFECT_API_URL": api, "PREFECT_LOGGING_LEVEL": "ERROR"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    end_with_us(process.pid)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen[str]) -> None:
    """Tell it to begin."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def told(process: subprocess.Popen[str]) -> str:
    """Wait for its next line."""
    assert process.stdout
    return process.stdout.readline().strip()


class _KilledError(BaseException):
    """Nothing more is sent, and nobody is to take it for an answer."""


class HeldUp:
    """An appender in a thread, that waits before some of its requests: the second is the creation, the third the check.

    It knows nothing of what this process has read, as one in another process.
    """

    def __init__(self, name: str, requests: Collection[int]) -> None:
        self._requests = requests
        self._sent = 0
        self._is_killed = False
        self._reached, self._told = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=copy_context().run, args=(self._append, name), daemon=True)
        self._send = httpx.HTTPTransport.handle_request

    def _append(self, name: str) -> None:
        with suppress(_KilledError):
            append_rows([{"name": name}], "log")

    def handle(self, transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        """Send a request of anybody, unless it is one of those."""
        if current_thread() is self._thread and request.url.path.startswith("/api/artifacts"):
            self._sent += 1
            if self._sent in self._requests:
                self._reached.release()
                self._told.acquire()
                if self._is_killed:
                    raise _KilledError
        return self._send(transport, request)

    def begin(self) -> None:
        """Wait until it is held up for the first time."""
        self._thread.start()
        assert self._reached.acquire(timeout=120)

    def go_on(self) -> None:
        """Let it go on until it is held up again."""
        self._told.release()
        assert self._reached.acquire(timeout=120)

    def finish(self) -> None:
        """Let it go on to its end."""
        self._told.release()
        self._thread.join(120)
        assert not self._thread.is_alive()

    def kill(self) -> None:
        """Let it send nothing more."""
        self._is_killed = True
        self._told.release()
        self._thread.join(120)


@contextmanager
def held_up(*requests: int, name: str = "held-up") -> Iterator[HeldUp]:
    """Somebody who has begun to append to `log`, and is held up before these requests; in the end, they are killed."""
    with patch.object(appending, "FRESH_SECONDS", -1):
        one = HeldUp(name, requests)

        def handle(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
            return one.handle(transport, request)

        with patch.object(httpx.HTTPTransport, "handle_request", handle):
            one.begin()
            try:
                yield one
            finally:
                one.kill()
