"""The command line in a process of its own, measured whole."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_artifact_retention.flows.local_server import LocalServer

COMMAND = str(Path(sys.executable).parent / "artifact-retention")


def heed_ctrl_c() -> None:
    """Let a new process end by SIGINT, also where the tests themselves run in a shell's background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


LAUNCHER = """
import os, sys
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
print(os.wait4(process, 0)[2].ru_maxrss, file=sys.stderr)
"""
"""Starts the command from a small process: to Linux, its peak of memory includes what its parent had when it started it."""


@dataclass(frozen=True)
class Measured:
    """What one run of the command took, and its report."""

    report: Mapping[str, Any]
    seconds: float
    megabytes: float
    """The peak of the process's memory."""


def measure(local: LocalServer, *arguments: str, **variables: str) -> Measured:
    """Run `artifact-retention` with these arguments and `--json` against a server, with more variables in its environment."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-IS", "-c", LAUNCHER, COMMAND, *arguments, "--json"],
        cwd=local.folder,
        env=local.environment | variables,
        check=False,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    assert "error" not in report, report
    return Measured(report, time.monotonic() - began, int(done.stderr.splitlines()[-1]) / 1024)
