"""What the fake server answers is what real servers answer, on SQLite and on PostgreSQL."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from chance import SEED
from database import LOCKED_SECONDS, Row, days, series
from fake import FakeServer
from prefect import flow, get_client, task
from prefect.states import Completed, Running
from prefect_artifact_retention.stores.api import ApiStore
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.stores.server import Expiry
from prefect_artifact_retention.stores.server import Server as PrefectServer
from servers import FAKE, POSTGRESQL_API, SQLITE_API, PatientClient, Server, on

pytestmark = on(FAKE, SQLITE_API, POSTGRESQL_API)

AnyServer = Server | FakeServer
ARTIFACT_FIELDS = {
    "created", "data", "description", "flow_run_id", "id", "key", "metadata_", "task_run_id", "type", "updated",
}  # fmt: skip
MORE_THAN_A_PAGE = 201


@flow
def writer() -> None:
    """Somebody's flow."""


@task
def nothing() -> None:
    """Somebody's task."""


class Api(PatientClient):
    """Questions to a server."""

    async def ask(self, path: str, **body: object) -> Any:  # noqa: ANN401 - JSON
        """The answer to a question that has one."""
        return (await self.post(path, json=body)).raise_for_status().json()

    async def create(self, key: str | None, **fields: object) -> UUID:
        """A new version."""
        return UUID((await self.ask("/artifacts/", key=key, **({"type": "markdown", "data": "x"} | fields)))["id"])

    async def latest(self) -> dict[str, UUID]:
        """The latest version of each key."""
        return {row["key"]: UUID(row["latest_id"]) for row in await self.ask("/artifacts/latest/filter")}

    async def ids(self, **body: object) -> list[UUID]:
        """The versions of a listing, in its order."""
        return [UUID(row["id"]) for row in await self.ask("/artifacts/filter", **body)]

    async def count(self, **only: object) -> int:
        """How many versions there are."""
        count: int = await self.ask("/artifacts/count", artifacts=only)
        return count


@asynccontextmanager
async def api_of(server: AnyServer) -> AsyncIterator[Api]:
    """Talk to a server."""
    # Uvicorn closes a connection after an error of its application.
    headers = {"Accept-Encoding": "identity", "Connection": "close"}
    async with Api(server, headers=headers) as api:
        yield api


@pytest.fixture
async def api(server: AnyServer) -> AsyncIterator[Api]:
    """A server without artifacts, to talk to."""
    async with api_of(server) as talking:
        yield talking


# --- latest


async def test_a_new_version_is_the_latest_of_its_key(api: Api) -> None:
    """The collection copies it, but for when it was created, which is when its first version was."""
    first = await api.create("report", data="one")
    second = await api.create("report", data=[2], description="two", metadata_={"a": "b"})
    (collection,) = await api.ask("/artifacts/latest/filter")
    versions = {UUID(row["id"]): row for row in await api.ask("/artifacts/filter")}
    assert set(collection) == ARTIFACT_FIELDS | {"latest_id"}
    assert all(set(version) == ARTIFACT_FIELDS for version in versions.values())
    assert UUID(collection["latest_id"]) == second
    copied = ("data", "description", "metadata_", "type", "updated")
    assert [collection[name] for name in copied] == [versions[second][name] for name in copied]
    assert collection["created"] == versions[first]["created"] < versions[second]["created"]
    assert collection["id"] not in {str(first), str(second)}


async def test_a_version_without_a_key_has_no_collection(api: Api) -> None:
    """It is only counted among the versions."""
    await api.create(None)
    assert await api.latest() == {}
    assert await api.count() == 1


