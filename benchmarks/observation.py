"""Observes a run of the cleanup flow: the time of its phases, its requests, and the rows that it writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    """One run: its report, the seconds that it took in all, for planning and for pruning, and the number of its requests."""

    report: CleanupReport
    seconds: float
    plan_seconds: float
    prune_seconds: float
    requests: int


class _Requests(logging.Handler):
    """Counts the requests of httpx, ours and Prefect's own, by its log, which has one line for each."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.count = 0

    def emit(self, _record: logging.LogRecord) -> None:
        self.count += 1


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


@contextmanager
def _observed() -> Iterator[tuple[_Requests, _Phases]]:
    requests, phases = _Requests(), _Phases()
    logger = logging.getLogger("httpx")
    before = logger.level, logger.propagate
    logger.addHandler(requests)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    token = LISTENER.set(phases.listen)
    try:
        yield requests, phases
    finally:
        LISTENER.reset(token)
        logger.removeHandler(requests)
        logger.level, logger.propagate = before


async def clean_up(server: Server, store: Store, keep_last: int) -> Observed:
    """Run the flow in mode delete, as a deployment does."""
    policy = RetentionPolicy(name="keep some", keep_last=keep_last)
    with _observed() as (requests, phases):
        began = time.monotonic()
        report = await replace(server, store=store).run_flow([policy], mode="delete")
        return Observed(
            report,
            seconds=time.monotonic() - began,
            plan_seconds=phases.planned - phases.began,
            prune_seconds=phases.pruned - phases.planned,
            requests=requests.count,
        )
