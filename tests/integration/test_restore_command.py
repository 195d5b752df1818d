"""From a wrong deletion to everything back: the commands `deleted`, `explain --deleted` and `restore`, and the flow."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from database import Row, days, series
from fake import FakeServer
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.flows.restore import artifact_restore
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy
from prefect_artifact_retention.tasks.restore_report import RestoreFailed
from restoring import RUN_ID, RUN_NAME, made, snapshot, write_archive
from servers import (
    POSTGRESQL_DATABASE,
    SQLITE_API,
    SQLITE_DATABASE,
    UNHURRIED_SECONDS,
    Server,
    count_rows,
    on,
    thorough,
)

AnyServer = Server | FakeServer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and an archive in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("ARTIFACT_RETENTION_ARCHIVE_URL", str(tmp_path / "archive"))
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    return tmp_path


class Call:
    """Calls the command line, which has an event loop of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, server: AnyServer, *arguments: str) -> tuple[int, str]:
        """Return the exit code and what it prints."""
        self._capsys.readouterr()
        with server.active():
            code = await asyncio.to_thread(main, arguments)
        captured = self._capsys.readouterr()
        return code, captured.out or captured.err

    async def json(self, server: AnyServer, *arguments: str, code: int = 0) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON that it prints."""
        ended, out = await self(server, *arguments, "--json")
        assert ended == code, out
        return json.loads(out)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line."""
    return Call(capsys)


@on(POSTGRESQL_DATABASE, thorough(SQLITE_DATABASE))
async def test_what_the_wrong_policy_deleted_is_found_previewed_and_restored(server: Server, call: Call) -> None:
    """The preview writes nothing; the restore leaves its report; the next one finds everything there."""
    rows = [*series("audit-export", range(1, 8)), *series("report", range(1, 4))]
    await server.database.insert(rows)
    before = await snapshot(server.database)
    await server.cleanup([RetentionPolicy(name="wrong", keep_last=2)], mode="delete")
    after = await snapshot(server.database)

    listed = await call.json(server, "deleted", "--rule", "unclaimed")
    assert (listed["total"], {each["policy"] for each in listed["versions"]}) == (6, {"wrong"})
    explained = await call.json(server, "explain", "audit-export", "--deleted")
    assert [each["key"] for each in explained["versions"]] == ["audit-export"] * 5
    run = listed["versions"][0]["run_name"]
    mistaken, said = await call(server, "restore", "--run", run, "--policy", "wrung")
    assert (mistaken, "there is none at all of policy 'wrung'; its policies are 'wrong'" in said) == (1, True)

    code, text = await call(server, "restore", "--policy", "wrong")
    assert code == 0
    assert "6 versions of 2 keys to restore" in text
    assert "Add --apply to restore" in text
    assert await snapshot(server.database) == after

    applied = await call.json(server, "restore", "--run", run, "--policy", "wrong", "--apply")
    assert (applied["outcome"], applied["restored"], applied["way"]) == ("completed", 6, "database")
    assert await snapshot(server.database) == before
    (report,) = await server.database.versions("artifact-retention-restored")
    assert report["data"].startswith("# 6 versions of 2 keys restored")
    assert "audit\\-export" in report["data"]
    assert (await call.json(server, "restore", "--run", run, "--apply"))["present"] == 6


@on(POSTGRESQL_DATABASE, thorough(SQLITE_API))
async def test_data_that_a_run_has_moved_come_back_by_the_command_that_stands_in_their_place(
    server: Server, call: Call
) -> None:
    """The line of the version itself is the way back; `deleted` does not list it, and the log of the run does."""
    large = Row("report", days(2), "x" * 20_000)
    await server.database.insert([*series("report", [1]), large])
    report = await server.run_flow([RetentionPolicy(name="large", keep_last=5, offload_larger_than_kb=10)], mode="delete")
    assert (report.outcome, report.offloaded, report.bytes_offloaded) == ("completed", 1, 20_002)
    (line,) = [each["data"] for each in await server.database.versions("report") if each["id"] == large.id]
    command = line.rpartition("`artifact-retention ")[2].rstrip("`")
    assert (await call.json(server, "deleted"))["total"] == 0
    assert "data of 1 version of 1 key to restore" in (await call(server, *command.removesuffix(" --apply").split()))[1]
    applied = await call.json(server, *command.split())
    assert (applied["outcome"], applied["restored"], applied["data"]) == ("completed", 1, True)
    assert {each["data"] for each in await server.database.versions("report")} == {"x", large.data}
    assert (await call.json(server, *command.split()))["present"] == 1


