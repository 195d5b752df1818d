"""A key whose versions have several types, which would give it different policies."""

from dataclasses import replace
from uuid import UUID

from database import Row, days, series
from prefect import get_client
from prefect_artifact_retention.flows.explanation import explain
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.policies import RetentionPolicy
from servers import FAKE, POSTGRESQL_DATABASE, SQLITE_DATABASE, Server, on, thorough, when_planned

TABLES = RetentionPolicy(name="tables", match_types=["table"], keep_within_days=365)
DEFAULT = RetentionPolicy(name="default", keep_last=3)
CONFLICT = "the types of its versions would give it different policies: markdown has policy default, table has policy tables"


def tables(key: str, number: int) -> list[Row]:
    """Tables of one key, one a day, the newest first."""
    return [replace(row, type="table") for row in series(key, range(1, number + 1))]


def ids(rows: list[Row]) -> set[UUID]:
    """The ids of rows."""
    return {row.id for row in rows}


@on(FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_one_odd_latest_hands_no_tables_to_another_policy(server: Server) -> None:
    """Nothing of the key goes, and the report says so; keys of one type are pruned as ever."""
    mixed = await server.database.insert([*tables("orders", 30), Row("orders", days(0.5))])
    plain = await server.database.insert(series("notes", range(1, 6)))
    report = await server.cleanup([TABLES, DEFAULT], mode="delete")
    assert await server.database.ids() == ids(mixed) | ids(plain[:3])
    assert report.warnings == [f"orders: nothing deleted, because {CONFLICT}"]
    assert [each.versions for each in report.kept_by if each.rule == "mixed_types"] == [31]


@on(FAKE, POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_a_type_that_appears_between_plan_and_deletion_keeps_the_key(server: Server) -> None:
    """Every check before a deletion selects the policy as the plan does."""
    rows = await server.database.insert(series("orders", range(1, 6)))

    async def write() -> None:
        async with get_client() as client:
            await client.request("POST", "/artifacts/", json={"key": "orders", "type": "table", "data": "[]"})

    with when_planned(write):
        report = await server.cleanup([TABLES, DEFAULT], mode="delete")
    assert ids(rows) < await server.database.ids()
    assert (report.planned, report.spared, report.deleted) == (2, 2, 0)
    assert "nothing deleted, because the types of its versions would give it different policies" in report.warnings[0]


@on(FAKE)
async def test_types_that_have_the_same_rules_are_no_conflict(server: Server) -> None:
    """Nor are types beside those that `match_types` names, where the same policy is for all of them."""
    rows = await server.database.insert([*tables("orders", 5), Row("orders", days(0.5))])
    same = RetentionPolicy(name="the same", match_types=["markdown"], keep_last=3)
    report = await server.cleanup([same, DEFAULT], mode="delete")
    assert await server.database.ids() == ids([rows[-1], *rows[:2]])
    assert report.warnings == []


@on(FAKE)
async def test_a_type_that_no_policy_is_for_keeps_the_key(server: Server) -> None:
    """Its versions are nobody's to delete."""
    rows = await server.database.insert([*series("orders", range(1, 4)), Row("orders", days(0.5), type="table")])
    only_tables = RetentionPolicy(name="tables", match_types=["table"], keep_last=1)
    report = await server.cleanup([only_tables], mode="delete")
    assert await server.database.ids() == ids(rows)
    assert "table has policy tables, markdown has none" in report.warnings[0]


@on(FAKE)
async def test_nobody_is_warned_of_a_key_that_its_policy_keeps_whole(server: Server) -> None:
    """`keep_all` for the type of its latest version needs no protection."""
    await server.database.insert([*series("orders", range(1, 9)), Row("orders", days(0.5), type="table")])
    report = await server.cleanup([RetentionPolicy(name="tables", match_types=["table"], keep_all=True), DEFAULT])
    assert (report.planned, report.warnings) == (0, [])


@on(FAKE)
async def test_explain_says_why_nothing_of_a_mixed_key_goes(server: Server) -> None:
    """Each version has the reason, and so has the explanation."""
    policies = [policy.model_dump(exclude_defaults=True) for policy in (TABLES, DEFAULT)]
    await server.database.insert([*tables("orders", 5), Row("orders", days(0.5))])
    with server.active():
        explained = await explain(load_settings().model_copy(update={"policies": policies}), "orders")
    assert {reason for version in explained.versions for reason in version.reasons} == {CONFLICT}
    assert explained.warnings == [f"orders: nothing is deleted, because {CONFLICT}"]
