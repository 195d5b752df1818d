"""The whole flow against real servers; every assertion looks into the server's database."""

import asyncio
import contextvars
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import steps
from database import Row, days, series
from prefect import flow, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Running
from prefect_artifact_retention.flows.cleanup import LISTENER, artifact_cleanup
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, StoreError
from prefect_artifact_retention.policies.loading import PROGRESS_KEY
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.stores.server import Expiry
from prefect_artifact_retention.stores.server import Server as PrefectServer
from prefect_artifact_retention.stores.store import PLACEHOLDER_OF
from prefect_artifact_retention.tasks import checks
from prefect_artifact_retention.tasks.progress import ANNOUNCED, DELETING, PHASE
from prefect_artifact_retention.tasks.rendering import markdown
from prefect_artifact_retention.tasks.report import CleanupFailed, CleanupReport, scope_digest
from prefect_artifact_retention.tasks.run import Step
from servers import (
    BY_API,
    BY_FAKE,
    FAKE,
    POSTGRESQL_API,
    POSTGRESQL_DATABASE,
    REAL,
    SQLITE_API,
    SQLITE_DATABASE,
    Server,
    drain,
    on,
    thorough,
    when_planned,
)

KEEP_2 = RetentionPolicy(name="keep two", keep_last=2)

SEVERAL_CLIENTS = (POSTGRESQL_API, POSTGRESQL_DATABASE, thorough(SQLITE_API), thorough(SQLITE_DATABASE))
"""Where others write while a flow runs, which now and then holds up all writes of a server on SQLite for a minute."""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transactions delete no more at a time than the API does between two checks."""
    monkeypatch.setattr("prefect_artifact_retention.tasks.prune_database.MAX_TRANSACTION_VERSIONS", checks.DELETIONS_PER_CHECK)


@flow
def writer() -> None:
    """Somebody's flow."""


def loads(data: object) -> Any:  # noqa: ANN401 - JSON
    """A JSON column as either database's driver gives it."""
    return json.loads(data) if isinstance(data, str) and data[:1] in '"[{' else data


def ids(rows: list[Row], *numbers: int) -> set[UUID]:
    """The ids of some of the rows."""
    return {rows[number].id for number in numbers}


async def test_delete_leaves_exactly_what_the_policies_keep(server: Server) -> None:
    """Several policies, an unmanaged key, artifacts without a key: each keeps and loses what it should."""
    reports = await server.database.insert(series("report-a", [1, 2, 3, 4]))
    audit = await server.database.insert(series("audit-log", [100, 200, 300]))
    other = await server.database.insert(series("other", [50, 60]))
    unkeyed = await server.database.insert(series(None, [1, 29, 31]))
    policies = [
        RetentionPolicy(name="reports", match_keys=["report-*"], keep_last=2),
        RetentionPolicy(name="audit", match_keys=["audit-*"], keep_all=True),
        RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=30),
    ]
    report = await server.cleanup(policies, mode="delete")
    left = ids(reports, 0, 1) | ids(audit, 0, 1, 2) | ids(other, 0, 1) | ids(unkeyed, 0, 1)
    assert await server.database.ids() == left
    assert (report.outcome, report.planned, report.deleted, report.failed) == ("completed", 3, 3, 0)
    assert report.unmanaged == ["other"]
    assert not await server.database.dangling()


async def test_preview_is_the_default_and_deletes_nothing(server: Server) -> None:
    """The same plan, and nothing gone."""
    rows = await server.database.insert(series("report", [1, 2, 3, 4]))
    report = await server.cleanup([KEEP_2])
    assert (report.mode, report.planned, report.deleted) == ("preview", 2, 0)
    assert await server.database.ids() == ids(rows, 0, 1, 2, 3)


@on(*REAL)
async def test_the_report_and_the_progress_are_published(server: Server) -> None:
    """A keyed markdown artifact with the totals first, and a progress artifact at 100 %."""
    await server.database.insert(series("report", [1, 2, 3, 4]))
    await server.cleanup([KEEP_2], mode="delete")
    published = {row[0]: row for row in await server.database.run("SELECT key, type, data, description FROM artifact")}
    _, kind, data, description = published["artifact-retention-report"]
    assert kind == "markdown"
    assert "# Deleted 2 versions" in data
    assert description.startswith("Deleted 2 versions")
    assert float(published["artifact-retention-progress"][2]) == 100


@on(*REAL)
async def test_the_history_gains_one_row_a_run(server: Server) -> None:
    """The newest first, with what was there before and after; the trend is drawn from it."""
    await server.database.insert(series("report", [1, 2, 3, 4]))
    await server.cleanup([KEEP_2])
    await server.cleanup([KEEP_2], mode="delete")
    await server.database.insert(series("other", [1, 2, 3]))
    await server.cleanup([KEEP_2], mode="delete")
    (latest,) = await server.database.run("SELECT data FROM artifact_collection WHERE key = 'artifact-retention-history'")
    rows = loads(loads(latest[0]))
    assert [(row["mode"], row["deleted"]) for row in rows] == [("delete", 1), ("delete", 2), ("preview", 0)]
    assert [row["stale"] for row in rows] == [1, 2, 2]
    assert rows[1]["versions before"] - rows[1]["versions after"] == 2
    assert all(row["bytes before"] - row["bytes after"] == 3 * row["deleted"] for row in rows)
    (report,) = await server.database.run("SELECT data FROM artifact_collection WHERE key = 'artifact-retention-report'")
    text = loads(report[0])
    assert text.count("](data:image/svg+xml;base64,") == 2
    assert "](http://127.0.0.1" in text


@on(*BY_API)
async def test_a_history_that_is_none_begins_anew(server: Server) -> None:
    """Whatever somebody wrote to its key, a run does not fail for it."""
    for number, data in enumerate(("no json", "[1, 2]", '{"a": 1}', 7, None, [[]], "[" * 200_000)):
        await server.database.insert([Row("artifact-retention-history", days(100 - number), data=data, type="table")])
        await server.database.run("DELETE FROM artifact_collection WHERE latest_id NOT IN (SELECT id FROM artifact)")
        report = await server.cleanup([KEEP_2])
        assert (report.outcome, report.warnings) == ("completed", [])
        await server.database.clear()


ODD_ROWS = [
    {"when (UTC)": None},
    {"versions before": -(10**17)},
    {"bytes after": True},
    {"seconds": "soon"},
    {"scope": ["all keys"]},
]


@on(*BY_API)
@pytest.mark.parametrize("odd", ODD_ROWS, ids=lambda odd: next(iter(odd)))
async def test_an_odd_row_of_the_history_is_left_out_and_the_others_stay(server: Server, odd: dict[str, object]) -> None:
    """No run fails for it, and the report is written."""
    await server.database.insert(series("report", [1, 2, 3]))
    await server.cleanup([KEEP_2], mode="delete")
    ((good,),) = await server.database.run("SELECT data FROM artifact_collection WHERE key LIKE '%-history'")
    (row,) = loads(loads(good))
    await server.database.run("DELETE FROM artifact_collection WHERE key LIKE '%-history'")
    await server.database.insert([Row("artifact-retention-history", days(0), data=[row | odd, row], type="table")])
    report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.outcome, report.warnings) == ("completed", [])
    ((data,),) = await server.database.run("SELECT data FROM artifact_collection WHERE key LIKE '%-history'")
    assert [each["deleted"] for each in loads(loads(data))] == [0, 1]