@pytest.mark.thorough
@on(SQLITE_API)
async def test_a_restore_that_fails_is_a_failed_flow_run_with_its_report(server: Server, call: Call, folder: Path) -> None:
    """As `RestoreFailed`, and exit code 1; other keys are restored all the same."""
    address = f"{server.local.address}/api"
    await server.database.insert(series("there", [1]))
    write_archive(folder / "archive", [made("gone", 1, address), made("there", 1, address)])
    with server.active():
        with pytest.raises(RestoreFailed, match=r"1 version of 1 key restored, 1 key failed\. there: the key has") as failed:
            await artifact_restore(runs=[RUN_NAME], apply=True, same_key=True)
        assert [each.restored for each in failed.value.report.key_reports] == [1, 0]
        with pytest.raises(ConfigurationError, match="parameters: name what is to be restored"):
            await artifact_restore(apply=True)
        for given, message in (
            ({"to_key": "X Y"}, "to_key = 'X Y' is no key"),
            ({"to_key": "y", "same_key": True}, "contradict"),
        ):
            with pytest.raises(ConfigurationError, match=f"parameters: .*{message}"):
                await artifact_restore(keys=["there"], **given)
        assert (await artifact_restore(from_server=f"{address}/")).missing == 1
        preview = await artifact_restore()
        assert (preview.applied, preview.present, preview.missing) == (False, 1, 1)
    report = await call.json(server, "restore", "--key", "there", "--same-key", "--apply", code=1)
    assert report["outcome"] == "failed"


@on(SQLITE_API)
async def test_a_preview_of_a_restore_needs_no_more_than_to_read(server: Server, call: Call, folder: Path) -> None:
    """And says under which key versions would come back through the API."""
    write_archive(folder / "archive", [made("report", number, f"{server.local.address}/api") for number in range(3)])
    rows = await count_rows(server, UNHURRIED_SECONDS)
    code, text = await call(server, "restore", "--all")
    assert code == 0
    assert "as new versions of report-restored" in text
    assert await count_rows(server, UNHURRIED_SECONDS) == rows


# --- without a server


NOWHERE = "http://127.0.0.1:9/api"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot be reached."""
    monkeypatch.setitem(os.environ, "PREFECT_API_URL", NOWHERE)


@pytest.mark.usefixtures("offline")
def test_the_ledger_is_listed_without_a_server_the_last_deletions_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By key, time, rule and run; no more than asked for."""
    write_archive(folder / "archive", [made("a", number, NOWHERE) for number in range(3)])
    write_archive(folder / "archive", [made("b", 1, NOWHERE, rules=["ttl"])], payloads=False)

    def listed(*arguments: str) -> list[tuple[str, str, bool]]:
        assert main(["deleted", *arguments, "--json"]) == 0
        versions = json.loads(capsys.readouterr().out)["versions"]
        return [(each["key"], each["id"], each["has_payload"]) for each in versions]

    a = [("a", str(made("a", number, NOWHERE).id), True) for number in (2, 1, 0)]
    b = ("b", str(made("b", 1, NOWHERE).id), False)
    assert listed() == [b, *a]
    assert listed("--key", "a*", "--limit", "2") == a[:2]
    assert listed("--rule", "ttl") == [b]
    assert listed("--policy", "short") == [b, *a]
    assert listed("--run", RUN_NAME, "--since", "2026-11-28", "--until", "2026-11-28") == [b, *a]
    assert listed("--until", "2026-11-28T02:59") == []
    assert listed("--since", "2026-11-28T04:00:00.000001+01:00") == []
    assert listed("--run", "nobody") == []
    assert main(["explain", "b", "--deleted"]) == 0
    text = capsys.readouterr().out
    assert "1 deleted version in the archive" in text
    assert f"{b[1]}" in text
    assert "(without its data in the archive)" in text