async def test_the_next_by_date_follows_a_latest_that_is_deleted(server: AnyServer, api: Api) -> None:
    """Though the latest was not the newest; the collection then is as old as its latest."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    await server.database.clear()
    await server.database.insert(rows, {"report": rows[2].id})
    assert (await api.delete(f"/artifacts/{rows[2].id}")).status_code == 204
    assert await api.latest() == {"report": rows[0].id}
    (collection,) = await api.ask("/artifacts/latest/filter")
    newest = (await api.get(f"/artifacts/{rows[0].id}")).json()
    assert collection["created"] == newest["created"]
    assert await server.database.ids() == {rows[0].id, rows[1].id}


async def test_another_version_that_is_deleted_leaves_the_latest(server: AnyServer, api: Api) -> None:
    """And the last one takes its collection with it."""
    rows = await server.database.insert(series("report", [1, 2]))
    await api.delete(f"/artifacts/{rows[1].id}")
    assert await api.latest() == {"report": rows[0].id}
    await api.delete(f"/artifacts/{rows[0].id}")
    assert await api.latest() == {}
    assert await server.database.ids() == set()


async def test_what_is_not_there_is_not_found(api: Api) -> None:
    """Neither to read, nor to change, nor to delete, also for a second time."""
    version_id = await api.create("report")
    await api.delete(f"/artifacts/{version_id}")
    for missing in (version_id, uuid4()):
        answers = [
            await api.get(f"/artifacts/{missing}"),
            await api.patch(f"/artifacts/{missing}", json={"data": 1}),
            await api.delete(f"/artifacts/{missing}"),
        ]
        assert [answer.status_code for answer in answers] == [404] * 3
        assert [answer.json() for answer in answers] == [{"detail": "Artifact not found."}] * 3


async def test_a_collection_whose_latest_has_vanished_is_served_as_it_was(server: AnyServer, api: Api) -> None:
    """Until a new version is posted; its copy can be changed, and nothing of it deleted."""
    rows = await server.database.insert(series("report", [1, 2]))
    await server.database.delete_version(rows[0].id)
    assert await server.database.dangling() == ["report"]
    assert await api.latest() == {"report": rows[0].id}
    assert (await api.patch(f"/artifacts/{rows[0].id}", json={"data": "changed"})).status_code == 204
    assert [row["data"] for row in await api.ask("/artifacts/latest/filter")] == ["changed"]
    assert (await api.delete(f"/artifacts/{rows[0].id}")).status_code == 404
    posted = await api.create("report")
    assert await api.latest() == {"report": posted}
    assert await server.database.dangling() == []


# --- what may be written


async def test_metadata_is_cut_and_replaced(api: Api) -> None:
    """At 500 characters; a change replaces all of it, and one of something else none."""
    version_id = await api.create("report", metadata_={"long": "x" * 501, "short": "y" * 500})
    version = (await api.get(f"/artifacts/{version_id}")).json()
    assert version["metadata_"] == {"long": "x" * 500 + "...", "short": "y" * 500}
    await api.patch(f"/artifacts/{version_id}", json={"data": 7})
    assert (await api.get(f"/artifacts/{version_id}")).json()["metadata_"] == version["metadata_"]
    await api.patch(f"/artifacts/{version_id}", json={"metadata_": {"new": "z" * 501}})
    changed = (await api.get(f"/artifacts/{version_id}")).json()
    assert (changed["metadata_"], changed["data"]) == ({"new": "z" * 500 + "..."}, 7)
    assert changed["created"] == version["created"]
    assert changed["updated"] > version["updated"]


async def test_a_change_of_the_latest_shows_in_its_collection_and_one_of_another_does_not(api: Api) -> None:
    """Both are changed themselves."""
    before, latest = await api.create("report"), await api.create("report")
    for version_id, data in ((before, "older"), (latest, "newer")):
        assert (await api.patch(f"/artifacts/{version_id}", json={"data": data})).status_code == 204
    (collection,) = await api.ask("/artifacts/latest/filter")
    assert collection["data"] == "newer"
    assert (await api.get(f"/artifacts/{before}")).json()["data"] == "older"


@pytest.mark.parametrize(
    "body",
    [
        {"key": "Not A Key"},
        {"key": "report", "metadata_": {"number": 1}},
        {"key": "report", "metadata_": ["list"]},
        {"key": "report", "created": "2026-01-01T00:00:00Z"},
        {"key": "report", "metadata": {"wrong": "name"}},
        {"key": "report", "flow_run_id": "no id"},
    ],
    ids="-".join,
)
async def test_an_artifact_that_is_none_is_refused(api: Api, body: Mapping[str, object]) -> None:
    """Nothing is created."""
    assert (await api.post("/artifacts/", json=body)).status_code == 422
    assert await api.count() == 0


async def test_some_odd_keys_pass(api: Api) -> None:
    """An empty one, one that ends with a line break, and one of 3,000 characters."""
    keys = {"", "abc\n", "x" * 3_000}
    for key in keys:
        await api.create(key)
    assert set(await api.latest()) == keys


async def test_the_clock_tells_when_a_version_was_created(server: AnyServer, api: Api) -> None:
    """Which is now."""
    answer = await api.post("/artifacts/", json={"key": "report", "data": "x"})
    assert answer.status_code == 201
    created = datetime.fromisoformat(answer.json()["created"])
    told = parsedate_to_datetime(answer.headers["Date"])
    assert abs(told - created) < timedelta(seconds=LOCKED_SECONDS)
    assert abs(told - datetime.now(UTC)) < timedelta(seconds=LOCKED_SECONDS)
    assert answer.json()["updated"] == answer.json()["created"]
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert await server.database.ids() == {UUID(answer.json()["id"])}


# --- listings


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/artifacts/filter", {"limit": MORE_THAN_A_PAGE}),
        ("/artifacts/latest/filter", {"limit": MORE_THAN_A_PAGE}),
        ("/flow_runs/filter", {"limit": MORE_THAN_A_PAGE}),
        ("/artifacts/filter", {"limit": -1}),
        ("/artifacts/filter", {"offset": -1}),
        ("/artifacts/filter", {"sort": "CREATED_ASC"}),
        ("/artifacts/filter", {"artifacts": {"created": {"before_": "2026-01-01T00:00:00Z"}}}),
        ("/artifacts/filter", {"artifacts": {"id": {"any_": ["no id"]}}}),
        ("/artifacts/count", {"artifacts": {"id": {"not_any_": []}}}),
        ("/artifacts/latest/count", {"artifacts": {"id": {"any_": []}}}),
    ],
)
async def test_a_listing_that_prefect_does_not_know_is_refused(api: Api, path: str, body: Mapping[str, object]) -> None:
    """Pages have a limit, and no listing begins with the oldest."""
    assert (await api.post(path, json=body)).status_code == 422


async def test_a_page_has_at_most_as_many_rows_as_asked_for(server: AnyServer, api: Api) -> None:
    """The server's own limit where none is given, and none of zero."""
    page = server.limit
    await server.database.insert(series(None, range(page + 1)))
    assert [len(await api.ids(limit=limit)) for limit in (0, 1, page, None)] == [0, 1, page, page]
    assert len(await api.ids(offset=page)) == 1
    assert await api.ids(offset=page + 1) == []
    assert await api.count() == page + 1


