"""What `explain` lists: the versions of a key, or the artifacts without one, with the verdicts of a run."""

import asyncio
import json
import re
from datetime import datetime
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


@on(FAKE)
async def test_each_version_that_stays_says_when_it_goes(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its age, by the end of a hold, or by what must be written; and there is a page with its calendar."""
    rules = '[[policies]]\nname = "days"\nkeep_last = 1\nkeep_within_days = 30\n'
    (folder / "retention.toml").write_text(rules, encoding="utf-8")
    held = Row("report", days(50), metadata={"retention-hold": "true"})
    rows = [*series("report", [1, 2, 40]), held]
    await server.database.insert(rows)
    assert await call(server, "explain", "report", "--json", "--html", "page.html") == 0
    explained = json.loads(capsys.readouterr().out)
    now = datetime.fromisoformat(explained["now"])
    newest, second, stale, kept = explained["versions"]
    assert newest["goes_at"] is None
    assert newest["goes_when"].startswith("when a newer version exists, not before ")
    assert abs(datetime.fromisoformat(second["goes_at"]) - now - days(28)) < days(0.001)
    assert (stale["goes_at"], stale["goes_when"]) == (None, "now")
    assert (kept["goes_at"], kept["goes_when"]) == (None, "when it is released")
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert page.count("data-day=") == len(rows)
    ids = [version["id"] for version in explained["versions"]]
    assert re.findall(r'<tr><td class="whole">([^<]*)</td>', page) == ids
    assert sorted(re.findall(r"; version ([0-9a-f-]{36})</title>", page)) == sorted(ids)
    assert "goes when it is released" in page
    assert "<td>when it is released</td>" in page
    assert await call(server, "explain", "report") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[1:2] in (["keep"], ["delete"])]
    words = ("when a newer version exists", f"{now + days(28):%Y-%m-%d}", " now ", "when it is released")
    assert [word in line for word, line in zip(words, lines, strict=True)] == [True] * 4
    assert await call(server, "explain", "report", "--html", "no/folder.html") == 2


@on(FAKE)
async def test_a_preview_of_the_next_days_lists_what_goes_by_then(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What goes now included; of a key without a policy, nothing; and nothing is refused that nobody can expect."""
    rules = 'refuse_above_percent = 1\n[[policies]]\nname = "days"\nmatch_keys = ["report"]\nkeep_within_days = 30\n'
    (folder / "retention.toml").write_text(rules, encoding="utf-8")
    in_use = Row("report", days(40), flow_run_id=server.local.start_run())
    await server.database.insert([in_use, *series("report", [1, 27, 29, 31]), *series("other", [50])])
    planned = {}
    for ahead in ("0", "2", "5"):
        assert await call(server, "preview", "--next", ahead, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        planned[ahead] = report["planned"]
        assert report["next_days"] == float(ahead)
        said = [warning for warning in report["warnings"] if "ahead" in warning]
        meant = f"planned {ahead} days ahead, as if nothing were written, no run ended and no cleanup ran until then"
        assert said == ([] if ahead == "0" else [meant])
        assert any("would be refused" in warning for warning in report["warnings"]) == (ahead == "0")
    assert planned == {"0": 1, "2": 2, "5": 3}
    assert await call(server, "preview", "--next", "400") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Would delete 3 versions")
    assert "zombie" not in shown
    assert await call(server, "preview", "--next", "-1") == 2
    assert await call(server, "preview", "--next", "nan") == 2