@on(*BY_API)
async def test_a_row_of_the_history_that_another_run_wrote_over_is_back_in_the_next(server: Server) -> None:
    """Of runs that end in the same instant, each writes its own row beside those of before; each has its place again."""
    for key in ("first", "second", "third"):
        await server.database.insert(series(key, [1, 2, 3]))
        await server.cleanup([KEEP_2], mode="delete", keys=[key])
    histories = "FROM artifact WHERE key = 'artifact-retention-history'"
    for version_id, data in await server.database.run(f"SELECT id, data {histories} ORDER BY created DESC LIMIT 2"):
        own, *_others, before = loads(loads(data))
        await server.database.update_data(UUID(str(version_id)), json.dumps([own, before]))
    await server.cleanup([KEEP_2])
    ((data,),) = await server.database.run("SELECT data FROM artifact_collection WHERE key LIKE '%-history'")
    assert [row["scope"] for row in loads(loads(data))] == ["all keys", "third", "second", "first"]


@on(*BY_API)
async def test_the_history_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest row goes."""
    monkeypatch.setattr("prefect_artifact_retention.tasks.history.MAX_HISTORY_ROWS", 2)
    for keep in (1, 2, 3):
        await server.database.insert(series(f"report-{keep}", [1, 2, 3, 4]))
        await server.cleanup([RetentionPolicy(name="p", keep_last=keep)], mode="delete", keys=["report-*"])
    ((data,),) = await server.database.run("SELECT data FROM artifact_collection WHERE key LIKE '%-history'")
    assert [each["deleted"] for each in loads(loads(data))] == [1, 2]


@on(*REAL)
async def test_the_packages_own_keys_are_in_no_total(server: Server) -> None:
    """What people read is about their own artifacts."""
    await server.database.insert(series("report", [1, 2, 3]))
    await server.database.insert(series("artifact-retention-report", range(1, 41)))
    report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.keys_seen, report.versions_seen, report.planned, report.deleted) == (1, 3, 1, 1)
    assert sum(key.deleted for key in report.housekeeping) == 10
    ((text,),) = await server.database.run("SELECT data FROM artifact_collection WHERE key = 'artifact-retention-report'")
    assert "Besides, 10 versions of this package's own artifacts went" in loads(text)


@on(*BY_API)
async def test_no_password_of_the_servers_address_is_published(server: Server) -> None:
    """The links of the report are without it."""
    await server.database.insert(series("report", [1, 2, 3]))
    address = server.local.address.replace("http://", "http://somebody:s3cret@")
    with temporary_settings(updates={PREFECT_API_URL: f"{address}/api"}):
        await artifact_cleanup(mode="delete", policies=[KEEP_2])
    texts = [str(row) for row in await server.database.run("SELECT description, data FROM artifact")]
    assert any(f"{server.local.address}/artifacts/key/" in text for text in texts)
    assert not any("s3cret" in text for text in texts)


@on(*BY_API)
async def test_a_delete_run_that_cannot_begin_ends_with_an_event_too(server: Server) -> None:
    """An automation on failures sees a broken configuration."""
    since = begin_events()
    with pytest.raises(ConfigurationError):
        await server.run_flow(mode="delete")
    (event,) = await events(server, since)
    assert event["event"] == "artifact-retention.cleanup.failed"
    assert "no policy is configured" in event["payload"]["error"]


def begin_events() -> datetime:
    """Let Prefect connect anew, because an earlier test may have broken the connection that it sends events on."""
    drain()
    return datetime.now(UTC)


async def events(server: Server, since: datetime, awaited: str = "") -> list[dict[str, Any]]:
    """The package's events since then, once there is one whose name ends like this."""
    drain()
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 120
    while not any(each["event"].endswith(awaited) for each in found) and time.monotonic() < deadline:
        occurred = {"since": since.isoformat(), "until": datetime.now(UTC).isoformat()}
        body = {"filter": {"occurred": occurred, "event": {"prefix": ["artifact-retention."]}}}
        with server.active():
            async with get_client() as client:
                found = (await client.request("POST", "/events/filter", json=body)).json()["events"]
        await asyncio.sleep(0.2)
    return found


@on(*REAL)
async def test_a_delete_run_ends_with_an_event(server: Server) -> None:
    """Named by its outcome, for automations; a preview has none."""
    await server.database.insert(series("report", [1, 2, 3]))
    since = begin_events()
    await server.run_flow([KEEP_2])
    await server.run_flow([KEEP_2], mode="delete")
    (event,) = await events(server, since)
    assert event["event"] == "artifact-retention.cleanup.completed"
    assert event["payload"]["deleted"] == 1
    assert event["resource"]["artifact-retention.deleted"] == "000000001"
    assert event["resource"]["artifact-retention.stalled_runs"] == "000000000"
    assert any(related["prefect.resource.role"] == "flow-run" for related in event["related"])