async def test_deleting_while_paging_skips_rows(server: AnyServer, api: Api) -> None:
    """Which is why nothing may be."""
    await server.database.insert(series(None, range(6)))
    every = await api.ids()
    for version_id in await api.ids(limit=2):
        await api.delete(f"/artifacts/{version_id}")
    assert await api.ids(limit=2, offset=2) == every[4:]


async def test_listings_are_sorted(server: AnyServer, api: Api) -> None:
    """By id, the largest first, unless said otherwise; by date, by change, by key."""
    rows = await server.database.insert([Row(key, days(age)) for key, age in (("b", 3), ("a", 1), ("c", 2))])
    b, a, c = (row.id for row in rows)
    await api.patch(f"/artifacts/{b}", json={"data": "changed"})
    assert await api.ids() == await api.ids(sort="ID_DESC") == sorted([a, b, c], reverse=True)
    assert await api.ids(sort="CREATED_DESC") == [a, c, b]
    assert await api.ids(sort="UPDATED_DESC") == [b, a, c]
    assert await api.ids(sort="KEY_ASC") == [a, b, c]
    assert await api.ids(sort="KEY_DESC") == [c, b, a]
    for sort, keys in (("KEY_ASC", "abc"), ("KEY_DESC", "cba"), ("UPDATED_DESC", "bac"), ("CREATED_DESC", "acb")):
        collections = await api.ask("/artifacts/latest/filter", sort=sort)
        assert "".join(row["key"] for row in collections) == keys


