"""Observes a run of the cleanup flow: the time of its phases."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

from prefect_artifact_retention.flows.cleanup import LISTENER
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.tasks.report import CleanupReport
from prefect_artifact_retention.tasks.run import Step
from servers import Server

Store = Literal["api", "database"]


@dataclass(frozen=True)
class Observed:
    """One run: its report, and the seconds from the start of planning and of pruning to the last deletion."""

    report: CleanupReport
    plan_and_prune_seconds: float
    prune_seconds: float


class _Phases:
    """The times at which planning began, planning ended, and the last version was deleted."""

    def __init__(self) -> None:
        self.began = self.planned = self.pruned = 0.0

    async def listen(self, step: Step, done: int, total: int) -> None:
        if step == "planning" and not done:
            self.began = time.monotonic()
        if step == "planning" and done == total:
            self.planned = self.pruned = time.monotonic()
        elif step == "deleting":
            self.pruned = time.monotonic()


async def clean_up(server: Server, store: Store, keep_last: int) -> Observed:
    """Run the flow in mode delete, as a deployment does."""
    policy = RetentionPolicy(name="keep some", keep_last=keep_last)
    phases = _Phases()
    token = LISTENER.set(phases.listen)
    try:
        report = await replace(server, store=store).run_flow([policy], mode="delete")
    finally:
        LISTENER.reset(token)
    return Observed(report, phases.pruned - phases.began, phases.pruned - phases.planned)