NOTHING = [
    (["--key", "nobodys"], "no deleted version of key 'nobodys'"),
    (["--key", "nobodys", "--run", RUN_NAME], f"of run '{RUN_NAME}'; there is none at all of key 'nobodys'"),
    (["--key", "a", "--run", "b"], "of key 'a', of run 'b'; there is none at all of run 'b'"),
    (["--key", "a", "--rule", "ttl"], "by rule ttl; there are 3 versions of key 'a', but none by rule ttl"),
    (
        ["--key", "a", "--key", "b", "--run", RUN_NAME, "--rule", "ttl", "--until", "2026-11-27"],
        f"of run '{RUN_NAME}', by rule ttl, until 2026-11-27 (UTC); there is none at all until 2026-11-27 (UTC)",
    ),
    (["--policy", "typo"], "no deleted version of policy 'typo'; its policies are 'long', 'short'"),
    (["--policy", "long", "--key", "a"], "there are 3 versions of key 'a', but none of policy 'long'"),
    (["--since", "2026-11-28T05:00"], "no deleted version since 2026-11-28 05:00:00 UTC"),
]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("arguments", "message"), NOTHING, ids=[" ".join(arguments) for arguments, _ in NOTHING])
def test_a_list_with_nothing_says_what_was_asked_for_and_which_filter_it_is(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several, the one that applies to nothing at all, or the one that leaves nothing of what the others found."""
    write_archive(folder / "archive", [made("a", number, NOWHERE) for number in range(3)])
    write_archive(folder / "archive", [made("b", 1, NOWHERE, rules=["ttl"], policy="long")])
    assert main(["deleted", *arguments]) == 0
    assert message in capsys.readouterr().out
    assert main(["deleted", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["note"].endswith(message)


@pytest.mark.usefixtures("offline")
def test_an_archive_that_cannot_be_read_whole_is_not_said_to_have_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is asked for may be in the part that is missing."""
    write_archive(folder / "archive", [made("a", 1, NOWHERE)])
    (part,) = (folder / "archive/data").iterdir()
    part.unlink()
    assert main(["deleted", "--key", "a", "--run", RUN_NAME, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["note"].endswith(f"no deleted version of key 'a', of run '{RUN_NAME}'")


@pytest.mark.usefixtures("offline")
def test_a_part_that_is_missing_is_told_beside_what_the_others_have(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list may not be all there is: exit code 1, unless the part cannot have what is asked for."""
    write_archive(folder / "archive", [made("a", 1, NOWHERE)])
    (part,) = (folder / "archive/data").iterdir()
    write_archive(folder / "archive", [made("b", 1, NOWHERE)])
    part.unlink()
    assert main(["deleted", "--json"]) == 1
    captured = capsys.readouterr()
    listed = json.loads(captured.out)
    assert [each["key"] for each in listed["versions"]] == ["b"]
    assert f"remove manifests/{part.stem}.json to do without them" in listed["errors"][0]
    assert f"cannot read data/{part.name}" in captured.err
    assert main(["deleted", "--key", "b"]) == 0


@pytest.mark.usefixtures("offline")
def test_the_ledger_names_a_run_that_was_killed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some of what it archived may still be there; of one that has ended, that is known."""
    write_archive(folder / "archive", [made("a", 1, NOWHERE)])
    warning = f"Run {RUN_ID} ended without its last word: some of its versions may still be there"

    def told() -> tuple[bool, list[str]]:
        assert main(["deleted"]) == 0
        is_shown = warning in capsys.readouterr().out
        assert main(["deleted", "--json"]) == 0
        return is_shown, json.loads(capsys.readouterr().out)["unended_runs"]

    assert told() == (False, [])
    (folder / f"archive/manifests/{RUN_ID}.json").unlink()
    assert told() == (True, [RUN_ID])


@pytest.mark.usefixtures("offline")
def test_something_else_than_an_archive_has_no_ledger(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty list would mean that nothing was deleted."""
    (folder / "archive/data").mkdir(parents=True)
    assert main(["deleted"]) == 0
    (folder / "archive/photos").mkdir()
    assert main(["deleted"]) == 1
    assert "there is something else (photos), and no archive" in capsys.readouterr().err


BAD_USAGE = [
    (["restore"], "name what is to be restored: --key, --id, --run, --policy, --since, --until, or --all"),
    (["restore", "--key", "x", "--since", "yesterday"], "since = 'yesterday' is neither a day nor a time such as"),
    (["restore", "--until", "2026-13-01"], "until = '2026-13-01' is neither a day nor a time such as"),
    (["deleted", "--since", "2026-12-01", "--until", "2026-11-01"], "since = '2026-12-01' is later than until = '2026-11-01'"),
    (["restore", "--id", "x"], "id = 'x' is no id of a version"),
    (["deleted", "--rule", "keep_last"], "by no rule 'keep_last' does a version go, but by unclaimed, expire_after_days, ttl"),
    (["deleted", "--policy", ""], "policies: one of them is empty"),
    (["restore", "--key", "X*"], "keys: "),
    (["restore", "--key", "x", "--hold-days", "-1"], "hold_days = -1 is not between 0 and 36525"),
    (["restore", "--key", "x", "--to", "X Y"], "to_key = 'X Y' is no key"),
    (["restore", "--key", "x", "--to", "y", "--same-key"], "to_key and same_key contradict each other"),
    (["deleted", "--limit", "-1"], "limit = -1 is no number of versions"),
    (["explain", "--unkeyed", "--deleted"], "--deleted takes a KEY"),
]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("arguments", "message"), BAD_USAGE, ids=[" ".join(arguments) for arguments, _ in BAD_USAGE])
def test_bad_usage_of_a_restore_is_exit_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One message on stderr, before any request."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("arguments", [["restore", "--all"], ["restore", "--all", "--apply"], ["deleted"]], ids=" ".join)
def test_without_an_archive_nothing_comes_back(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is known of what was deleted."""
    monkeypatch.delenv("ARTIFACT_RETENTION_ARCHIVE_URL")
    assert main(arguments) == 2
    assert "no archive is configured" in capsys.readouterr().err
