"""What `explain` lists: the versions of a key, or the artifacts without one, with the verdicts of a run."""

import asyncio
import json
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from database import Row, days, series
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.policies import RetentionPolicy
from servers import BY_FAKE, FAKE, POSTGRESQL_DATABASE, Server, on, thorough

UNKEYED = RetentionPolicy(name="without a key", unkeyed=True, keep_within_days=30)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a policy for the artifacts without a key."""
    monkeypatch.chdir(tmp_path)
    policies = '[[policies]]\nname = "without a key"\nunkeyed = true\nkeep_within_days = 30\n'
    (tmp_path / "retention.toml").write_text(policies, encoding="utf-8")
    return tmp_path


async def call(server: Server, *arguments: str) -> int:
    """Call the command line, which has an event loop of its own."""
    with server.active():
        return await asyncio.to_thread(main, arguments)


@on(FAKE, thorough(POSTGRESQL_DATABASE))
async def test_the_artifacts_without_a_key_that_would_go_are_listed(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """By whole ids, each on a line with its verdict, the newest first; exactly those that a run deletes."""
    old = [Row(None, days(31 + age), type="table") for age in range(220)]
    held = Row(None, days(40), metadata={"retention-hold": "true"})
    young = series(None, range(1, 5))
    result = Row(None, days(50), type="result")
    await server.database.insert([*old, held, *young, result, *series("keyed", [1, 90])])
    assert await call(server, "explain", "--unkeyed") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "(without a key): 5 kept, 220 to delete"
    listed = {"keep": list[str](), "delete": list[str]()}
    for line in lines:
        if line.split()[1:2] in (["keep"], ["delete"]):
            listed[line.split()[1]].append(line.split()[0])
    assert listed["delete"] == [str(row.id) for row in old]
    assert set(listed["keep"]) == {str(row.id) for row in (held, *young)}
    assert await call(server, "explain", "--unkeyed", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["key"], document["latest_id"], document["policy"]) == (None, None, "without a key")
    assert [each["id"] for each in document["versions"] if not each["keep"]] == listed["delete"]
    before = await server.database.ids()
    await server.cleanup([UNKEYED], mode="delete")
    assert before - await server.database.ids() == {UUID(each) for each in listed["delete"]}


@on(*BY_FAKE)
async def test_without_a_policy_for_them_artifacts_without_a_key_are_listed_as_unmanaged(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All stay."""
    (folder / "retention.toml").write_text('[[policies]]\nname = "all keys"\nkeep_last = 1\n', encoding="utf-8")
    rows = await server.database.insert(series(None, [1, 400]))
    assert await call(server, "explain", "--unkeyed", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [(each["id"], each["keep"], each["rules"]) for each in document["versions"]] == [
        (str(row.id), True, ["unmanaged"]) for row in rows
    ]


@on(*BY_FAKE)
async def test_the_versions_of_a_key_are_listed_by_their_whole_ids(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though nobody has a terminal as wide as that."""
    (folder / "retention.toml").write_text('[[policies]]\nname = "all keys"\nkeep_last = 1\n', encoding="utf-8")
    key = f"report-{uuid4()}-{uuid4()}"
    rows = await server.database.insert(series(key, [1, 2, 3]))
    assert await call(server, "explain", key) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{key}: 1 kept, 2 to delete"
    assert [line.split()[:2] for line in lines if line.split()[1:2] in (["keep"], ["delete"])] == [
        [str(row.id), verdict] for row, verdict in zip(rows, ("keep", "delete", "delete"), strict=True)
    ]