async def test_listings_are_filtered(server: AnyServer, api: Api) -> None:
    """By id, key, type and run; to a type that is asked to differ, none does not; counts agree."""
    run = uuid4()
    kinds = [Row("a", days(1)), Row("b", days(1), type="table"), Row("b", days(2), flow_run_id=run, task_run_id=run)]
    unkeyed = [Row(None, days(1)), Row(None, days(1), type=None), Row(None, days(1), type="result")]
    a, b, b2, plain, untyped, result = (row.id for row in await server.database.insert(kinds + unkeyed))
    cases: Sequence[tuple[dict[str, Any], set[UUID]]] = [
        ({}, {a, b, b2, plain, untyped, result}),
        ({"id": {"any_": [str(a), str(result), str(uuid4())]}}, {a, result}),
        ({"id": {"any_": []}}, set()),
        ({"key": {"any_": ["b", "nobody"]}}, {b, b2}),
        ({"key": {"exists_": False}}, {plain, untyped, result}),
        ({"key": {"exists_": True}}, {a, b, b2}),
        ({"key": {"exists_": False}, "type": {"not_any_": ["result"]}}, {plain}),
        ({"type": {"not_any_": []}}, {a, b, b2, plain, untyped, result}),
        ({"type": {"any_": ["table", "result"]}}, {b, result}),
        ({"flow_run_id": {"any_": [str(run)]}}, {b2}),
        ({"task_run_id": {"any_": [str(run)]}}, {b2}),
    ]
    for only, found in cases:
        assert set(await api.ids(artifacts=only)) == found, only
        assert await api.count(**only) == len(found), only
    latest: Sequence[tuple[dict[str, Any], set[str]]] = [
        ({"key": {"any_": ["a", "nobody"]}}, {"a"}),
        ({"type": {"any_": ["table"]}}, {"b"}),
        ({"latest_id": {"any_": [str(a), str(b2)]}}, {"a"}),
    ]
    for only, keys in latest:
        assert {row["key"] for row in await api.ask("/artifacts/latest/filter", artifacts=only)} == keys, only
        assert await api.ask("/artifacts/latest/count", artifacts=only) == len(keys), only


async def test_data_that_the_server_cannot_show_fails_every_page_that_it_is_on(server: AnyServer, api: Api) -> None:
    """And its deletion, and that of the latest before it; but it is counted. Only SQLite has such data."""
    if isinstance(server, Server) and not server.database.is_sqlite:
        pytest.skip("PostgreSQL takes nothing that is no JSON")
    rows = await server.database.insert([*series("report", [1, 2, 3]), *series("other", [1])])
    await server.database.break_data(rows[1].id)
    for row, status in zip(rows, (200, 500, 200, 200), strict=True):
        assert (await api.get(f"/artifacts/{row.id}")).status_code == status
    assert (await api.post("/artifacts/filter", json={})).status_code == 500
    assert len(await api.ids(artifacts={"key": {"any_": ["other"]}})) == 1
    assert await api.count() == 4
    for row in rows[:2]:
        assert (await api.delete(f"/artifacts/{row.id}")).status_code == 500
    assert (await api.delete(f"/artifacts/{rows[2].id}")).status_code == 204
    await server.database.break_data(rows[3].id)
    assert (await api.post("/artifacts/latest/filter", json={})).status_code == 500
    await server.database.repair_data()
    assert len(await api.ids()) == 3


# --- variables