@pytest.mark.thorough
@on(SQLITE_API, POSTGRESQL_DATABASE)
async def test_a_delete_run_that_takes_long_says_so_by_events_until_it_ends(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alarm waits for it; the last event is that of its end."""
    monkeypatch.setattr("prefect_artifact_retention.flows.cleanup.RUNNING_SECONDS", 0.2)
    await server.database.insert(series("report", [1, 2, 3]))
    since = begin_events()
    with when_planned(lambda: asyncio.sleep(1)):
        await server.run_flow([KEEP_2])
        await server.run_flow([KEEP_2], mode="delete", keys=["report"])
    await events(server, since, "completed")
    await asyncio.sleep(0.5)
    last, *others = sorted(await events(server, since, "completed"), key=lambda event: str(event["occurred"]), reverse=True)
    assert last["event"] == "artifact-retention.cleanup.completed"
    assert len(others) >= 3
    assert {event["event"] for event in others} == {"artifact-retention.cleanup.running"}
    assert {event["resource"]["artifact-retention.scope"] for event in (last, *others)} == {scope_digest(["report"])}


# --- one at a time


@contextmanager
def when_deleting(action: Callable[[], Awaitable[object]]) -> Iterator[None]:
    """Do something once, when the first version has gone."""
    done = False

    async def listen(step: Step, gone: int, _total: int) -> None:
        nonlocal done
        if step == "deleting" and gone and not done:
            done = True
            await action()

    token = LISTENER.set(listen)
    try:
        yield
    finally:
        LISTENER.reset(token)


async def cleanup_meanwhile(server: Server, **parameters: object) -> CleanupReport:
    """Run a second delete run to its end while a first one, over all keys, is deleting."""
    second: list[CleanupReport] = []

    async def run_second() -> None:
        token = LISTENER.set(None)
        second.append(await server.run_flow([KEEP_2], **({"mode": "delete"} | parameters)))
        LISTENER.reset(token)

    with when_deleting(lambda: asyncio.create_task(run_second(), context=contextvars.Context())):
        first = await server.run_flow([KEEP_2], mode="delete")
    assert first.outcome == "completed"
    assert first.deleted + first.already_gone == first.planned
    return second[0]


@on(*SEVERAL_CLIENTS)
async def test_a_second_run_is_skipped_while_the_first_deletes(server: Server) -> None:
    """It ends Completed, named Skipped, and says for which run; the first one's report stays the latest."""
    await server.database.insert(series("report", [1, 2, 3, 4]))
    second = await cleanup_meanwhile(server)
    assert (second.outcome, second.deleted, second.planned) == ("skipped", 0, 0)
    assert re.search(r"has been at work since \S+ \S+ UTC, and was last alive at \S+ \S+ UTC$", second.refusals[0])
    with server.active():
        async with get_client() as client:
            (last,) = await client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
    assert last.state
    assert (last.state.type, last.state.name) == (StateType.COMPLETED, "Skipped")
    reports = await server.database.run("SELECT description FROM artifact WHERE key = 'artifact-retention-report'")
    assert [row[0].split(" (")[0] for row in reports] == ["Deleted 2 versions"]


@on(*SEVERAL_CLIENTS)
async def test_runs_over_different_keys_do_not_wait_for_each_other(server: Server) -> None:
    """Nor does anybody wait for a preview, or a preview for anybody."""
    await server.database.insert([*series("report", [1, 2, 3, 4]), *series("other", [1, 2, 3])])
    preview = await cleanup_meanwhile(server, mode="preview")
    assert preview.outcome == "completed"


@pytest.mark.thorough
@on(*SEVERAL_CLIENTS)
async def test_runs_over_different_keys_at_once_each_delete_theirs_and_share_the_packages_own(server: Server) -> None:
    """Neither run fails or warns because the other has deleted versions of the keys of both."""
    rows = {name: await server.database.insert(series(name, range(1, 31))) for name in ("apples", "pears")}
    for name in ("report", "history", "progress"):
        await server.database.insert(series(f"artifact-retention-{name}", range(1, 71)))
    with server.active():
        cleanups = (steps.cleanup([KEEP_2], mode="delete", keys=[f"{name[0]}*"]) for name in rows)
        reports = await asyncio.gather(*cleanups)
    assert [(report.outcome, report.deleted, report.already_gone, report.warnings) for report in reports] == [
        ("completed", 28, 0, [])
    ] * 2
    assert await server.database.ids() == {row.id for name in rows for row in rows[name][:2]}
    assert await server.database.dangling() == []
    ours = await server.database.run("SELECT key, count(*) FROM artifact WHERE key LIKE 'artifact-retention-%' GROUP BY key")
    assert len(ours) == 3
    # What the two of them write themselves comes before or after the other's snapshot; and a report of which a server that
    # stalls has lost the answer is there twice.
    assert all(30 <= number <= 34 for _key, number in ours), ours


@pytest.mark.parametrize(
    ("scope", "age_minutes", "state", "outcome"),
    [
        pytest.param([], 5, "RUNNING", "skipped", id="at work on all keys"),
        pytest.param(["rep*"], 5, "RUNNING", "skipped", id="at work on some of these keys"),
        pytest.param(["other-*"], 5, "RUNNING", "completed", id="at work on other keys"),
        pytest.param([5], 5, "RUNNING", "skipped", id="at work on what are no keys"),
        pytest.param([], 11, "RUNNING", "completed", id="killed"),
        pytest.param([], 5, "CRASHED", "completed", id="ended"),
    ],
)
async def test_only_a_run_that_is_alive_and_deletes_the_same_keys_holds_up_a_run(
    server: Server, scope: list[object], age_minutes: float, state: str, outcome: str
) -> None:
    """A dead one never does: its flow run stays Running, but its progress artifact is no longer updated."""
    await server.database.insert(series("report", [1, 2, 3, 4]))
    other = await start_cleanup(server, scope, state)
    own = await start_cleanup(server)
    await server.database.insert([deleting(other, timedelta(minutes=age_minutes))])
    report = await server.cleanup([KEEP_2], mode="delete", own_runs={own.id})
    assert (report.outcome, report.deleted) == (outcome, 0 if outcome == "skipped" else 2)


@on(*BY_FAKE)
@pytest.mark.parametrize("first", ["the other", "the other, seen late", "this one"])
async def test_of_two_runs_the_first_to_announce_its_deletions_goes_on(
    server: Server, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is older, and also if the announcement of the other is seen only after its own."""
    await server.database.insert(series("report", [1, 2, 3, 4]))
    own, other = await start_cleanup(server), await start_cleanup(server)

    async def announce() -> None:
        when = datetime.now(UTC) + timedelta(seconds=30 if first == "this one" else -30)
        metadata = {PHASE: DELETING, ANNOUNCED: when.isoformat()}
        async with get_client() as client:
            await client.create_artifact(
                ArtifactCreate(key=PROGRESS_KEY, type="progress", data=20.0, metadata_=metadata, flow_run_id=other.id)
            )

    if first == "the other":
        with server.active():
            await announce()
    send = httpx.AsyncHTTPTransport.handle_async_request
    announced = False

    async def meanwhile(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        nonlocal announced
        if not announced and request.method == "PATCH" and PHASE.encode() in request.content:
            announced = True
            await announce()
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", meanwhile)
    report = await server.cleanup([KEEP_2], mode="delete", own_runs={own.id})
    assert announced == (first != "the other")
    assert (report.outcome, report.deleted) == (("completed", 2) if first == "this one" else ("skipped", 0))


async def start_cleanup(server: Server, scope: Sequence[object] = (), state: str = "RUNNING") -> FlowRun:
    """Create a flow run of the cleanup that nobody is at work on."""
    with server.active():
        async with get_client() as client:
            parameters = {"mode": "delete", "keys": list(scope)}
            return await client.create_flow_run(artifact_cleanup, parameters=parameters, state=State(type=StateType(state)))


def deleting(run: FlowRun, age: timedelta) -> Row:
    """The progress artifact of a run that deletes, last updated so long ago."""
    return Row(
        PROGRESS_KEY,
        age,
        data=40.0,
        type="progress",
        metadata={PHASE: DELETING},
        flow_run_id=run.id,
    )


async def test_protected_versions_stay(server: Server) -> None:
    """Held, unreadable, misspelt, within its TTL, or of a run that has not finished; their plain neighbours go."""

    @flow(name="producer")
    def producer() -> None:
        """A run that is still going on."""

    with server.active():
        async with get_client() as client:
            running = (await client.create_flow_run(producer, state=Running())).id
    rows = await server.database.insert(
        [
            *series("report", [1]),
            Row("report", days(10), metadata={"retention-hold": "true"}),
            Row("report", days(11), metadata={"retention-hold": "yess"}),
            Row("report", days(12), metadata={"retention-ttl-days": "30"}),
            Row("report", days(13), flow_run_id=running),
            Row("report", days(14), flow_run_id=uuid4()),
            Row("report", days(15), metadata={"retention-ttl-days": "3"}),
            Row("report", days(16), metadata={"RETENTION_HOLD": "true"}),
            Row("report", days(17), metadata={"retention.ttl": "30"}),
            Row("report", days(18), metadata={"artifact-retention-phase": "deleting"}),
            Row(None, days(19), metadata={"Retention-Hold": "true"}),
            Row(None, days(20), metadata={"hold": "true"}),
        ]
    )
    policies = [RetentionPolicy(name="one", keep_last=1), RetentionPolicy(name="loose", unkeyed=True, keep_within_days=1)]
    report = await server.cleanup(policies, mode="delete")
    assert await server.database.ids() == ids(rows, 0, 1, 2, 3, 4, 7, 8, 10)
    for culprit in ("yess", "RETENTION_HOLD", "retention.ttl", "Retention-Hold"):
        assert any(culprit in warning for warning in report.warnings)


@on(*REAL)
async def test_an_idle_key_goes_with_its_latest_and_an_active_one_keeps_it(server: Server) -> None:
    """Keys with a date in them would otherwise live for ever."""
    await server.database.insert(series("load-2026-01-31", [100, 101, 102]))
    active = await server.database.insert(series("load-2026-11-20", [3, 4, 5]))
    policy = RetentionPolicy(name="loads", keep_last=2, drop_idle_keys_after_days=90)
    report = await server.cleanup([policy], mode="delete")
    assert await server.database.ids() == ids(active, 0, 1)
    assert report.deleted == 4
    keys = {row[0] for row in await server.database.run("SELECT key FROM artifact_collection")}
    assert "load-2026-01-31" not in keys
    assert "load-2026-11-20" in keys


async def test_max_deletions_stops_and_the_next_run_goes_on(server: Server) -> None:
    """Unfinished is no failure: it converges."""
    rows = await server.database.insert(series("report", range(1, 8)))
    first = await server.cleanup([KEEP_2], mode="delete", max_deletions=3)
    assert (first.outcome, first.deleted, first.remaining) == ("unfinished", 3, 2)
    assert await server.database.ids() == ids(rows, 0, 1, 2, 3)
    second = await server.cleanup([KEEP_2], mode="delete", max_deletions=3)
    assert (second.outcome, second.deleted) == ("completed", 2)
    assert await server.database.ids() == ids(rows, 0, 1)


async def test_a_time_budget_converges_however_small(server: Server) -> None:
    """Each run begins where the last one stopped, and every key has its turn."""
    rows = [row for number in range(45) for row in series(f"key-{number:02}", [1, 2, 3])]
    unkeyed = await server.database.insert([*rows, *series(None, [1, 40])])
    policies = [KEEP_2, RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=30)]
    left = {row.id for number, row in enumerate(rows) if number % 3 < 2} | {unkeyed[-2].id}
    outcomes = []
    for _ in range(12):
        report = await server.cleanup(policies, mode="delete", time_budget_minutes=0.001)
        outcomes.append(report.outcome)
        if await server.database.ids() == left:
            break
    assert await server.database.ids() == left, outcomes


@on(*BY_FAKE)
async def test_a_listing_of_artifacts_without_a_key_ends_with_the_time_for_planning(server: Server) -> None:
    """Once something is found to delete: with nothing found yet, the next run would come no further."""
    rows = await server.database.insert(series(None, [*[1] * 300, *[40] * 300]))
    policies = [RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=30)]
    report = await server.cleanup(policies, mode="delete", time_budget_minutes=0.0001)
    assert report.outcome == "unfinished"
    assert 0 < report.deleted <= report.planned <= 200
    (warning,) = report.warnings
    assert re.fullmatch(r"planning time was over after [0-9]{1,3} of 600 artifacts without a key", warning)
    report = await server.cleanup(policies, mode="delete")
    assert (report.outcome, report.warnings) == ("completed", [])
    assert await server.database.ids() == {row.id for row in rows[:300]}


@on(*BY_FAKE)
async def test_each_listing_of_artifacts_without_a_key_begins_elsewhere_and_shows_all(server: Server) -> None:
    """Those that end with the time for planning would see the same ones again and again, and never the others."""
    rows = await server.database.insert(series(None, [1] * 150))
    first_shown = set()
    with server.active():
        async with connect() as connection:
            for _listing in range(6):
                pages = [page async for page in ApiStore(connection).unkeyed(len(rows), [])]
                first_shown.add(pages[0][0].id)
                assert {version.id for page in pages for version in page} == {row.id for row in rows}
    assert len(first_shown) > 1


@on(*REAL)
async def test_the_results_of_runs_stay(server: Server) -> None:
    """Prefect's server keeps them in artifacts without key and type: a run that lost its own would run again, or fail."""

    @flow(persist_result=True)
    def with_result() -> int:
        return 42

    with server.active():
        state: State[int] = await asyncio.to_thread(with_result, return_state=True)
        run_id = state.state_details.flow_run_id
    await server.database.insert([Row(None, days(40)), Row(None, days(40), type="result")])
    kept = await server.database.ids("type IS NULL OR type = 'result'")
    assert len(kept) > 1
    long_ago = "created = datetime(created, '-40 days') || '.000000'"
    if not server.database.is_sqlite:
        long_ago = "created = created - interval '40 days'"
    await server.database.run(f"UPDATE artifact SET {long_ago} WHERE type IS NULL")
    preview = await server.cleanup()
    assert preview.unmanaged_unkeyed == 1
    policies = [RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=30)]
    report = await server.cleanup(policies, mode="delete")
    assert (report.outcome, report.versions_seen, report.deleted) == ("completed", 1, 1)
    assert await server.database.ids() == kept
    with server.active():
        async with get_client() as client:
            assert run_id is not None
            assert await (await client.read_flow_run(run_id)).state.aresult() == 42  # type: ignore[union-attr]


@on(*BY_FAKE)
async def test_a_run_begins_where_the_last_one_over_the_same_keys_stopped(server: Server) -> None:
    """Whatever runs over other keys have reported meanwhile."""
    keys = [f"{share}-{number:02}" for share in ("apples", "pears") for number in range(45)]
    await server.database.insert([row for key in keys for row in series(key, [1, 2, 3])])
    first_night = [await budgeted(server, share) for share in ("apples-*", "pears-*")]
    second_night = [await budgeted(server, share) for share in ("apples-*", "pears-*")]
    for before, after in zip(first_night, second_night, strict=True):
        assert before.stopped_at
        assert after.key_reports[0].key == before.stopped_at


@on(*BY_FAKE)
async def test_a_scope_is_the_same_in_any_order(server: Server) -> None:
    """The next run over the same keys goes on where the last one stopped, and stands beside it in the history."""
    keys = [f"{share}-{number:02}" for share in ("apples", "pears") for number in range(45)]
    await server.database.insert([row for key in keys for row in series(key, [1, 2, 3])])
    before = await budgeted(server, "pears-*", "apples-*")
    after = await budgeted(server, "apples-*", "pears-*", "apples-*")
    assert before.stopped_at
    assert after.key_reports[0].key == before.stopped_at


@on(*REAL)
async def test_with_a_limit_every_key_has_its_turn(server: Server) -> None:
    """Also if the first has more stale versions than the limit ever lets go; and so have the artifacts without a key."""
    policies = [KEEP_2, RetentionPolicy(name="loose", unkeyed=True, keep_within_days=1)]
    loose = [Row(None, days(9)) for _ in range(4)]
    await server.database.insert([*series("a", range(10, 99)), *series("z", range(10, 16)), *loose])
    for _night in range(6):
        report = await server.cleanup(policies, mode="delete", max_deletions=3)
        assert report.deleted == 3
    assert len(await server.database.ids("key = 'z'")) == 2
    assert len(await server.database.ids("key IS NULL")) < 4


@on(*BY_FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_with_a_limit_an_idle_key_that_is_larger_than_it_has_its_turn_too(server: Server) -> None:
    """Through the database, no transaction takes a part of it; what is behind it does not use up the limit."""
    ages = {"a-idle": range(40, 45), "b": range(1, 11), "c": range(1, 5), "d": range(1, 3)}
    rows = {key: await server.database.insert(series(key, ages[key])) for key in ages}
    policy = RetentionPolicy(name="keep two", keep_last=2, drop_idle_keys_after_days=30)
    for _night in range(3):
        report = await server.cleanup([policy], mode="delete", max_deletions=2)
        assert report.deleted == 2
    left = await server.database.ids()
    assert [len(left & {row.id for row in rows[key]}) for key in ("a-idle", "b", "c")] == [3, 8, 2]


@on(*BY_FAKE)
async def test_without_a_readable_history_a_limited_run_begins_with_the_first_key(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so: the run is not lost because of it."""
    await server.database.insert(series("report", [1, 2, 3, 4]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def fail(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/artifacts/filter") and b"artifact-retention-history" in request.content:
            return httpx.Response(500, request=request)
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", fail)
    report = await server.cleanup([KEEP_2], mode="delete", max_deletions=1)
    assert report.deleted == 1
    assert "begins with the first key" in report.warnings[0]


@on(*BY_FAKE)
async def test_a_refused_policy_keeps_no_other_from_its_turn(server: Server) -> None:
    """Of a run that has no time to plan all keys, the next goes on behind what was refused."""
    rows = {
        name: await server.database.insert(
            [row for number in range(30) for row in series(f"{name}-{number:02}", [1, 2, 3, 4])]
        )
        for name in ("bad", "good")
    }
    kept = {row.id for row in rows["bad"]} | {row.id for row in rows["good"] if row.age < days(4)}
    policies = [
        RetentionPolicy(name="bad", match_keys=["bad-*"], keep_last=1),
        RetentionPolicy(name="good", match_keys=["good-*"], keep_last=3),
    ]
    for _night in range(12):
        with suppress(CleanupFailed):
            await server.cleanup(policies, mode="delete", time_budget_minutes=0.0001, refuse_above_percent=50)
        if await server.database.ids() == kept:
            break
    assert await server.database.ids() == kept


@on(FAKE)
async def test_many_runs_over_other_keys_do_not_make_a_run_forget_where_it_begins(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor many previews."""
    monkeypatch.setattr("prefect_artifact_retention.tasks.history.MAX_HISTORY_ROWS", 3)
    await server.database.insert([row for key in ("a", "b") for row in series(key, [1, 2, 3, 4])])
    first = await server.cleanup([KEEP_2], mode="delete", max_deletions=2)
    for _hour in range(5):
        await server.cleanup([KEEP_2], keys=["a"])
    then = await server.cleanup([KEEP_2], mode="delete", max_deletions=1)
    assert (first.stopped_at, [key.key for key in then.key_reports if key.deleted]) == ("b", ["b"])


@on(*BY_FAKE)
@pytest.mark.parametrize("between", ["preview", "refused", "failed", "another scope"])
async def test_where_the_next_run_begins_outlives_runs_in_between(
    server: Server, between: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Previews, and runs that were refused, have failed, or were over other keys."""
    await server.database.insert([row for key in ("a", "b", "c") for row in series(key, [1, 2, 3, 4])])
    first = await server.cleanup([KEEP_2], mode="delete", max_deletions=2)
    assert (first.outcome, first.stopped_at) == ("unfinished", "b")
    if between == "preview":
        await server.cleanup([KEEP_2])
    elif between == "refused":
        with pytest.raises(CleanupFailed):
            await server.cleanup([KEEP_2], mode="delete", refuse_above_percent=1)
    elif between == "failed":
        send = httpx.AsyncHTTPTransport.handle_async_request

        async def fail(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/artifacts/latest/filter"):
                return httpx.Response(400, request=request)
            return await send(transport, request)

        with monkeypatch.context() as patch:
            patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", fail)
            with pytest.raises(CleanupFailed):
                await server.cleanup([KEEP_2], mode="delete")
    else:
        await server.cleanup([KEEP_2], mode="delete", keys=["c*"], max_deletions=1)
    then = await server.cleanup([KEEP_2], mode="delete", max_deletions=1)
    assert [key.key for key in then.key_reports if key.deleted] == ["b"]


@on(*REAL)
async def test_the_packages_own_keys_use_up_no_limit(server: Server) -> None:
    """However many versions of them are stale."""
    await server.database.insert([*series("artifact-retention-report", range(1, 60)), *series("report", [1, 2, 3, 4, 5])])
    report = await server.cleanup([KEEP_2], mode="delete", max_deletions=1)
    assert report.deleted == 1
    assert report.housekeeping[0].deleted > 1
    assert len(await server.database.ids("key = 'report'")) == 4


async def budgeted(server: Server, *shares: str) -> CleanupReport:
    """Run a cleanup of some keys that its time budget stops."""
    return await server.cleanup([KEEP_2], mode="delete", keys=shares, time_budget_minutes=0.001)


async def test_a_share_above_the_limit_is_refused_and_nothing_goes(server: Server) -> None:
    """Of one policy, though the whole run stays below; with a higher limit the same run deletes."""
    big = await server.database.insert(series("big", range(1, 11)))
    small = await server.database.insert(series("small", [1, 2]))
    policies = [
        RetentionPolicy(name="big", match_keys=["big"], keep_last=10),
        RetentionPolicy(name="small", match_keys=["small"], keep_last=1),
    ]
    with pytest.raises(CleanupFailed, match='policy "small" would delete 1 of 2') as refused:
        await server.cleanup(policies, mode="delete", refuse_above_percent=40)
    assert refused.value.report.outcome == "refused"
    assert await server.database.ids() == ids(big, *range(10)) | ids(small, 0, 1)
    await server.cleanup(policies, mode="delete", refuse_above_percent=50)
    assert await server.database.ids() == ids(big, *range(10)) | ids(small, 0)


@on(*BY_FAKE)
async def test_a_policy_without_keys_is_told_and_those_that_protect_nothing_first(server: Server) -> None:
    """With a filter of keys, nobody can know."""
    await server.database.insert([*series("report-a", [1, 2]), *series("report-b", [1])])
    policies = [
        RetentionPolicy(name="typo", match_keys=["reprot-*"], keep_last=1),
        RetentionPolicy(name="reports", match_keys=["*a", "*b"], keep_last=1),
        RetentionPolicy(name="late", match_keys=["report-?"], keep_last=1),
        RetentionPolicy(name="tables", match_types=["table"], keep_all=True),
        RetentionPolicy(name="loose", unkeyed=True, keep_within_days=1),
    ]
    assert (await server.cleanup(policies)).doubts == [
        'policy "tables" PROTECTS NOTHING today: it matches no key',
        'policy "typo" is for nothing today: it matches no key',
        'policy "late" is for nothing today: policies before it take all keys that it matches',
    ]
    assert (await server.cleanup(policies, mode="delete", keys=["report-*"])).doubts == []


@on(FAKE)
@pytest.mark.parametrize(
    ("single", "policy", "is_doubtful"),
    [
        (60, KEEP_2, True),
        (40, KEEP_2, False),
        (60, RetentionPolicy(name="idle", keep_last=2, drop_idle_keys_after_days=90), False),
    ],
    ids=["many", "few", "dropped-when-idle"],
)
async def test_many_keys_with_a_single_version_are_told(
    server: Server,
    single: int,
    policy: RetentionPolicy,
    is_doubtful: bool,  # noqa: FBT001
) -> None:
    """Keys with a date in their name never lose their only version."""
    await server.database.insert([row for number in range(single) for row in series(f"load-{number}", [9])])
    await server.database.insert(series("report", [1, 2]))
    doubts = (await server.cleanup([policy])).doubts
    assert (doubts != []) is is_doubtful
    assert not doubts or f"{single} of its {single + 1} keys have a single version" in doubts[0]


@on(*BY_FAKE)
async def test_doubts_are_in_the_report(server: Server) -> None:
    """Of a preview and of a deletion."""
    await server.database.insert(series("report", [1, 2]))
    policy = RetentionPolicy(name="logs", keep_monthly=12, expire_after_days=30)
    for mode in ("preview", "delete"):
        report = await server.cleanup([policy], mode=mode)
        assert "## Doubts about the policies" in markdown(report)
        assert len(report.doubts) == 1


async def test_no_policy_deletes_nothing(server: Server) -> None:
    """A deletion never guesses."""
    rows = await server.database.insert(series("report", range(1, 20)))
    with pytest.raises(ConfigurationError, match="no policy is configured"):
        await server.cleanup(mode="delete")
    assert await server.database.ids() == ids(rows, *range(19))


HOSTILE_KEYS = ["a_b", "aXb", "a%b", "A-B", "a-b", "", "abc", "abc\n", "a|b`c*<b>", "k" * 3000]


@on(FAKE, *map(thorough, (SQLITE_API, POSTGRESQL_API, SQLITE_DATABASE, POSTGRESQL_DATABASE)))
@pytest.mark.parametrize("key", HOSTILE_KEYS, ids=lambda key: repr(key[:12]))
async def test_a_key_is_matched_exactly(server: Server, key: str) -> None:
    """Its look-alikes lose nothing."""
    rows = {name: await server.database.insert(series(name, [1, 2, 3])) for name in HOSTILE_KEYS}
    is_possible = re.fullmatch("[a-z0-9-]+", key)  # no policy may name the others, which only SQL makes
    policy = RetentionPolicy(name="exact", match_keys=[key if is_possible else "*"], keep_last=1)
    await server.cleanup([policy], keys=[key.replace("*", "[*]")], mode="delete")
    left = {row.id for name in HOSTILE_KEYS for row in rows[name][: 1 if name == key else 3]}
    assert await server.database.ids() == left


async def test_of_versions_created_at_the_same_moment_the_latest_stays(server: Server) -> None:
    """Whatever the ids say."""
    twins = {f"twins-{number}": [Row(f"twins-{number}", days(5)) for _ in range(3)] for number in range(4)}
    latest = {key: rows[number % 3].id for number, (key, rows) in enumerate(twins.items())}
    await server.database.insert([row for rows in twins.values() for row in rows], latest)
    report = await server.cleanup([RetentionPolicy(name="one", keep_last=1)], mode="delete")
    assert report.deleted == 8
    assert await server.database.ids() == {*latest.values()}


@on(*REAL)
async def test_a_collection_whose_latest_does_not_exist_is_repaired_and_nothing_of_it_deleted(server: Server) -> None:
    """The newest version that is left becomes its latest; its neighbour is pruned all the same."""
    broken = await server.database.insert(series("broken", [1, 2, 3]), latest={"broken": uuid4()})
    sound = await server.database.insert(series("sound", [1, 2, 3]))
    report = await server.cleanup([KEEP_2], mode="delete")
    assert await server.database.ids() == ids(broken, 0, 1, 2) | ids(sound, 0, 1)
    assert any("broken: nothing deleted" in warning for warning in report.warnings)
    assert report.repaired == ["broken"]
    rows = await server.database.run("SELECT latest_id FROM artifact_collection WHERE key = 'broken'")
    assert [UUID(str(row[0])) for row in rows] == [broken[0].id]


@on(*REAL)
async def test_a_collection_without_any_version_is_repaired_whenever_it_is_found(server: Server) -> None:
    """Also if the run in which it lost them was killed: its last version is back, as the collection has it."""
    (row,) = await server.database.insert([Row("ghost", days(1), data="boo", metadata={"a": "b"})])
    await server.database.run("UPDATE artifact_collection SET metadata_ = (SELECT metadata_ FROM artifact)")
    await server.database.delete_version(row.id)
    report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.outcome, report.repaired) == ("completed", ["ghost"])
    assert not await server.database.dangling()
    ((data, metadata),) = await server.database.run("SELECT data, metadata_ FROM artifact WHERE key = 'ghost'")
    assert (loads(data), loads(metadata)) == ("boo", {"a": "b"})
    assert (await server.cleanup([KEEP_2], mode="delete")).repaired == []


async def test_a_collection_without_any_version_is_left_to_a_server_that_deletes_by_itself(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be about to remove the collection, too: what has expired does not come back."""

    async def expiry(_server: PrefectServer) -> Expiry:
        return Expiry(of_runs=timedelta(days=90), of_orphans=True)

    monkeypatch.setattr(PrefectServer, "expiry", expiry)
    (row,) = await server.database.insert([Row("ghost", days(100))])
    await server.database.delete_version(row.id)
    report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.outcome, report.repaired) == ("completed", [])
    assert report.warnings == ["ghost: no version of it was found, though the server lists it"]
    assert await server.database.ids() == set()


@on(*REAL)
async def test_a_placeholder_that_a_killed_run_has_left_counts_for_no_version(server: Server) -> None:
    """It was to be deleted at once: no version of the key is deleted before it."""
    copy = Row("broken", days(0.1), metadata={PLACEHOLDER_OF: str(uuid4()), "a": "b"})
    rows = await server.database.insert([copy, *series("broken", [1, 2, 3])])
    (alone,) = await server.database.insert([Row("alone", days(1), metadata={PLACEHOLDER_OF: str(uuid4())})])
    await server.database.run(
        "UPDATE artifact_collection SET metadata_ = (SELECT metadata_ FROM artifact WHERE id = latest_id)"
    )
    report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.repaired, report.deleted) == (["broken"], 0)
    assert await server.database.ids() == ids(rows, 1, 2, 3) | {alone.id}
    report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.repaired, report.deleted) == ([], 1)
    assert await server.database.ids() == ids(rows, 1, 2) | {alone.id}


@on(*REAL)
@pytest.mark.parametrize(
    "metadata",
    [{"note": PLACEHOLDER_OF}, {PLACEHOLDER_OF.upper(): "x"}, {PLACEHOLDER_OF: str(uuid4()), "retention-hold": "true"}],
)
async def test_a_version_that_only_looks_like_a_placeholder_or_is_held_stays(server: Server, metadata: dict[str, str]) -> None:
    """It is a version like any other."""
    rows = await server.database.insert([Row("report", days(0.1), metadata=metadata), *series("report", [1, 2])])
    copied = "(SELECT metadata_ FROM artifact WHERE id = latest_id)"
    await server.database.run(f"UPDATE artifact_collection SET metadata_ = {copied}")
    report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.repaired, report.deleted) == ([], 1)
    assert await server.database.ids() == ids(rows, 0, 1)


