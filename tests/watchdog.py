"""Ends what the tests have started once the process that started it is gone, in whatever way: Ctrl-C, SIGKILL, pytest-xdist.

A process of its own reads a pipe until it ends, which is when nobody holds its other end any more. (A Prefect server does so
itself, see `local_server`.)
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

PATIENCE_SECONDS = 5
"""How long a process may take to end by itself."""


def end_with_us(what: int | Path) -> None:
    """Have a process with all that it starts end with this one; or the PostgreSQL that has its data in a folder."""
    pipe = _watchdog().stdin
    assert pipe
    pipe.write(f"{what}\n".encode())
    pipe.flush()


@cache
def _watchdog() -> subprocess.Popen[bytes]:
    # In a session of its own, which Ctrl-C does not reach.
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, start_new_session=True)


def _watch(lines: Iterable[str]) -> None:
    processes: list[psutil.Process] = []
    folders: list[Path] = []
    for line in map(str.strip, lines):
        if line.isdigit():
            # Found now, so that another process which gets the same number later is left alone.
            with suppress(psutil.NoSuchProcess):
                processes.append(psutil.Process(int(line)))
        else:
            folders.append(Path(line))
    for process in processes:
        _end(process, signal.SIGTERM)
    for folder in folders:
        with suppress(OSError, psutil.NoSuchProcess):
            _end(psutil.Process(int((folder / "postmaster.pid").read_text().split()[0])), signal.SIGINT)
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: psutil.Process, how: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        process.send_signal(how)
        _gone, alive = psutil.wait_procs(family, PATIENCE_SECONDS)
        for each in alive:
            with suppress(psutil.NoSuchProcess):
                each.kill()


if __name__ == "__main__":
    _watch(sys.stdin)
