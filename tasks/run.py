"""What all steps of one run share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, ParamSpec, TypeVar
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.policies.evaluation import Judgement
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.store import Collection as ArtifactCollection
from prefect_artifact_retention.stores.store import Mark, Store
from prefect_artifact_retention.tasks.report import CleanupReport, KeyReport, RuleCount

Step = Literal["planning", "deleting"]
Listener = Callable[[Step, int, int], Awaitable[None]]
"""Told of each step how much of it is done, of how much."""

MAX_DEFERRED_DELETIONS = 15
MIN_STALL_SECONDS = 60
"""A server that puts off as many deletions, for as long, and takes none in between, takes none: something holds its database,
say. A run over many keys would look at each of them again and again."""

MIN_DELETIONS = 10
"""What a run deletes even where its time budget is over by then: under any budget, runs get ahead."""


@dataclass(frozen=True)
class Limits:
    """What bounds a run. 0 is off.

    Attributes:
        max_deletions: Versions deleted at most.
        time_budget_minutes: Minutes after which the run stops; planning takes at most half of them.
        refuse_above_percent: Refuse to delete a larger share than this of the versions, of the run or of any policy.
        max_task_runs: Prune tasks at most; more keys are packed together.
    """

    max_deletions: int = 0
    time_budget_minutes: float = 0
    refuse_above_percent: float = 0
    max_task_runs: int = 25


@dataclass(slots=True)
class KeyPlan:
    """The stale versions of one key (None: of all artifacts without one), oldest first, and the key's line of the report.

    Attributes:
        sizes: The bytes of each of them.
        collection: The collection as it was when it was judged.
        mark: The state of its versions as it was then, where the store can tell.
        takes_successor: Whether the version that follows the latest is among them.
    """

    key: str | None
    policy: RetentionPolicy
    stale: Sequence[UUID]
    report: KeyReport
    sizes: Sequence[int] = ()
    collection: ArtifactCollection | None = None
    mark: Mark | None = None
    takes_successor: bool = False

    @property
    def remaining(self) -> int:
        """Stale versions that still wait to be deleted."""
        return self.report.remaining


@dataclass(slots=True)
class RuleTally:
    """Counts verdicts by rule, with the words of the first of each as an example."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, judgement: Judgement, rules: Counter[str], *, keep: bool) -> None:
        """Count what each rule has kept or condemned."""
        self.counts.update(rules)
        for rule in rules.keys() - self.examples.keys():
            self.examples[rule] = next(
                text
                for verdict in judgement
                if verdict.keep == keep
                for name, text in zip(verdict.rules, verdict.reasons, strict=True)
                if name == rule
            )

    def lines(self) -> list[RuleCount]:
        """The tally for the report, the most frequent rule first."""
        return [RuleCount(rule=rule, versions=count, example=self.examples[rule]) for rule, count in self.counts.most_common()]