@on(*REAL)
async def test_what_changes_between_plan_and_prune_is_seen(server: Server) -> None:
    """A hold set, a key gone, a version gone meanwhile: nothing wanted goes, nothing fails."""
    held = await server.database.insert(series("held", [1, 2, 3, 4]))
    await server.database.insert(series("gone", [1, 2, 3, 4]))
    thinned = await server.database.insert(series("thinned", [1, 2, 3, 4]))

    async def interfere() -> None:
        await server.database.update_metadata(held[2].id, {"retention-hold": "true"})
        await server.database.delete_key("gone")
        await server.database.run(
            "DELETE FROM artifact WHERE id = :id",
            [{"id": str(thinned[3].id) if server.database.is_sqlite else thinned[3].id}],
        )

    with when_planned(interfere):
        report = await server.cleanup([KEEP_2], mode="delete")
    assert await server.database.ids() == ids(held, 0, 1, 2) | ids(thinned, 0, 1)
    assert (report.planned, report.deleted, report.spared, report.already_gone) == (6, 2, 1, 3)
    assert report.outcome == "completed"


async def test_a_version_created_meanwhile_stays_and_takes_no_slot(server: Server) -> None:
    """The former latest is still among the kept."""
    rows = await server.database.insert(series("report", [1, 2, 3, 4]))

    async def produce() -> None:
        await asyncio.sleep(1.1)
        async with get_client() as client:
            await client.request("POST", "/artifacts/", json={"key": "report", "type": "markdown", "data": "new"})

    with when_planned(produce):
        await server.cleanup([KEEP_2], mode="delete")
    left = await server.database.ids()
    assert ids(rows, 0, 1) <= left
    assert len(left) == 3


