"""The command line in a process of its own, measured whole."""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_artifact_retention.flows.local_server import LocalServer

COMMAND = str(Path(sys.executable).parent / "artifact-retention")


@dataclass(frozen=True)
class Measured:
    """What one run of the command took, and its report."""

    report: Mapping[str, Any]
    seconds: float
    megabytes: float
    """The peak of the process's memory."""


def measure(local: LocalServer, *arguments: str, **variables: str) -> Measured:
    """Run `artifact-retention` with these arguments and `--json` against a server, with more variables in its environment."""
    output = local.folder / "report.json"
    began = time.monotonic()
    with output.open("wb") as stdout, (local.folder / "stderr.log").open("wb") as stderr:
        pid = os.posix_spawn(
            COMMAND,
            [COMMAND, *arguments, "--json"],
            local.environment | variables,
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), number) for file, number in ((stdout, 1), (stderr, 2))],
        )
        _, _, used = os.wait4(pid, 0)
    report = json.loads(output.read_text(encoding="utf-8"))
    assert "error" not in report, report
    return Measured(report, time.monotonic() - began, used.ru_maxrss / 1024)
