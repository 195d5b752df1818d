"""Processes that append to a key at once, each started anew, as flow runs are."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