@on(*BY_FAKE)
async def test_one_keys_failure_stops_no_other(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is Failed, its report says which key, and a rerun does the rest."""
    bad = await server.database.insert(series("bad", [1, 2, 3]))
    good = await server.database.insert(series("good", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def fail_for_bad(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE" and request.url.path.endswith(str(bad[2].id)):
            return httpx.Response(500, json={"detail": "boom"})
        return await send(transport, request)

    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", fail_for_bad)
        with pytest.raises(CleanupFailed, match=r"bad: .*500.*boom") as failed:
            await server.cleanup([KEEP_2], mode="delete")
    assert (failed.value.report.failed, failed.value.report.deleted) == (1, 1)
    assert await server.database.ids() == ids(bad, 0, 1, 2) | ids(good, 0, 1)
    await server.cleanup([KEEP_2], mode="delete")
    assert await server.database.ids() == ids(bad, 0, 1) | ids(good, 0, 1)


@on(*BY_FAKE)
async def test_an_answer_lost_after_the_deletion_counts_as_deleted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second attempt finds nothing: that was ours."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request
    lost: list[str] = []

    async def lose_first(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await send(transport, request)
        if request.method == "DELETE" and not lost:
            lost.append(request.url.path)
            return httpx.Response(503)
        return response

    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", lose_first)
        report = await server.cleanup([KEEP_2], mode="delete")
    assert lost
    assert (report.deleted, report.already_gone) == (1, 0)
    assert await server.database.ids() == ids(rows, 0, 1)


@on(*REAL)
async def test_an_unreadable_plan_deletes_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncated answer is reported as an error, and no version is deleted."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def truncate(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/artifacts/filter"):
            return httpx.Response(200, content=b'[{"id": "')
        return await send(transport, request)

    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", truncate)
        with pytest.raises(CleanupFailed, match="does not answer like a Prefect API"):
            await server.run_flow([KEEP_2], mode="delete")
    assert await server.database.ids() == ids(rows, 0, 1, 2)


@on(*BY_API)
@pytest.mark.parametrize(
    ("what", "rows", "words"),
    [
        ("artifacts/latest/filter", [{"key": "report"}], "cannot be read as a row of Prefect 3"),
        ("artifacts/filter", [{"id": "x", "key": "report"}], "cannot be read as a row of Prefect 3"),
        ("artifacts/filter", [1, 2, 3], "something else than a list of rows"),
    ],
)
async def test_rows_of_an_unknown_shape_fail_the_run_with_a_message(
    server: Server, monkeypatch: pytest.MonkeyPatch, what: str, rows: list[object], words: str
) -> None:
    """As another version of Prefect may list them: nothing goes, and there is a report."""
    versions = await server.database.insert(series("report", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def misshape(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        is_victim = request.url.path.endswith(what) and b"artifact-retention-progress" not in request.content
        return httpx.Response(200, json=rows, request=request) if is_victim else await send(transport, request)

    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", misshape)
        with pytest.raises(CleanupFailed, match=words):
            await server.cleanup([KEEP_2], mode="delete")
    assert await server.database.ids() == ids(versions, 0, 1, 2)
    (report,) = await server.database.run("SELECT data FROM artifact WHERE key = 'artifact-retention-report'")
    assert words in loads(report[0])


@on(*BY_API)
async def test_an_unforeseen_error_is_reported(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that breaks in a way that nobody thought of leaves a report and no run that seems to be deleting."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def fail(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            raise ZeroDivisionError
        return await send(transport, request)

    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", fail)
        with pytest.raises(CleanupFailed, match="unexpected ZeroDivisionError") as failed:
            await server.cleanup([KEEP_2], mode="delete")
    assert failed.value.report.deleted == 3 - len(await server.database.ids())
    assert rows[0].id in await server.database.ids()
    assert await server.database.run("SELECT id FROM artifact WHERE key = 'artifact-retention-report'")
    (progress,) = await server.database.run("SELECT metadata_ FROM artifact WHERE key = 'artifact-retention-progress'")
    assert "deleting" not in str(loads(progress[0]))


@on(*BY_FAKE)
async def test_refused_credentials_are_reported_as_a_message(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a wrong API key is."""

    async def refuse(_transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"detail": "no"}, request=request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", refuse)
    with server.active(), pytest.raises(StoreError, match=r"refuses our credentials \(401\)"):
        async with connect() as connection:
            await connection.now()


async def test_progress_is_updated_seldom_and_a_run_without_work_writes_little(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most twenty updates with work, five without."""
    await server.database.insert([row for number in range(60) for row in series(f"key-{number}", [1, 2, 3])])
    send = httpx.AsyncHTTPTransport.handle_async_request
    updates: list[str] = []

    async def count(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH" and "/artifacts/" in request.url.path:
            updates.append(request.url.path)
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", count)
    await server.cleanup([KEEP_2], mode="delete")
    assert 1 <= len(updates) <= 20
    updates.clear()
    report = await server.cleanup([KEEP_2], mode="delete")
    assert report.planned == 0
    assert 1 <= len(updates) <= 5


async def test_the_reasons_for_an_artifact_without_a_key_do_not_depend_on_its_page(server: Server) -> None:
    """Both are of a run that goes on, which counts for the one that nothing else keeps, wherever the other is listed."""
    with server.active():
        async with get_client() as client:
            run_id = (await client.create_flow_run(writer, state=Running())).id
    await server.database.insert([Row(None, days(age), flow_run_id=run_id) for age in (1, 40)])
    report = await server.cleanup([RetentionPolicy(name="unkeyed", unkeyed=True, keep_within_days=30)])
    assert {each.rule: each.versions for each in report.kept_by} == {"keep_within_days": 1, "running": 1}


@on(*REAL)
async def test_the_packages_own_keys_stay_bounded(server: Server) -> None:
    """Thirty versions of each are kept, also by runs over other keys only."""
    for key in ("artifact-retention-report", "artifact-retention-progress"):
        await server.database.insert(series(key, [number / 24 for number in range(1, 41)]))
    await server.database.insert(series("report", [1, 2, 3]))
    await server.cleanup([KEEP_2], keys=["report"], mode="delete", refuse_above_percent=50)
    # What a busy server answers too late is posted again by the same run, and counts once.
    versions = "count(*) - count(flow_run_id) + count(DISTINCT flow_run_id)"
    counts = dict(await server.database.run(f"SELECT key, {versions} FROM artifact GROUP BY key"))
    assert counts == {
        "artifact-retention-report": 31,
        "artifact-retention-progress": 31,
        "artifact-retention-history": 1,
        "report": 2,
    }


@on(POSTGRESQL_DATABASE, *map(thorough, (SQLITE_API, POSTGRESQL_API, SQLITE_DATABASE)))
async def test_500_keys_of_20_versions_are_left_exactly_as_an_independent_query_says(server: Server) -> None:
    """Ten thousand versions; what goes is what ranks below 19."""
    rows = [row for number in range(500) for row in series(f"key-{number}", [1 + number / 1000 + age for age in range(20)])]
    await server.database.insert(rows)
    ranked = "SELECT id, row_number() OVER (PARTITION BY key ORDER BY created DESC, id DESC) AS rank FROM artifact"
    keep = {UUID(str(row[0])) for row in await server.database.run(f"SELECT id FROM ({ranked}) AS r WHERE rank <= 19")}
    report = await server.cleanup([RetentionPolicy(name="p", keep_last=19)], mode="delete")
    assert (report.versions_seen, report.planned, report.deleted) == (10_000, 500, 500)
    assert await server.database.ids() == keep
    assert not await server.database.dangling()


@on(*BY_FAKE)
async def test_a_deletion_rate_limit_holds_over_all_tasks(server: Server) -> None:
    """Three requests a second, but for the first eighteen: a run of some thirty takes its time."""
    await server.database.insert([row for number in range(3) for row in series(f"key-{number}", [1, 2, 3])])
    report = await server.cleanup([KEEP_2], mode="delete", max_requests_per_minute=180)
    assert report.deleted == 3
    assert timedelta(seconds=report.duration_seconds) >= timedelta(seconds=2)


@on(*SEVERAL_CLIENTS)
@pytest.mark.parametrize("keep", [1, 2])
async def test_a_successor_stays_when_a_person_deletes_the_latest_before_the_first_deletion(
    server: Server, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    """After the re-check of the key, and before its first deletion."""
    rows = await server.database.insert(series("report", [1, *range(2, keep + 2)]))
    send = httpx.AsyncHTTPTransport.handle_async_request
    planned: list[bool] = []
    deleted: list[bool] = []

    async def mark() -> None:
        planned.append(True)

    async def delete_latest(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await send(transport, request)
        if planned and not deleted and request.url.path.endswith("/artifacts/filter"):
            deleted.append(True)
            async with get_client() as person:
                await person.delete_artifact(rows[0].id)
        return response

    with monkeypatch.context() as patch, when_planned(mark):
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", delete_latest)
        report = await server.run_flow([RetentionPolicy(name="p", keep_last=keep)], mode="delete")
    assert deleted
    assert await server.database.ids() == ids(rows, *range(1, keep + 1))
    assert (report.deleted, report.spared) == (0, 1)
    assert not await server.database.dangling()


@on(*BY_API)
async def test_an_error_never_shows_an_api_key(server: Server) -> None:
    """Not even one that HTTP refuses to send, which httpx would quote."""
    # Prefect's client tries again, five times, as if a network were at fault.
    key = temporary_settings(updates={PREFECT_API_KEY: "pnu_secret\n", PREFECT_CLIENT_MAX_RETRIES: 0})
    with server.active(), key, pytest.raises(StoreError, match="forbids") as refused:
        async with connect() as connection:
            await connection.now()
    assert "pnu_secret" not in str(refused.value)


async def test_a_run_that_reads_for_long_before_it_deletes_says_that_it_is_alive(server: Server) -> None:
    """A younger run would else take it for dead."""
    await server.database.insert(series("report", [1, 2, 3]))
    told: list[tuple[Step, int]] = []

    async def listen(step: Step, done: int, _total: int) -> None:
        told.append((step, done))

    token = LISTENER.set(listen)
    try:
        await server.cleanup([KEEP_2], mode="delete")
    finally:
        LISTENER.reset(token)
    assert [done for step, done in told if step == "deleting"][:2] == [0, 1]


@pytest.mark.parametrize("what", ["hold", "run"])
async def test_what_comes_to_hold_a_version_after_the_recheck_keeps_it(server: Server, what: str) -> None:
    """A key with many versions is deleted for long; a late one may be held, or its run set going again, meanwhile."""
    with server.active():
        async with get_client() as client:
            finished = await client.create_flow_run(writer, state=Completed())
            rows = series("report", range(1, 125))
            kept = rows[10]
            kept.flow_run_id = finished.id
            await server.database.insert(rows)

            async def hold() -> None:
                if what == "hold":
                    await server.database.update_metadata(kept.id, {"retention-hold": "true"})
                else:
                    await client.set_flow_run_state(finished.id, Running(), force=True)

            with when_deleting(hold):
                report = await server.cleanup([KEEP_2], mode="delete")
    assert await server.database.ids() == {*ids(rows, 0, 1), kept.id}
    assert (report.outcome, report.deleted, report.spared) == ("completed", 121, 1)


@on(*SEVERAL_CLIENTS)
async def test_a_producer_and_a_person_before_the_first_deletion_cost_no_successor(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new version takes no slot, so the one behind the deleted latest moves up."""
    rows = await server.database.insert(series("report", [1, 2]))
    send = httpx.AsyncHTTPTransport.handle_async_request
    planned: list[bool] = []
    done: list[bool] = []

    async def mark() -> None:
        # The new version must be younger than the run, whose clock has whole seconds.
        await asyncio.sleep(1.1)
        planned.append(True)

    async def interfere(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await send(transport, request)
        if planned and not done and request.url.path.endswith("/artifacts/filter"):
            done.append(True)
            async with get_client() as somebody:
                await somebody.request("POST", "/artifacts/", json={"key": "report", "type": "markdown", "data": "new"})
                await somebody.delete_artifact(rows[0].id)
        return response

    with monkeypatch.context() as patch, when_planned(mark):
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", interfere)
        report = await server.run_flow([RetentionPolicy(name="p", keep_last=1)], mode="delete")
    assert done
    left = await server.database.ids()
    assert rows[1].id in left
    assert (len(left), report.deleted) == (2, 0)


async def test_a_key_that_comes_under_another_policy_meanwhile_keeps_what_that_one_keeps(server: Server) -> None:
    """Its latest version is of another type now, which a policy shields."""
    shield = RetentionPolicy(name="tables", match_types=["table"], keep_all=True)
    await server.database.insert(series("report", range(1, 125)))

    async def produce() -> None:
        async with get_client() as client:
            await client.request("POST", "/artifacts/", json={"key": "report", "type": "table", "data": "[]"})

    with when_deleting(produce):
        report = await server.cleanup([shield, KEEP_2], mode="delete")
    assert report.deleted == checks.DELETIONS_PER_CHECK
    assert len(await server.database.ids()) == 125 - checks.DELETIONS_PER_CHECK


async def test_an_idle_key_that_comes_to_life_meanwhile_loses_no_more(server: Server) -> None:
    """Somebody writes to it while it is being deleted: from then on, its keep rules count again."""
    rows = await server.database.insert(series("report-2026-01-31", range(100, 224)))

    async def produce() -> None:
        async with get_client() as client:
            await client.request("POST", "/artifacts/", json={"key": rows[0].key, "type": "markdown", "data": "new"})

    policy = RetentionPolicy(name="by date", keep_last=10, drop_idle_keys_after_days=90)
    with when_deleting(produce):
        report = await server.cleanup([policy], mode="delete")
    left = await server.database.ids()
    assert ids(rows, *range(10)) < left
    assert (len(left), report.deleted, report.spared) == (11, 114, 10)


@on(*REAL)
async def test_what_a_task_outside_any_flow_is_writing_stays(server: Server) -> None:
    """Its artifacts name no flow run, only the task run."""
    running, ended = uuid4(), uuid4()
    for run_id, state in ((running, "RUNNING"), (ended, "COMPLETED")):
        body = {"id": str(run_id), "task_key": "t", "dynamic_key": str(run_id), "state": {"type": state}}
        with server.active():
            async with get_client() as client:
                await client.request("POST", "/task_runs/", json=body)
    rows = series("report", [1, 2, 3, 4, 5])
    rows[3].task_run_id, rows[4].task_run_id = running, ended
    await server.database.insert(rows)
    await server.cleanup([KEEP_2], mode="delete")
    assert await server.database.ids() == ids(rows, 0, 1, 3)