async def test_variables_are_made_changed_and_deleted_by_name(api: Api) -> None:
    """A name is taken once; a value is replaced as a whole, comes back as it was, and may have 5000 bytes as JSON."""
    name = "artifact-retention-hold-a"
    value = {"text": '€ \n"x"', "number": 1, "none": None, "yes": True, "dates": ["2030-12-31"]}
    made = await api.ask("/variables/", name=name, value=value)
    assert set(made) == {"id", "created", "updated", "name", "value", "tags"}
    assert (made["name"], made["value"], made["tags"]) == (name, value, [])
    again = await api.post("/variables/", json={"name": name, "value": 1})
    assert (again.status_code, again.json()) == (409, {"detail": f"A variable with the name {name!r} already exists."})
    path = f"/variables/name/{name}"
    assert (await api.get(path)).json() == made
    assert (await api.patch(path, json={"value": {"text": "other"}})).status_code == 204
    assert (await api.get(path)).json()["value"] == {"text": "other"}
    for value, status in (({"x": "y" * 4992}, 204), ({"x": "y" * 4993}, 422), ({"x": "€" * 1665}, 422)):
        assert (await api.patch(path, json={"value": value})).status_code == status
    for refused in (
        {"name": "Upper", "value": 1},
        {"name": "x" * 256, "value": 1},
        {"name": "extra", "value": 1, "who": "me"},
    ):
        assert (await api.post("/variables/", json=refused)).status_code == 422
    assert (await api.delete(path)).status_code == 204
    answers = [await api.get(path), await api.patch(path, json={"value": 1}), await api.delete(path)]
    assert {(answer.status_code, answer.json()["detail"]) for answer in answers} == {(404, "Variable not found.")}


async def test_variables_are_listed_by_a_part_of_their_names(api: Api) -> None:
    """In pages, in the order of their names; the part may stand anywhere in a name."""
    prefix = "artifact-retention-hold-"
    names = [f"{prefix}{number}" for number in range(3)]
    for name in (names[2], names[0], f"x-{prefix}3", names[1], "artifact-retention-holt-4"):
        await api.ask("/variables/", name=name, value=name)
    only = {"name": {"like_": prefix}}
    pages = [await api.ask("/variables/filter", variables=only, sort="NAME_ASC", limit=2, offset=at) for at in (0, 2, 4)]
    assert [[row["name"] for row in page] for page in pages] == [names[:2], [names[2], f"x-{prefix}3"], []]
    assert (await api.post("/variables/filter", json={"variables": only, "limit": MORE_THAN_A_PAGE})).status_code == 422
    for name in (f"x-{prefix}3", "artifact-retention-holt-4"):
        await api.delete(f"/variables/name/{name}")


# --- blocks


async def test_a_block_that_is_not_there_is_not_found(api: Api) -> None:
    """Whether its type is there or not."""
    answers = [await api.get(f"/block_types/slug/{kind}/block_documents/name/x") for kind in ("secret", "artifact-retention")]
    assert {(answer.status_code, answer.json()["detail"]) for answer in answers} == {(404, "Block document not found")}


# --- runs, and the server itself


async def test_runs_are_shown_with_their_states(server: AnyServer, api: Api) -> None:
    """As Prefect's client makes them, ends them and deletes them."""
    with server.active():
        async with get_client() as client, connect() as connection:
            run = await client.create_flow_run(writer, state=Running(), parameters={"keys": ["a"]})
            prefect, store = PrefectServer(connection), ApiStore(connection)
            unknown = uuid4()
            (found,) = await prefect.flow_runs([run.id, unknown])
            assert (found.id, found.name, found.finished, dict(found.parameters)) == (run.id, run.name, False, {"keys": ["a"]})
            assert abs(found.started - datetime.now(UTC)) < timedelta(seconds=60)
            assert set(await store.unfinished([run.id, unknown], [unknown])) == {run.id}
            assert await api.ask("/flow_runs/count", flow_runs={"id": {"any_": [str(run.id), str(unknown)]}}) == 1
            await client.set_flow_run_state(run.id, Completed(), force=True)
            assert await store.unfinished([run.id], []) == {}
            task = await client.create_task_run(nothing, flow_run_id=run.id, dynamic_key="0", state=Running())
            assert set(await store.unfinished([], [task.id])) == {task.id}
            await client.delete_flow_run(run.id)
            assert await prefect.flow_runs([run.id]) == []


