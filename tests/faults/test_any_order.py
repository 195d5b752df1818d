"""Producers, people, flow runs, cleanups and their faults, in any order: nothing that a policy keeps is ever lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, ClassVar
from uuid import UUID

import httpx
import pytest
import steps
from chance import SEED
from fake import FakeServer
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from injection import FAULTS, Fault, Send, line
from oracle import kept_ids
from prefect.server.schemas.actions import ArtifactCreate
from prefect_artifact_retention.flows.cleanup import artifact_cleanup
from prefect_artifact_retention.policies import RetentionError, RetentionPolicy, Version
from prefect_artifact_retention.tasks.report import CleanupFailed, CleanupReport
from scenario import shrink
from servers import long

POLICIES = (
    RetentionPolicy(name="loads", match_keys=["load-*"], keep_last=2, drop_idle_keys_after_days=5),
    RetentionPolicy(name="audit", match_keys=["audit"], keep_all=True),
    RetentionPolicy(name="daily", match_keys=["daily"], keep_daily=2, keep_oldest=True),
    RetentionPolicy(name="personal", match_keys=["personal"], keep_last=3, expire_after_days=4),
    RetentionPolicy(name="graceful", match_keys=["graceful"], keep_last=1, grace_days=1),
    RetentionPolicy(name="one", match_keys=["one-*"], keep_last=1),
    RetentionPolicy(name="reports", match_keys=["report*"], keep_last=2, keep_within_days=1),
    RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=3),
)
UNMANAGED = "unmanaged"
KEYS = ("load-1", "load-2", "audit", "daily", "personal", "graceful", "one-1", "report", "report-2", UNMANAGED, None)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
DELETING = b'"artifact-retention-phase":"deleting"'
HOLD, TTL = "retention-hold", "retention-ttl-days"
METADATA = st.sampled_from([None, {}, {HOLD: "true"}, {HOLD: "2026-11-26"}, {HOLD: "??"}, {TTL: "2"}, {TTL: "0.5"}])
AFTER_THE_CLOCK = 2
"""The first request of a run after it has read the time of the server: what comes then is newer than the run."""

PLACES = st.integers(0, 10**6)
"""Which of those that there are just now."""


class AnyOrder(RuleBasedStateMachine):
    """A server, those who use it, and our runs, whose every result is held against an oracle."""

    server: ClassVar[FakeServer]
    monkeypatch: ClassVar[pytest.MonkeyPatch]

    def __init__(self) -> None:
        super().__init__()
        self.server.reset()
        self.loop = asyncio.Runner()
        self.runs: list[UUID] = []
        self.deleted_by_people: set[UUID] = set()
        self.keys: dict[UUID, str | None] = {}

    def teardown(self) -> None:
        """Close the event loop."""
        self.loop.close()

    # --- producers and people

    @initialize(
        histories=st.lists(st.tuples(st.sampled_from(KEYS), st.integers(1, 8)), min_size=1, max_size=6),
        takes_several=st.booleans(),
    )
    def begin(self, histories: Sequence[tuple[str | None, int]], *, takes_several: bool) -> None:
        """Some keys have some versions, half a day apart; some servers take several requests at once."""
        self.server.takes_several = takes_several
        for _round in range(8):
            for key, versions in histories:
                if versions > _round:
                    self.produce(key, None, by_run=False, seconds=0)
            self.server.pass_time(timedelta(hours=12))

    @rule(key=st.sampled_from(KEYS), metadata=METADATA, by_run=st.booleans(), seconds=st.integers(0, 2))
    def produce(self, key: str | None, metadata: dict[str, str] | None, *, by_run: bool, seconds: int) -> None:
        """Somebody creates a version, now and then in the same instant as another, or in a run that goes on."""
        self.server.pass_time(timedelta(seconds=seconds))
        run = self.runs[-1] if by_run and self.runs else None
        self.server.database.create(ArtifactCreate(key=key, type="markdown", data="x", metadata_=metadata, flow_run_id=run))

    @rule(place=PLACES, metadata=METADATA)
    def change_metadata(self, place: int, metadata: dict[str, str] | None) -> None:
        """Somebody holds a version, releases it, or gives it a TTL."""
        if version_id := self._any(place):
            self.server.database.update(version_id, {"metadata_": metadata})

    @rule(place=PLACES)
    def update(self, place: int) -> None:
        """Somebody updates a version in place, as a progress artifact is."""
        if version_id := self._any(place):
            self.server.database.update(version_id, {"data": f"updated at {self.server.now()}"})

    @rule(place=PLACES)
    def delete(self, place: int) -> None:
        """Somebody deletes a version."""
        if version_id := self._any(place):
            self.deleted_by_people.add(version_id)
            self.server.database.delete(version_id)

    @rule(place=PLACES)
    def delete_latest(self, place: int) -> None:
        """Somebody deletes the latest version of a key."""
        if latest := [row["latest_id"] for row in self._collections()]:
            self.deleted_by_people.add(latest[place % len(latest)])
            self.server.database.delete(latest[place % len(latest)])

    @rule(place=PLACES)
    def lose_latest(self, place: int) -> None:
        """Two who delete at once leave a collection without its latest version."""
        if latest := [row["latest_id"] for row in self._collections()]:
            self.deleted_by_people.add(latest[place % len(latest)])
            self.server.database.artifacts.pop(latest[place % len(latest)], None)

    @rule()
    def start_run(self) -> None:
        """A flow run begins."""
        self.runs.append(self.server.start_run())

    @rule(place=PLACES)
    def end_run(self, place: int) -> None:
        """A flow run ends."""
        if self.runs:
            self.server.end_run(self.runs.pop(place % len(self.runs)))

    @rule(hours=st.sampled_from([1, 11, 24, 60, 150]))
    def pass_time(self, hours: int) -> None:
        """Time passes."""
        self.server.pass_time(timedelta(hours=hours))

    # --- our runs

    @rule(tasks=st.sampled_from([1, 25]))
    def clean_up(self, tasks: int) -> None:
        """An undisturbed run leaves exactly what the oracle keeps, and says so; another has nothing to do."""
        kept, dangling = self._kept(), self._dangling()
        before = self._mine()
        report = self._run(max_task_runs=tasks)
        assert report is not None
        assert report.outcome == "completed", report.errors
        assert self._mine() & before == kept & before
        assert report.deleted == len(before - kept)
        assert set(report.repaired) == dangling
        assert self._dangling() == set()
        # A key of which all had vanished has its last version again.
        assert len(self._mine() - before) == sum(not self._versions(key, before) for key in dangling)
        if not dangling:
            assert self._run().deleted == 0

    @rule(most=st.integers(1, 4))
    def clean_up_a_little(self, most: int) -> None:
        """A run of few deletions takes no more, and none that is kept."""
        kept, before = self._kept(), self._mine()
        report = self._run(max_deletions=most)
        gone = before - self._mine()
        assert not gone & kept
        assert len(gone) == report.deleted == min(most, len(before - kept))

    @rule(percent=st.sampled_from([1, 10, 50]))
    def clean_up_within_a_guard(self, percent: int) -> None:
        """A run leaves alone the keys of each policy of which more would go unexpectedly than allowed, and no others."""
        kept, before = self._kept(), self._mine()
        report = self._run(refuse_above_percent=percent)
        refused = {policy.name for policy in report.policies if policy.refused}
        spared = {key for key in KEYS if any(_is_for(policy, key) for policy in POLICIES if policy.name in refused)}
        assert before - self._mine() == {each for each in before - kept if self.keys[each] not in spared}
        assert report.outcome == ("refused" if refused else "completed")

    @rule(fault=st.sampled_from(FAULTS), at=st.integers(0, 70), tasks=st.sampled_from([1, 25]), of_deletion=st.booleans())
    def clean_up_with_a_fault(self, fault: Fault, at: int, tasks: int, *, of_deletion: bool) -> None:
        """A run that meets a fault, at any request or at a deletion, loses nothing that is kept, and its report is honest."""
        if of_deletion:
            fault = replace(fault, of=lambda request: request.method == "DELETE")
        kept, before, dangling = self._kept(), self._mine(), self._dangling()
        with line(self.monkeypatch, fault, at):
            report = self._run(max_task_runs=tasks)
        self._judge(report, kept, before)
        assert self._dangling() <= dangling

    @rule(
        what=st.sampled_from(
            [
                "delete_latest",
                "delete_latest",
                "delete_latest",
                "produce_and_delete_former_latest",
                "produce_and_delete_former_latest",
                "produce",
                "change_metadata",
                "update_latest",
                "delete",
                "lose_latest",
                "start_run",
            ]
        ),
        at=st.integers(AFTER_THE_CLOCK, 70),
        place=PLACES,
        tasks=st.sampled_from([1, 25]),
        at_check=st.booleans(),
    )
    def clean_up_meanwhile(self, what: str, at: int, place: int, tasks: int, *, at_check: bool) -> None:
        """A run during which somebody is at work loses nothing that was kept when it began, and checks before it deletes."""
        kept, before, dangling, now = self._kept(), self._mine(), self._dangling(), self.server.now()
        kept_then: set[UUID] = set()
        keys: list[str] = []

        async def meanwhile(request: httpx.Request, send: Send) -> httpx.Response:
            keys.extend(_checked(request))
            key = keys[place % len(keys)] if keys else KEYS[place % len(KEYS)]
            doing: dict[str, Callable[[], None]] = {
                "produce": lambda: self.produce(key, None, by_run=True, seconds=1),
                "change_metadata": lambda: self.change_metadata(place, {HOLD: "true"}),
                "produce_and_delete_former_latest": lambda: self._replace_latest_of(keys or [str(key)]),
                "update_latest": lambda: self._update_latest_of(keys or [str(key)]),
                "delete": lambda: self.delete(place),
                "delete_latest": lambda: self._delete_latest_of(keys) if keys else self.delete_latest(place),
                "lose_latest": lambda: self.lose_latest(place),
                "start_run": self.start_run,
            }
            doing[what]()
            kept_then.update(self._kept(now))
            return await send(request)

        with line(
            self.monkeypatch, Fault(what, meanwhile, of=lambda request: not at_check or bool(_checked(request))), at
        ) as disturbed:
            report = self._run(max_task_runs=tasks)
        self._judge(report, kept, before)
        assert not kept_then - before - self._mine() - self.deleted_by_people, "what came meanwhile has gone"
        assert what == "lose_latest" or self._dangling() <= dangling
        claim = next((n for n, request in enumerate(disturbed.requests) if DELETING in request.content), None)
        if claim is not None and disturbed.victim in disturbed.requests[: claim + 1]:
            # Each key is judged anew once the run has said that it deletes.
            assert not kept_then - self._mine(), "what was kept before anything went has gone"
        elif what in {"produce", "delete_latest", "produce_and_delete_former_latest", "update_latest"}:
            # Its collection is read right before versions of a key go. Of two of the same instant, either may be kept.
            for key in keys:
                wanted = {version_id for version_id in kept_then if self.keys[version_id] == key}
                assert len(wanted) <= len(self._versions(key)), "what was kept when its collection was read has gone"
                assert what in {"produce", "update_latest"} or wanted <= self._mine()

    @rule(
        key=st.sampled_from(["one-1", "graceful", "load-1"]),
        versions=st.integers(2, 6),
        at=st.integers(0, 6),
        tasks=st.sampled_from([1, 25]),
        replaced=st.booleans(),
    )
    def clean_up_while_the_latest_of_a_key_goes(self, key: str, versions: int, at: int, tasks: int, *, replaced: bool) -> None:
        """What becomes the latest in the middle of its key's deletions stays, unless it is being deleted just then."""
        for _version in range(versions):
            self.produce(key, None, by_run=False, seconds=0)
            self.server.pass_time(timedelta(hours=12))
        kept, before, now = self._kept(), self._mine(), self.server.now()
        moved_up: set[UUID] = set()

        async def meanwhile(request: httpx.Request, send: Send) -> httpx.Response:
            version_id = UUID(request.url.path.rpartition("/")[2])
            if key := self.keys.get(version_id):
                (self._replace_latest_of if replaced else self._delete_latest_of)([key])
                latest = {row["latest_id"] for row in self._collections() if row["key"] == key}
                moved_up.update(latest & self._kept(now) - {version_id})
            return await send(request)

        fault = Fault("the latest goes", meanwhile, of=lambda request: request.method == "DELETE")
        with line(self.monkeypatch, fault, at):
            report = self._run(max_task_runs=tasks)
        self._judge(report, kept, before)
        assert moved_up <= self._mine(), "what has become the latest has gone"

    # --- what is there, and what must be

    def _delete_latest_of(self, keys: Sequence[str]) -> None:
        for row in self._collections():
            if row["key"] in keys:
                self.deleted_by_people.add(row["latest_id"])
                self.server.database.delete(row["latest_id"])

    def _update_latest_of(self, keys: Sequence[str]) -> None:
        """Time passes, and somebody updates the latest version of some keys."""
        self.server.pass_time(timedelta(seconds=1))
        for row in self._collections():
            if row["key"] in keys:
                self.server.database.update(row["latest_id"], {"data": "updated meanwhile"})

    def _replace_latest_of(self, keys: Sequence[str]) -> None:
        """Somebody creates a new version of some keys, and deletes those that were the latest until then."""
        former = {row["key"]: row["latest_id"] for row in self._collections() if row["key"] in keys}
        for key, version_id in former.items():
            self.produce(key, None, by_run=False, seconds=1)
            self.deleted_by_people.add(version_id)
            self.server.database.delete(version_id)

    def _judge(self, report: CleanupReport | None, kept: set[UUID], before: set[UUID]) -> None:
        gone = before - self._mine()
        assert not (gone & kept) - self.deleted_by_people
        if report is None:
            assert not gone - self.deleted_by_people
            return
        settled = report.deleted + report.already_gone
        assert len(gone - self.deleted_by_people) <= settled + report.failed
        assert settled <= len(gone)
        if report.outcome == "completed":
            assert not report.remaining

    def _run(self, **parameters: Any) -> CleanupReport | None:  # noqa: ANN401 - the flow's parameters
        """A delete run. None: it could not even begin, and said so."""

        async def run() -> CleanupReport | None:
            try:
                return await steps.cleanup(
                    POLICIES, mode="delete", own_runs={self.server.start_run(artifact_cleanup.name)}, **parameters
                )
            except CleanupFailed as error:
                return error.report
            except RetentionError:
                return None

        random.seed(SEED)
        return self.loop.run(run())

    def _kept(self, now: datetime | None = None) -> set[UUID]:
        """The versions that the oracle keeps: of each key by the policy that is for it, or all."""
        kept: set[UUID] = set()
        self.keys.update((row["id"], row["key"]) for row in self.server.database.artifacts.values())
        latest = {row["key"]: row["latest_id"] for row in self._collections()}
        for key in KEYS:
            versions = self._versions(key)
            policy = next((each for each in POLICIES if _is_for(each, key)), None)
            kept |= (
                kept_ids(
                    versions,
                    policy,
                    now=now or self.server.now(),
                    latest_id=latest.get(key),
                    running=frozenset(self.runs),
                )
                if policy
                else {version.id for version in versions}
            )
        return kept

    def _versions(self, key: str | None, among: set[UUID] | None = None) -> list[Version]:
        return [
            Version(
                row["id"],
                row["key"],
                row["created"],
                row["updated"],
                type=row["type"],
                flow_run_id=row["flow_run_id"],
                metadata=row["metadata_"] or {},
            )
            for row in self.server.database.artifacts.values()
            if row["key"] == key and (among is None or row["id"] in among)
        ]

    def _mine(self) -> set[UUID]:
        return {version.id for key in KEYS for version in self._versions(key)}

    def _any(self, place: int) -> UUID | None:
        ids = [version.id for key in KEYS for version in self._versions(key)]
        return ids[place % len(ids)] if ids else None

    def _collections(self) -> list[dict[str, Any]]:
        return [row for key, row in sorted(self.server.database.collections.items()) if key in KEYS]

    def _dangling(self) -> set[str]:
        artifacts = self.server.database.artifacts
        # What no policy is for is left alone, whatever it is like.
        collections = [row for row in self._collections() if row["key"] != UNMANAGED]
        return {row["key"] for row in collections if row["latest_id"] not in artifacts}


def _checked(request: httpx.Request) -> list[str]:
    """The keys whose collections a request reads, if it names them."""
    only = json.loads(request.content)["artifacts"] if request.url.path.endswith("/latest/filter") else {}
    keys: list[str] = only.get("key", {}).get("any_", [])
    return keys


def _is_for(policy: RetentionPolicy, key: str | None) -> bool:
    return policy.unkeyed if key is None else not policy.unkeyed and any(fnmatchcase(key, glob) for glob in policy.match_keys)


@pytest.mark.parametrize("examples", [15, pytest.param(40, marks=pytest.mark.thorough), long(120)])
def test_nothing_kept_is_lost_whatever_happens_in_any_order(monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    """Every collection is valid after a run, every report honest, and a rerun converges."""
    shrink(monkeypatch)
    with FakeServer(lambda: NOON).listening() as server, server.active():
        machine = type("AnyOrder", (AnyOrder,), {"server": server, "monkeypatch": monkeypatch})
        run_state_machine_as_test(
            seed(SEED + examples)(machine),
            settings=settings(
                max_examples=examples,
                stateful_step_count=15,
                deadline=None,
                database=None,
                derandomize=False,
                # A failure is shown as it was found: to make it smaller takes many minutes.
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
