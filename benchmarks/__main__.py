"""The command line: `python -m benchmarks`, with `tests` on the path. `make bench` runs all of them in full size."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect_artifact_retention.flows.local_server import isolated_environment

QUIET = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "PYTHONWARNINGS": "ignore"}


def main() -> int:
    """Run benchmarks, isolated from the user's own Prefect. Return 0 if every target is met, else 1."""
    parser = ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", help="run this benchmark, and print its figures only")
    parser.add_argument("--on", choices=("sqlite", "postgresql"), action="append", help="run on this database only, and print")
    parser.add_argument("--small", action="store_true", help="run at the size that the tests use, and print the figures only")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        environment = isolated_environment(Path(folder)) | QUIET
        os.environ.clear()
        os.environ.update(environment)
        from benchmarks.session import run_all  # noqa: PLC0415 - Prefect reads the environment when it is imported

        return run_all(Path(folder), only=arguments.only or (), on=arguments.on or (), small=arguments.small)


if __name__ == "__main__":
    sys.exit(main())