async def test_a_server_tells_whether_it_takes_several_requests_at_once(server: AnyServer) -> None:
    """One on PostgreSQL does; the fake is told what to say."""
    is_fake = isinstance(server, FakeServer)
    for allowed in (False, True) if is_fake else (not server.database.is_sqlite,):
        if isinstance(server, FakeServer):
            server.takes_several = allowed
        with server.active():
            async with get_client() as client, connect() as connection:
                await client.create_flow(writer)
                prefect = PrefectServer(connection)
                await prefect.detect_concurrency("nobody")
                assert connection._concurrency.level == 1  # noqa: SLF001 - what it found
                await prefect.detect_concurrency(writer.name)
                assert (connection._concurrency.level > 1) == allowed  # noqa: SLF001
            async with connect() as connection:
                await PrefectServer(connection).detect_concurrency()
                assert (connection._concurrency.level > 1) == allowed  # noqa: SLF001 - by whatever flow there is
    if isinstance(server, FakeServer):
        server.takes_several = False


async def test_a_server_tells_its_version_and_its_own_expiry(server: AnyServer, api: Api) -> None:
    """A tested version, which deletes no artifact by itself; and it wants no token against forged requests."""
    with server.active():
        async with connect() as connection:
            assert await PrefectServer(connection).untested_version() == ""
            assert await PrefectServer(connection).expiry() == Expiry(of_runs=None, of_orphans=False)
    answer = await api.get("/csrf-token", params={"client": str(uuid4())})
    assert (answer.status_code, answer.json()) == (422, {"detail": "CSRF protection is disabled."})


# --- anything, in any order


@dataclass
class Mirror:
    """The same requests to two servers, whose answers are compared; each has ids of its own."""

    pair: Sequence[Api]
    known: list[tuple[UUID, UUID]] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    async def create(self, **body: object) -> None:
        """Post a version to both."""
        first, second = [await api.create(**body) for api in self.pair]  # type: ignore[arg-type]
        self.known.append((first, second))

    async def send(self, method: str, number: int, body: object = None) -> None:
        """Change or delete a version of both, which may have gone."""
        ids = self.known[number]
        codes = {
            (await api.request(method, f"/artifacts/{version_id}", json=body)).status_code
            for api, version_id in zip(self.pair, ids, strict=True)
        }
        assert len(codes) == 1, (method, number)
        self.statuses[f"{method} {codes.pop()}"] += 1

    async def compare(self) -> None:
        """Hold everything that both have side by side, ids by their numbers."""
        seen = []
        for which, api in enumerate(self.pair):
            numbers = {str(ids[which]): number for number, ids in enumerate(self.known)}
            listings = [
                (await api.post(path, json={"sort": sort})).json()
                for path, sort in (
                    ("/artifacts/filter", "CREATED_DESC"),
                    ("/artifacts/filter", "UPDATED_DESC"),
                    ("/artifacts/latest/filter", "KEY_ASC"),
                    ("/artifacts/latest/filter", "UPDATED_DESC"),
                )
            ]
            for row in (row for listing in listings for row in listing):
                for name in {"id", "latest_id"} & row.keys():
                    row[name] = numbers.get(row[name])
                # When it is differs; how it is ordered does not.
                row["is_changed"] = row.pop("created") != row.pop("updated")
            seen.append(listings)
        assert seen[0] == seen[1]


async def test_any_requests_in_any_order_do_the_same_to_the_fake(server: AnyServer) -> None:
    """Sixty of chance; after each of them, both have the same."""
    if isinstance(server, FakeServer):
        pytest.skip("it would be held against itself")
    chance = random.Random(SEED)
    with FakeServer().listening() as fake:
        async with api_of(server) as real, api_of(fake) as copy:
            mirror = Mirror((real, copy))
            for step in range(60):
                what = chance.choices(("POST", "PATCH", "DELETE"), (5, 2, 4))[0]
                if what == "POST" or not mirror.known:
                    key, kind = chance.choice(["a", "b", None]), chance.choice(["markdown", "table", None])
                    await mirror.create(key=key, type=kind, data=step, metadata_=chance.choice([None, {"n": str(step)}]))
                else:
                    change = chance.choice([{"data": step}, {"metadata_": {"m": str(step)}}, {"description": str(step)}])
                    await mirror.send(what, chance.randrange(len(mirror.known)), change if what == "PATCH" else None)
                await mirror.compare()
    assert {"DELETE 204", "DELETE 404", "PATCH 204", "PATCH 404"} <= mirror.statuses.keys()