class Run:
    """One run: where versions live, what is kept, what bounds it, and its report as far as it stands.

    Deliberately no dataclass and no pydantic model: Prefect walks through those whenever one is passed to a task.

    Attributes:
        server: The Prefect API, for what the run writes itself: its progress, its report, its history.
        store: Where versions are read and deleted; the same API, or the database.
        touched: Keys of which something was deleted, or may have been.
        dangling: Keys that were found without their latest version.
        server_deletes: The server deletes artifacts by itself, too.
        is_stalled: The server takes no deletions.
    """

    def __init__(  # noqa: PLR0913 - what a run consists of
        self,
        server: ApiStore,
        policies: Sequence[RetentionPolicy],
        report: CleanupReport,
        *,
        store: Store,
        limits: Limits,
        own_runs: Collection[UUID] = frozenset(),
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.server = server
        self.store = store
        self.policies = policies
        self.report = report
        self.limits = limits
        self.own_runs = frozenset(own_runs)
        self.collections: list[ArtifactCollection] = []
        self.first_round = 0
        self.plans: list[KeyPlan] = []
        self.dangling: set[str] = set()
        self.server_deletes = False
        self.is_stalled = False
        self.touched: set[str] = set()
        self.is_unsettled = False
        self.kept_by = RuleTally()
        self.condemned_by = RuleTally()
        self.planned = 0
        self.deletions_started = 0
        self.deletions_settled = 0
        self._listeners = list(listeners)
        self._began = time.monotonic()
        self._deferred = 0
        self._deferred_since = 0.0
        self._settled = -1

    def reconnect(self, server: ApiStore) -> None:
        """Go on through another connection, the one that served so far being in the middle of something."""
        if self.store is self.server:
            self.store = server
        self.server = server

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    @property
    def budget_seconds(self) -> float:
        """Seconds that the run may take; infinite without a time budget."""
        minutes = self.limits.time_budget_minutes
        return timedelta(minutes=minutes).total_seconds() if minutes else float("inf")

    def has_planning_time(self) -> bool:
        """Whether planning still has time: half of the budget, so that there is time to delete what is planned."""
        return self.seconds < self.budget_seconds / 2

    def check_budgets(self) -> bool:
        """Whether the budgets of time and number still allow a deletion; if not, the run is unfinished.

        Nor does it go on where the server takes no deletions; then it has failed.
        """
        if self.is_stalled:
            return False
        limit = self.limits.max_deletions
        late = self.seconds >= self.budget_seconds and self.deletions_started >= MIN_DELETIONS
        if late or (limit and self.deletions_started >= limit):
            self.report.outcome = "unfinished"
            return False
        return True

    def room(self) -> float:
        """How many deletions the budgets of time and number still allow; if none, the run is unfinished."""
        if not self.check_budgets():
            return 0
        limit = self.limits.max_deletions
        return limit - self.deletions_started if limit else float("inf")

    def take_deletion(self) -> bool:
        """Take one deletion from the budgets of time and number; False once one is used up."""
        if not self.check_budgets():
            return False
        self.deletions_started += 1
        return True

    def defer_deletion(self) -> None:
        """Take note of a deletion that was put off, and give the run up where that goes on with nothing gone in between."""
        settled = sum(plan.report.deleted + plan.report.already_gone for plan in self.plans)
        if settled != self._settled:
            self._settled, self._deferred, self._deferred_since = settled, 0, time.monotonic()
        self._deferred += 1
        stalled_for = time.monotonic() - self._deferred_since
        if self._deferred >= MAX_DEFERRED_DELETIONS and stalled_for >= MIN_STALL_SECONDS and not self.is_stalled:
            self.is_stalled = True
            self.report.errors.append(f"the Prefect server took no deletion for {stalled_for:.0f} seconds")

    def add_plan(self, plan: KeyPlan) -> None:
        """Take up the stale versions of one more key."""
        self.plans.append(plan)
        self.planned += len(plan.stale)

    def listen(self, listener: Listener) -> None:
        """Tell this listener, too, how far the run is."""
        self._listeners.append(listener)

    async def notify(self, step: Step, done: int, total: int) -> None:
        """Tell every listener how far the run is."""
        for listener in self._listeners:
            await listener(step, done, total)

    async def notify_deletion(self) -> None:
        """Count one more version that has gone, and tell every listener."""
        self.deletions_settled += 1
        await self.notify_deleting()

    async def notify_deleting(self) -> None:
        """Tell every listener that the run is still at it, though it may look for long before anything goes."""
        await self.notify("deleting", self.deletions_settled, self.planned)


P = ParamSpec("P")
R = TypeVar("R")


def as_task(step: Callable[P, Awaitable[R]], name: str) -> Callable[P, Awaitable[R]]:
    """Make a step of the run a Prefect task wherever a flow run is going on; elsewhere it stays the plain function.

    Nothing is cached, stored or retried, a step's requests are.
    """
    prefect_task = task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False, retries=0)(step)

    def call(*args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        return (prefect_task if in_flow_run() else step)(*args, **kwargs)

    return call


def in_flow_run() -> bool:
    """Whether Prefect's engine runs this as a flow, with tasks, an id and a log of their own."""
    return FlowRunContext.get() is not None
