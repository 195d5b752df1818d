"""The state of a run that all its steps share: `Run`, with its `Limits`, and a `KeyPlan` for each key to prune."""

from __future__ import annotations

import logging
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, ParamSpec, TypeVar
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect_artifact_retention.policies import RetentionPolicy, Version
from prefect_artifact_retention.policies.evaluation import Judgement
from prefect_artifact_retention.policies.expectation import UNKEYED, Expectations
from prefect_artifact_retention.policies.holds import Hold
from prefect_artifact_retention.policies.loading import OWN_KEYS
from prefect_artifact_retention.stores.holds import Holds
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.stores.store import Collection as ArtifactCollection
from prefect_artifact_retention.stores.store import Mark, Store
from prefect_artifact_retention.tasks.archive import Candidate, RunArchive
from prefect_artifact_retention.tasks.planfile import ShownPlan
from prefect_artifact_retention.tasks.report import CleanupReport, KeyReport, RuleCount

LOGGER = logging.getLogger(__name__)

Step = Literal["planning", "archiving", "deleting", "restoring"]
Listener = Callable[[Step, int, int], Awaitable[None]]
"""Called with the step, how much of it is done, and its total."""

SLOW_SECONDS_PER_REQUEST = 0.1
"""The time between two requests from which on a run works on one key at a time. With more, a checked key waits for the
requests of others, and its check is too old when its deletions are sent."""

MIN_DELETIONS = 10
"""Deletions that a run makes even if its time budget is over, so that repeated runs get on under any budget."""


@dataclass(frozen=True)
class Limits:
    """The limits of a run. 0 is off.

    Attributes:
        max_deletions: The number of versions after which the run stops.
        time_budget_minutes: The minutes after which the run stops; planning takes at most half of them.
        refuse_above_percent: The largest share of the versions of a policy that may be deleted unexpectedly.
        max_task_runs: The number of prune tasks; with more keys, each task prunes a group of them.
        max_log_lines: The number of keys of which the log tells what was deleted.
        archive_keep_days: The days after which the archive loses the data of versions.
        ledger_keep_days: The days after which it loses what is left of them.
        require_accepted_policies: Whether an unattended run is refused by whose policies nothing was deleted yet.
    """

    max_deletions: int = 0
    time_budget_minutes: float = 0
    refuse_above_percent: float = 0
    max_task_runs: int = 25
    max_log_lines: int = 0
    archive_keep_days: float = 0
    ledger_keep_days: float = 0
    require_accepted_policies: bool = False


@dataclass(slots=True)
class KeyPlan:
    """The plan of one key that has stale versions.

    Attributes:
        key: The key; None for all artifacts without one.
        policy: Its policy.
        stale: The stale versions that are still to be deleted, the oldest first.
        report: The result of the key.
        sizes: The sizes of the stale versions.
        collection: The collection when it was judged.
        mark: The state of its versions when they were judged, if the store has marks.
        takes_successor: Whether the version behind the latest is stale.
        verdicts: For each stale version, where its reasons are in the run's archive; empty without an archive.
        attempts: How often versions of the key had changed once they were archived, with nothing deleted in between.
    """

    key: str | None
    policy: RetentionPolicy
    stale: Sequence[UUID]
    report: KeyReport
    sizes: Sequence[int] = ()
    collection: ArtifactCollection | None = None
    mark: Mark | None = None
    takes_successor: bool = False
    verdicts: Sequence[int] = ()
    attempts: int = 0

    @property
    def remaining(self) -> int:
        """Stale versions that are still to be deleted."""
        return self.report.remaining

    def candidates(self, number: int | None = None) -> Iterator[Candidate]:
        """Return the first of the stale versions, or all of them, as they are archived."""
        latest_id = self.collection.latest_id if self.collection else None
        some = zip(self.stale[:number], self.sizes[:number], self.verdicts[:number], strict=True)
        return (Candidate(*each, self.policy.name, self.key if each[0] == latest_id else None) for each in some)

    def drop(self, number: int, *, kept: Sequence[UUID] = ()) -> None:
        """Go on without the first `number` of the stale versions, except some of them, in this order."""
        before = self.stale[:number], self.sizes[:number], self.verdicts[:number]
        self.stale, self.sizes, self.verdicts = self.stale[number:], self.sizes[number:], self.verdicts[number:]
        if kept:
            index = {version_id: place for place, version_id in enumerate(before[0])}
            places = [index[version_id] for version_id in kept]
            self.stale = [*kept, *self.stale]
            self.sizes = array("q", [*(before[1][place] for place in places), *self.sizes])
            if before[2]:
                self.verdicts = array("L", [*(before[2][place] for place in places), *self.verdicts])

    @property
    def is_begun(self) -> bool:
        """Whether anything of the key has been deleted, or found gone or kept by now."""
        return self.report.remaining < self.report.planned


