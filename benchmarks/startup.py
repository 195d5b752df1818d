"""How long the command takes until it begins, beside a Python that imports what it cannot do without. It needs no server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from command import COMMAND

from benchmarks.results import Figure, Results

BARE = (sys.executable, "-c", "import pydantic_settings, cyclopts")

COMMANDS = {
    "artifact-retention policies check": (COMMAND, "policies", "check"),
    "artifact-retention --help": (COMMAND, "--help"),
}

POLICIES = json.dumps([{"name": "keep some", "keep_last": 10}])

NO_SERVER = "none"
"""What stands where other figures name the database of their server."""


def start(folder: Path, rounds: int, results: Results) -> None:
    """Measure the start of commands, in turns, the fastest of each; and count the modules of Prefect that they import."""
    environment = {**os.environ, "ARTIFACT_RETENTION_POLICIES": POLICIES}
    best = dict.fromkeys([BARE, *COMMANDS.values()], float("inf"))
    for _round in range(rounds):
        for command, fastest in best.items():
            began = time.monotonic()
            _run(command, folder, environment)
            best[command] = min(fastest, time.monotonic() - began)
    for name, command in COMMANDS.items():
        detail = f"{best[command]:.2f} of {best[BARE]:.2f} s, the fastest of {rounds}"
        what = f'{name}: seconds against a bare `python -c "import pydantic_settings, cyclopts"`'
        results.figures.append(Figure(what, NO_SERVER, best[command] / best[BARE], target=1.5, at_most=True, detail=detail))
        imported = _imported(command, folder, environment)
        of_prefect = sum(module == "prefect" or module.startswith("prefect.") for module in imported)
        detail = f"{len(imported):,} modules in all"
        what = f"{name}: modules of Prefect imported"
        results.figures.append(Figure(what, NO_SERVER, of_prefect, target=0, at_most=True, detail=detail))


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)  # noqa: S603 - ours
    return done.stderr


def _imported(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Return the names of the modules that a command imports, by Python's own log of them."""
    log = _run(command, folder, {**environment, "PYTHONPROFILEIMPORTTIME": "1"})
    return [line.split("|")[-1].strip() for line in log.splitlines() if line.startswith("import time:")]
