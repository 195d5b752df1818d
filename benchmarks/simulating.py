"""How long a simulation takes, and how much memory: of keys that are written daily for a year. It needs no server."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

from command import LAUNCHER
from prefect_artifact_retention.policies import RetentionPolicy, Version
from prefect_artifact_retention.policies.simulation import Course, Simulator
from prefect_artifact_retention.tasks.simulation import Tally, continue_rhythm

from benchmarks.results import Figure, Results
from benchmarks.startup import NO_SERVER

DAYS = 365
PAST = 30
BEGIN = datetime(2026, 11, 28, 3, tzinfo=UTC)
POLICIES = (
    RetentionPolicy(name="last", keep_last=10, keep_within_days=30),
    RetentionPolicy(name="calendar", keep_daily=7, keep_weekly=4, keep_monthly=12, timezone="Europe/Zurich"),
    RetentionPolicy(name="all", keep_all=True),
    RetentionPolicy(name="grace", keep_last=5, grace_days=7, expire_after_days=90),
    RetentionPolicy(name="idle", keep_weekly=8, keep_yearly=2, drop_idle_keys_after_days=60),
)


def simulating(keys: int, results: Results) -> None:
    """Measure a simulation of so many keys in a process of its own, a fifth of them under each of five policies."""
    command = [sys.executable, "-IS", "-c", LAUNCHER, sys.executable, "-m", __name__, str(keys)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)  # noqa: S603 - ours
    seconds, versions = json.loads(done.stdout)
    name = f"simulate: {keys:,} keys, one version a day, {DAYS} days, {len(POLICIES)} policies"
    detail = f"{versions:,} versions, on one core; the time of day and the sizes of each key are its own"
    results.figures.append(Figure(name, NO_SERVER, seconds, "s", target=10, at_most=True, detail=detail))
    megabytes = int(done.stderr.splitlines()[-1]) / 1024
    results.figures.append(Figure(f"{name}: memory", NO_SERVER, megabytes, "MB", target=300, at_most=True))


def simulate(keys: int) -> tuple[float, int]:
    """Simulate so many keys, and return the seconds of the processor and the number of versions."""
    chance = random.Random("keys to simulate")
    began = time.process_time()
    tally = Tally(Simulator(BEGIN, DAYS), POLICIES)
    end, versions = tally.simulator.cleanups[-1], 0
    for number in range(keys):
        newest = BEGIN - timedelta(seconds=chance.randrange(1, 86_400))
        moments = [newest - timedelta(days=age) for age in range(PAST)]
        past = [
            Version(UUID(int=2**64 + age), f"key-{number}", moment, moment, "markdown", chance.randrange(100_000))
            for age, moment in enumerate(moments)
        ]
        course = Course(POLICIES[number % len(POLICIES)], past, continue_rhythm(past, BEGIN, end))
        versions += len(course.versions)
        tally.add(f"key-{number}", course)
    tally.policies_with_keys()
    return time.process_time() - began, versions


if __name__ == "__main__":
    sys.stdout.write(json.dumps(simulate(int(sys.argv[1]))))