@dataclass(frozen=True, slots=True)
class OffloadPlan:
    """The versions of one key that stay, and whose data are to be moved to the archive.

    Attributes:
        collection: The collection when it was judged.
        policy: Its policy.
        versions: The versions as they were judged, by their ids.
        report: The result of the key.
    """

    collection: ArtifactCollection
    policy: RetentionPolicy
    versions: Mapping[UUID, Version]
    report: KeyReport


@dataclass(slots=True)
class RuleTally:
    """Counts reasons by rule, with the first of each as an example."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, judgement: Judgement, rules: Counter[str], *, keep: bool) -> None:
        """Add the reasons of one judgement, for which versions are kept or for which they are stale."""
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
        """Return the counts for the report, the most frequent rule first."""
        return [RuleCount(rule=rule, versions=count, example=self.examples[rule]) for rule, count in self.counts.most_common()]


class Run:
    """One run: its stores, policies and limits, its plans, and its report so far.

    Deliberately no dataclass and no pydantic model: Prefect traverses those whenever one is passed to a task.

    Attributes:
        server: The Prefect server, on which the run writes its own artifacts.
        store: The store in which versions are read and deleted: the server's API, or its database.
        collections: The collections in the scope of the run, from the key on where the last run stopped.
        first_round: How many of them come before the list wraps around to the first key.
        next_start: Where the next delete run begins; None as long as this run has not changed it.
        holds: The holds on keys that are in force, by key.
        holds_read_at: When their reading began, by the monotonic clock.
        holds_reader: What reads them.
        offloads: What is to be moved to the archive.
        touched: The keys of which a version was deleted, or may have been.
        dangling: The keys whose latest version was not found.
        server_deletes: Whether the server deletes artifacts by itself, too.
        is_stalled: Whether the server takes no deletions.
        is_attended: Whether a person has started it.
        is_declined: Whether a person has said no to what was shown.
        plans_all: Whether planning goes on to the last key however long that takes, and the time budget is for deleting only:
            a person is asked about all that will be planned once there is an answer.
        needs_all_shown: Whether nothing is deleted if more is stale than was shown, so that a person is asked again.
        expectations: What is expected to be stale of each policy.
        unbudgeted_seconds: The time that does not count for the time budget.
        planned_until: The key before which planning stopped; empty if it got to all of them.
        has_all_unkeyed: Whether planning did not stop in the middle of the artifacts without a key.
        is_unsettled: Whether a version behind a latest one was deleted, so that collections must be checked with a delay.
        archive: What the run archives before it deletes; None without an archive.
        shown: The plan that it carries out, and beyond which it deletes nothing; None without one.
    """

    def __init__(  # noqa: PLR0913 - the parts of a run
        self,
        server: Server,
        policies: Sequence[RetentionPolicy],
        report: CleanupReport,
        *,
        store: Store,
        limits: Limits,
        own_runs: Collection[UUID] = frozenset(),
        listeners: Sequence[Listener] = (),
        archive: RunArchive | None = None,
        shown: ShownPlan | None = None,
    ) -> None:
        self.server = server
        self.store = store
        self.policies = policies
        self.report = report
        self.limits = limits
        self.own_runs = frozenset(own_runs)
        self.archive = archive
        self.shown = shown
        self.collections: list[ArtifactCollection] = []
        self.first_round = 0
        self.next_start: str | None = None
        self.plans: list[KeyPlan] = []
        self.offloads: list[OffloadPlan] = []
        self.holds: Mapping[str, Hold] = {}
        self.holds_read_at = float("-inf")
        self.holds_reader = Holds(server.connection)
        self.dangling: set[str] = set()
        self.server_deletes = False
        self.is_stalled = False
        self.is_attended = True
        self.is_declined = False
        self.plans_all = False
        self.unbudgeted_seconds = 0.0
        self.needs_all_shown = False
        self.touched: set[str] = set()
        self.is_unsettled = False
        self.kept_by = RuleTally()
        self.condemned_by = RuleTally()
        self.expectations = Expectations(report.now)
        self.planned_until = ""
        self.has_all_unkeyed = True
        self.planned = 0
        self.deletions_started = 0
        self.deletions_settled = 0
        self._listeners = list(listeners)
        self._began = time.monotonic()

    @property
    def now(self) -> datetime:
        """The moment from which ages are counted: when the run began, or when the plan was made, or for which it is made."""
        return self.report.planned_at or self.report.planned_for

    @property
    def moves_on(self) -> bool:
        """Whether the next delete run begins where this one stops: not after a plan file, which is for what somebody chose."""
        return self.shown is None or self.needs_all_shown

    @property
    def is_partial(self) -> bool:
        """Whether planning stopped before all versions were evaluated."""
        return bool(self.planned_until) or not self.has_all_unkeyed

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    @property
    def budget_seconds(self) -> float:
        """Seconds that the run may take; infinite without a time budget."""
        minutes = self.limits.time_budget_minutes
        return timedelta(minutes=minutes).total_seconds() if minutes else float("inf")

    @property
    def seconds_per_request(self) -> float:
        """Seconds between two requests at the rate limit; 0 without one."""
        return self.server.connection.seconds_per_request

    def at_once(self, most: int) -> int:
        """Return how many keys to work on at once: one if the rate limit makes them wait for each other anyway."""
        return 1 if self.seconds_per_request >= SLOW_SECONDS_PER_REQUEST else most

    def hold_on(self, key: str | None) -> str:
        """Return the reason for which a hold keeps all versions of a key; empty if there is none."""
        hold = self.holds.get(key or "")
        return hold.describe() if hold else ""

    def has_planning_time(self) -> bool:
        """Whether planning has no budget, or used less than half of it; the other half is for deleting."""
        return self.plans_all or self.seconds < self.budget_seconds / 2

    def check_budgets(self) -> bool:
        """Return whether the budgets of time and number allow another deletion; if not, mark the run as unfinished.

        Return False, too, once the server takes no deletions; the run has then failed.
        """
        if self.is_stalled:
            return False
        limit = self.limits.max_deletions
        late = self.seconds - self.unbudgeted_seconds >= self.budget_seconds and self.deletions_started >= MIN_DELETIONS
        if late or (limit and self.deletions_started >= limit):
            self.report.outcome = "unfinished"
            return False
        return True

    def room(self) -> float:
        """Return how many deletions the budgets of time and number allow; if none, mark the run as unfinished."""
        if not self.check_budgets():
            return 0
        limit = self.limits.max_deletions
        return limit - self.deletions_started if limit else float("inf")

    def take_deletion(self) -> bool:
        """Take one deletion from the budgets. Return False if a budget is used up."""
        if not self.check_budgets():
            return False
        self.deletions_started += 1
        return True

    def return_deletions(self, number: int) -> None:
        """Return deletions to the budgets that were not done after all."""
        self.deletions_started -= number

    def give_up(self, reason: str) -> None:
        """Take no further deletion: the run has failed."""
        if not self.is_stalled:
            self.is_stalled = True
            self.report.errors.append(reason)

    @contextmanager
    def housekeeping(self) -> Iterator[None]:
        """Delete outside the budgets and the archive: the package's own keys would use up small ones in every run.

        Nobody wants the progress of last month's runs back.
        """
        limits, started, archive = self.limits, self.deletions_started, self.archive
        self.limits, self.archive = replace(limits, max_deletions=0, time_budget_minutes=0), None
        try:
            yield
        finally:
            self.limits, self.deletions_started, self.archive = limits, started, archive

    def find_next_start(self) -> str:
        """Return where the next delete run is to begin: with what this one has not reached; empty if it has reached all.

        A key of which something was deleted is not the next one: it may get new stale versions faster than they can be deleted
        within the budgets, and no other key would ever be pruned.
        """
        plan = next((plan for plan in self.user_plans if plan.remaining and not plan.report.error), None)
        if plan is None:
            return self.report.stopped_at
        keys = [each.key for each in self.collections]
        unkeyed = [] if self.report.scope else [UNKEYED]
        places = [*keys[: self.first_round], *unkeyed, *keys[self.first_round :]]
        place = UNKEYED if plan.key is None else plan.key
        if not plan.is_begun:
            return place
        following = places[places.index(place) + 1 :] + places
        return next((each for each in following if each not in OWN_KEYS), place)

    @property
    def user_plans(self) -> list[KeyPlan]:
        """The plans of all keys but the package's own."""
        return [plan for plan in self.plans if plan.key not in OWN_KEYS]

    @property
    def own_plans(self) -> list[KeyPlan]:
        """The plans of the package's own keys."""
        return [plan for plan in self.plans if plan.key in OWN_KEYS]

    def add_plan(self, plan: KeyPlan) -> None:
        """Add the plan of a key."""
        self.plans.append(plan)
        self.planned += len(plan.stale)

    def drop_plans(self, policies: AbstractSet[str]) -> None:
        """Leave alone the keys of some policies, which are given by name."""
        self.plans = [plan for plan in self.plans if plan.policy.name not in policies]
        self.offloads = [plan for plan in self.offloads if plan.policy.name not in policies]
        self.planned = sum(len(plan.stale) for plan in self.plans)

    def listen(self, listener: Listener) -> None:
        """Add a listener."""
        self._listeners.append(listener)

    async def notify(self, step: Step, done: int, total: int) -> None:
        """Call every listener with the progress of a step. A listener that fails changes nothing for the run."""
        for listener in self._listeners:
            try:
                await listener(step, done, total)
            except Exception:
                # The reader of a progress bar may have gone, the disk of a log may be full.
                LOGGER.debug("A listener failed while %s", step, exc_info=True)

    async def notify_deletion(self) -> None:
        """Count a deletion as done, and notify every listener."""
        self.deletions_settled += 1
        await self.notify_deleting()

    async def notify_archiving(self) -> None:
        """Notify every listener that the run is archiving what it deletes next."""
        await self.notify("archiving", self.deletions_settled, self.planned)

    async def notify_deleting(self) -> None:
        """Notify every listener that the run is active; it may read for long before the next deletion."""
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
