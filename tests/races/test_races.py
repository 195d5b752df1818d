"""Producers, people, another cleanup and the server's own vacuum work on the keys that a cleanup prunes to one version."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

import httpx
import pytest
from chance import SEED
from database import Row, series
from prefect import flow, get_client
from prefect.states import Completed
from prefect_artifact_retention.flows import cleanup
from prefect_artifact_retention.flows.cleanup import LISTENER, open_run
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.tasks.discover import discover
from prefect_artifact_retention.tasks.plan import make_plan
from prefect_artifact_retention.tasks.report import CleanupReport
from prefect_artifact_retention.tasks.run import Run, Step
from servers import POSTGRESQL_DATABASE, Server, on

POLICIES = (
    RetentionPolicy(name="keep one and the oldest", match_keys=["old-*"], keep_last=1, keep_oldest=True),
    RetentionPolicy(name="keep one", keep_last=1),
)
HELD = {"retention-hold": "true"}

pytestmark = pytest.mark.usefixtures("others_delete_meanwhile")


@flow(name="producer")
def producer() -> None:
    """Its run is old, so the server's vacuum deletes what it wrote."""


@dataclass
class Crowd:
    """Everybody else: what they created and what they deleted."""

    server: Server
    chance: random.Random
    keys: dict[str, list[Row]] = field(default_factory=dict)
    created: dict[UUID, str] = field(default_factory=dict)
    deleted: set[UUID] = field(default_factory=set)
    vacuumed: set[str] = field(default_factory=set)
    nervous: dict[UUID, UUID] = field(default_factory=dict)
    """At the very moment when a cleanup deletes the first of these, which follows the latest, a person deletes the latest."""
    busy: list[str] = field(default_factory=list)
    """The keys that producers write to."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A connection pool of their own."""
        limits = httpx.Limits(max_connections=6)
        async with httpx.AsyncClient(base_url=f"{self.server.local.address}/api", timeout=30, limits=limits) as client:
            yield client

    async def ask(self, client: httpx.AsyncClient, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        """Send a request until it is answered; under load, this server resets connections."""
        for _attempt in range(30):
            with suppress(httpx.TransportError):
                response = await client.request(method, path, json=body)
                if response.status_code < 500:
                    return response.json() if response.content and response.is_success else None
            await asyncio.sleep(0.05)
        raise AssertionError(f"no answer to {method} {path}")

    async def fill(self, number: int) -> None:
        """Some versions of many keys; of every tenth, the latest is of a run that the vacuum is going to find."""
        with self.server.active():
            async with get_client() as client:
                self.old_run = (await client.create_flow_run(producer, state=Completed())).id
        for key in (f"{self.chance.choice(('key', 'key', 'key', 'old'))}-{index:04}" for index in range(number)):
            rows = series(key, range(1, self.chance.randint(3, 5)))
            if self.chance.random() < 0.2:
                self.chance.choice(rows[2:] or rows).metadata = HELD
            if self.chance.random() < 0.1:
                self.vacuumed.add(key)
                rows[0].flow_run_id = self.old_run
            elif self.chance.random() < 0.6:
                self.nervous[rows[1].id] = rows[0].id
            if self.chance.random() < 0.3:
                self.busy.append(key)
            self.keys[key] = rows
        await self.server.database.insert([row for rows in self.keys.values() for row in rows])

    async def delete(self, client: httpx.AsyncClient, version_id: UUID) -> None:
        """As a person does who has the page open."""
        self.deleted.add(version_id)
        await self.ask(client, "DELETE", f"/artifacts/{version_id}")

    async def delete_latest(self, client: httpx.AsyncClient, key: str) -> None:
        """As a person does in the user interface."""
        only = {"artifacts": {"key": {"any_": [key]}}}
        if rows := await self.ask(client, "POST", "/artifacts/latest/filter", only):
            await self.delete(client, UUID(rows[0]["latest_id"]))

    async def produce(self, client: httpx.AsyncClient) -> None:
        """Create versions of any keys, until it is over."""
        while True:
            key = self.chance.choice(self.busy)
            made = await self.ask(client, "POST", "/artifacts/", {"key": key, "type": "markdown", "data": "new"})
            self.created[UUID(made["id"])] = key
            await asyncio.sleep(self.chance.random() / 5)

    async def wander(self, client: httpx.AsyncClient) -> None:
        """Delete the latest of any keys, until it is over."""
        while True:
            await self.delete_latest(client, self.chance.choice(list(self.keys)))
            await asyncio.sleep(self.chance.random() / 5)

    async def vacuum(self) -> None:
        """Let the producer's run turn old."""
        await self.server.database.run(
            f"UPDATE flow_run SET end_time = now() - interval '3 hours' WHERE id = '{self.old_run}'"
        )

    def kept_besides(self) -> set[UUID]:
        """What the policies keep of what was there at first, besides the latest: the oldest, and what is held."""
        oldest = {rows[-1].id for key, rows in self.keys.items() if key.startswith("old-")}
        return oldest | {row.id for rows in self.keys.values() for row in rows if row.metadata == HELD}

    def must_stay(self) -> set[UUID]:
        """What the policies keep and nobody else deleted: each first latest, and whatever is new, too."""
        vacuumed = {row.id for rows in self.keys.values() for row in rows if row.flow_run_id}
        first = {rows[0].id for rows in self.keys.values()}
        return (first | self.kept_besides() | set(self.created)) - self.deleted - vacuumed


async def rival(run: Run) -> None:
    """Prune as a second cleanup does that gives way to nobody."""
    run.plans.reverse()
    await cleanup._delete(run, vacuum=False)  # noqa: SLF001 - as the flow does, in whichever store


async def race(server: Server, monkeypatch: pytest.MonkeyPatch, keys: int) -> str:
    """Let them all loose on so many keys while a cleanup keeps one version of each; return the figures."""
    crowd = Crowd(server, random.Random(SEED))
    await crowd.fill(keys)
    send = httpx.AsyncHTTPTransport.handle_async_request
    async with crowd.client() as client:

        async def watch(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
            version = request.url.path.rpartition("/")[2]
            if request.method == "DELETE" and (latest := crowd.nervous.pop(UUID(version), None)):
                crowd.tasks.append(asyncio.create_task(crowd.delete(client, latest)))
                await asyncio.sleep(crowd.chance.choice((0, 0, 0.002, 0.005)))
            return await send(transport, request)

        monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", watch)
        with server.active():
            async with open_run(RetentionSettings(), "delete", POLICIES, []) as second:
                await discover(second)
                await make_plan(second)
                loose: list[asyncio.Task[None]] = []

                async def let_loose(step: Step, done: int, total: int) -> None:
                    if step == "planning" and done == total and not loose:
                        await crowd.vacuum()
                        loose.append(asyncio.create_task(rival(second)))
                        loose.extend(asyncio.create_task(crowd.produce(client)) for _ in range(4))
                        loose.append(asyncio.create_task(crowd.wander(client)))

                token = LISTENER.set(let_loose)
                try:
                    report = await server.cleanup(POLICIES, mode="delete")
                finally:
                    LISTENER.reset(token)
                await loose[0]
                # Producers and people are still at it; where no cleanup has deleted anything, they may break a key themselves.
                touched = second.touched | {each.key for each in report.key_reports if each.deleted}
                assert not touched.intersection(await server.database.dangling()), "when the cleanups had ended"
                for task in loose[1:]:
                    task.cancel()
                await asyncio.gather(*loose[1:], return_exceptions=True)
                monkeypatch.undo()
                await asyncio.gather(*crowd.tasks)
                return await look(server, crowd, report, second)


async def look(server: Server, crowd: Crowd, report: CleanupReport, second: Run) -> str:
    """See what is left, and whether one more cleanup leaves of each key what the policies keep; return the figures."""
    assert not crowd.must_stay() - await server.database.ids()
    assert report.outcome == "completed"
    assert not [plan.key for plan in second.plans if plan.report.error]
    # The server's Date header is up to two seconds late, and what is newer than the run is none of its business.
    await asyncio.sleep(3)
    await server.cleanup(POLICIES, mode="delete")
    left: dict[str, list[UUID]] = {key: [] for key in crowd.keys}
    for key, version_id in await server.database.run("SELECT key, id FROM artifact ORDER BY created, id"):
        left.get(key, []).append(version_id)
    kept = crowd.kept_besides() | {ids[0] for key, ids in left.items() if ids and key.startswith("old-")}
    kept |= {row[0] for row in await server.database.run("SELECT latest_id FROM artifact_collection")}
    assert not {version_id for ids in left.values() for version_id in ids} - kept, "after one more cleanup"
    assert not await server.database.dangling()
    empty = {rows[0].id for key, rows in crowd.keys.items() if not left[key] and key not in crowd.vacuumed}
    assert empty <= crowd.deleted, "only a person, or the vacuum, takes a key's last version"
    repaired = set(report.repaired) | set(second.report.repaired)
    return (
        f"races: {len(crowd.keys)} collections on PostgreSQL, seed {SEED}: {len(crowd.created)} versions created, "
        f"{len(crowd.deleted)} latest versions deleted by people, {len(crowd.vacuumed)} by the server's vacuum, two cleanups "
        f"deleted {report.deleted} and {second.report.deleted}; {len(repaired)} dangling collections repaired, 0 left; kept "
        f"versions lost 0; keys whose last version people deleted {len(empty)}"
    )


@pytest.mark.thorough
@pytest.mark.parametrize("store", ["database", "api"])
async def test_a_short_race(vacuumed: Server, monkeypatch: pytest.MonkeyPatch, store: Literal["api", "database"]) -> None:
    """No collection is left dangling, and no version that the policy keeps is gone."""
    await race(replace(vacuumed, store=store), monkeypatch, 40)


@on(POSTGRESQL_DATABASE)
async def test_holds_set_while_keys_are_pruned_in_bulk_are_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hold that the server has taken before its version went holds: of no such version the server says so and it is gone."""
    monkeypatch.setattr("prefect_artifact_retention.tasks.prune_database.MAX_TRANSACTION_VERSIONS", 20)
    rows = await server.database.insert([row for number in range(100) for row in series(f"key-{number:03}", [1, 2, 3, 4])])
    stale = [row for number, row in enumerate(rows) if number % 4]
    held: set[UUID] = set()

    async def hold(chance: random.Random) -> None:
        async with httpx.AsyncClient(base_url=f"{server.local.address}/api", timeout=30) as client:
            for row in chance.sample(stale, 60):
                # As above: who gets no answer knows of no hold.
                with suppress(httpx.TransportError):
                    answer = await client.patch(f"/artifacts/{row.id}", json={"metadata_": {"retention-hold": "true"}})
                    if answer.is_success:
                        held.add(row.id)

    holders: list[asyncio.Task[None]] = []

    async def let_loose(step: Step, done: int, total: int) -> None:
        if step == "planning" and done == total and not holders:
            holders.extend(asyncio.create_task(hold(random.Random(SEED + number))) for number in range(3))

    token = LISTENER.set(let_loose)
    try:
        report = await server.cleanup(POLICIES, mode="delete")
    finally:
        LISTENER.reset(token)
    await asyncio.gather(*holders)
    left = await server.database.ids()
    assert held <= left
    assert report.outcome == "completed"
    assert report.deleted + report.spared == report.planned == len(stale)
    assert not await server.database.dangling()


@pytest.mark.long
async def test_a_long_race(vacuumed: Server, monkeypatch: pytest.MonkeyPatch, tell: Callable[[str], None]) -> None:
    """The same for six hundred keys; some dangle in between, or it was no race."""
    figures = await race(vacuumed, monkeypatch, 600)
    tell(figures)
    assert " 0 dangling collections repaired" not in figures
