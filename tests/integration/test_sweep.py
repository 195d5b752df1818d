"""Runs on other servers than their own, and a sweep over several of them: each is as if it were alone."""

import asyncio
import base64
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from database import series
from gate import Gate
from prefect import flow
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_KEY, PREFECT_CLIENT_CUSTOM_HEADERS, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect_artifact_retention.flows.cleanup import FINAL_REPORT_SECONDS, artifact_cleanup
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.flows.local_server import isolated_environment
from prefect_artifact_retention.flows.restore import artifact_restore
from prefect_artifact_retention.flows.server_policies import push
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.flows.sweep import artifact_sweep
from prefect_artifact_retention.policies.loading import HISTORY_KEY, OWN_KEYS, PROGRESS_KEY, REPORT_KEY, SWEEP_KEY
from prefect_artifact_retention.policies.pushes import SOURCE
from prefect_artifact_retention.tasks.progress import ANNOUNCED, DELETING, PHASE, RUN, RUN_NAME, SCOPE
from prefect_artifact_retention.tasks.sweep import SweepFailed, SweepReport, TargetRow
from servers import Server, drain, started, talking_to
from watchdog import end_with_us

TWO = '[[policies]]\nname = "two"\nkeep_last = 2\n'
Ask = Callable[[str], Server]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory for a configuration."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configure(*targets: str, more: str = TWO) -> None:
    """Write a configuration with these targets."""
    Path("retention.toml").write_text(more + "".join(f"[[targets]]\n{target}\n" for target in targets), encoding="utf-8")


def target(name: str, address: str, more: str = "") -> str:
    """The table of a target."""
    return f'name = "{name}"\napi_url = "{address}/api"\n{more}'


@contextmanager
def gates(*addresses: str) -> Iterator[list[Gate]]:
    """A gate before each server."""
    with ExitStack() as stack:
        yield [stack.enter_context(Gate(address).opened()) for address in addresses]


async def own(server: Server, key: str) -> list[dict[str, Any]]:
    """The versions of one of the package's own keys on a server, the newest first."""
    with server.active():
        async with get_client() as client:
            body = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
            found: list[dict[str, Any]] = (await client.request("POST", "/artifacts/filter", json=body)).json()
            return found


async def others(server: Server) -> dict[str, int]:
    """How many versions of each key a server has, without the package's own."""
    found = await server.database.run("SELECT key, count(*) FROM artifact GROUP BY key")
    return {key: number for key, number in found if key not in OWN_KEYS}


@flow
async def automation() -> SweepReport:
    """A sweep that no person has started."""
    return await artifact_sweep(mode="delete", require_accepted_policies=True)


async def sweep(home: Server, **parameters: int) -> tuple[dict[str, TargetRow], Exception | None]:
    """Sweep from a server, and return the rows by target, and how it failed if it did."""
    with home.active():
        try:
            report = await artifact_sweep(mode="delete", **parameters)
            return {row.name: row for row in report.targets}, None
        except SweepFailed as error:
            return {row.name: row for row in error.report.targets}, error


@pytest.mark.thorough
async def test_a_server_that_is_killed_in_mid_run_costs_its_own_row_only(servers: Ask, tmp_path: Path) -> None:
    """The other two are clean, and the report has three rows; the one that was killed has lost nothing that was to stay."""
    sqlite, postgresql = servers("sqlite"), servers("postgresql")
    with started("sqlite", tmp_path / "third") as third, gates(third.local.address) as (way,):
        for server in (sqlite, postgresql, third):
            await server.database.clear()
            await server.database.insert([row for key in ("a", "b", "c") for row in series(key, range(1, 11))])
        configure(
            target("sqlite", sqlite.local.address),
            target("postgresql", postgresql.local.address),
            target("killed", way.address),
        )
        way.hold_after(3)

        async def kill() -> None:
            await asyncio.to_thread(way.wait_until_held, 120)
            os.killpg(third.local.process.pid, signal.SIGKILL)
            await asyncio.to_thread(third.local.process.wait)
            way.let_go()

        killing = asyncio.create_task(kill())
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 2}):
            # Not on SQLite, which is busy now and then, and with so few retries out of reach.
            rows, error = await sweep(postgresql)
        await killing
        assert {name: row.outcome for name, row in rows.items()} == {
            "sqlite": "completed",
            "postgresql": "completed",
            "killed": "failed",
        }
        assert rows["sqlite"].deleted == rows["postgresql"].deleted == 24
        assert await others(sqlite) == await others(postgresql) == {"a": 2, "b": 2, "c": 2}
        assert sum((await others(third)).values()) >= 30 - 24
        assert str(error).splitlines()[1].startswith("killed: failed: ")
        (report, *_) = await own(postgresql, SWEEP_KEY)
        table = [line for line in report["data"].splitlines() if line.startswith(("| sqlite", "| postgresql", "| killed"))]
        assert len([line for line in table if " completed " in line or " failed " in line]) == 3
        assert "c: 6 versions" in report["data"]


async def test_a_second_sweep_says_what_has_come_since_the_first(servers: Ask) -> None:
    """By what the first one left in its report; a preview leaves nothing."""
    home, there = servers("sqlite"), servers("postgresql")
    for server in (home, there):
        await server.database.clear()
        await server.database.insert(series("a", range(1, 6)))
    configure(target("there", there.local.address))
    first, _ = await sweep(home)
    await there.database.insert(series("b", [0.1, 0.2, 0.3]))
    with home.active():
        await artifact_sweep()
    second, error = await sweep(home)
    assert error is None
    assert (first["there"].versions_since, second["there"].versions_since) == (None, 3)
    assert second["there"].growing[0].startswith("b: 3 versions")
    assert await others(home) == {"a": 5}
    (report, *_) = await own(home, SWEEP_KEY)
    assert "The last 2 sweeps" in base64.b64decode(report["data"].rpartition("base64,")[2].partition(")")[0]).decode()
    assert not await own(there, SWEEP_KEY)


async def test_a_run_on_a_target_leaves_its_artifacts_there_as_those_of_no_run(servers: Ask) -> None:
    """Of a flow run that the server does not know, `doctor` would say that it is gone, and `db_vacuum` delete the report."""
    home, there = servers("sqlite"), servers("postgresql")
    for server in (home, there):
        await server.database.clear()
        await server.database.insert(series("a", range(1, 6)))
    configure(target("there", there.local.address))
    with home.active():
        report = await artifact_cleanup(mode="delete", target="there")
    assert (report.target, report.server, report.deleted) == ("there", f"{there.local.address}/api", 3)
    assert (await others(home), await others(there)) == ({"a": 5}, {"a": 2})
    for key in (REPORT_KEY, HISTORY_KEY, PROGRESS_KEY):
        assert [row["flow_run_id"] for row in await own(there, key)] == [None], key
        assert await own(home, key) == []


async def test_a_run_on_a_target_gives_way_to_another_one_that_is_at_work_there(servers: Ask) -> None:
    """Which may come from any server; one of other keys is in nobody's way."""
    home, there = servers("sqlite"), servers("postgresql")
    await home.database.clear()
    await there.database.clear()
    configure(target("there", there.local.address))
    other = {RUN: "0d3c9d4e-1111-4111-8111-111111111111", RUN_NAME: "delete all keys on there"}
    for scope, outcome in ({}, "skipped"), ({SCOPE: json.dumps(["zebra"])}, "completed"):
        await there.database.clear()
        await there.database.insert(series("a", range(1, 6)))
        with there.active():
            async with get_client() as client:
                announced = {PHASE: DELETING, ANNOUNCED: "2026-01-01T00:00:00+00:00"}
                body = {"key": PROGRESS_KEY, "type": "progress", "data": 20.0, "metadata_": {**announced, **other, **scope}}
                await client.request("POST", "/artifacts/", json=body)
        with home.active():
            report = await artifact_cleanup(mode="delete", target="there")
        assert report.outcome == outcome
        if outcome == "skipped":
            assert "delete all keys on there" in report.refusals[0]


async def test_all_targets_have_the_list_of_policies_on_the_home(servers: Ask) -> None:
    """One place for policies; a list on the target itself is of the runs there."""
    home, there = servers("sqlite"), servers("postgresql")
    for server, keep_last in ((home, 2), (there, 4)):
        await server.database.clear()
        await server.database.insert(series("a", range(1, 6)))
        configure(more=f'[[policies]]\nname = "pushed"\nkeep_last = {keep_last}\n')
        with server.active():
            await push(load_settings(), "ada")
    configure(target("there", there.local.address), more="")
    rows, error = await sweep(home)
    assert error is None
    assert (rows["there"].deleted, await others(there)) == (3, {"a": 2})
    (report, *_) = await own(there, REPORT_KEY)
    assert SOURCE in report["data"].replace("\\", "")


@pytest.mark.thorough
async def test_a_sweep_that_no_person_has_started_is_refused_where_its_policies_are_not_accepted(
    servers: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    """By each target for itself: what was accepted on one is not on another."""
    home, there = servers("sqlite"), servers("postgresql")
    await there.database.clear()
    await there.database.insert(series("a", range(1, 6)))
    configure(target("there", there.local.address), more='[[policies]]\nname = "two"\nkeep_last = 4\n')
    assert (await sweep(home))[0]["there"].deleted == 1
    configure(target("there", there.local.address))
    with home.active():
        with pytest.raises(SweepFailed) as refused:
            await automation()
        (row,) = refused.value.report.targets
        assert row.outcome == "refused"
        assert await others(there) == {"a": 4}
        assert "policies accept --target there" in row.causes[0]
        code, _output = await asyncio.to_thread(run, capsys, "policies", "accept", "--target", "there")
        assert code == 0
        (row,) = (await automation()).targets
    assert (row.deleted, await others(there)) == (2, {"a": 2})


async def test_what_was_deleted_on_a_target_comes_back_there(servers: Ask, tmp_path: Path) -> None:
    """From the one archive of the home."""
    home, there = servers("sqlite"), servers("postgresql")
    for server in (home, there):
        await server.database.clear()
        await server.database.insert(series("a", range(1, 6)))
    configure(target("there", there.local.address), more=f'archive_url = "{tmp_path / "archive"}"\n{TWO}')
    with home.active():
        await artifact_cleanup(mode="delete", target="there")
        await artifact_cleanup(mode="delete")
        report = await artifact_restore(keys=["a"], apply=True, target="there")
    assert report.restored == 3
    assert (await others(home), await others(there)) == ({"a": 2}, {"a": 2, "a-restored": 3})


async def test_credentials_of_one_server_are_never_sent_to_another(servers: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the headers that the profile adds, which may be credentials, too: each server hears its own only."""
    home, one, two = servers("sqlite"), servers("postgresql"), servers("postgresql")
    for server in (home, one):
        await server.database.clear()
        await server.database.insert(series("a", range(1, 6)))
    with home.active():
        await Secret(value="user:password-of-two").asave("two-login", overwrite=True)
    drain()
    monkeypatch.setenv("KEY_OF_ONE", "pnu_key-of-one")
    of_home = {PREFECT_API_KEY: "pnu_key-of-home", PREFECT_CLIENT_CUSTOM_HEADERS: '{"X-Gate": "header-of-home"}'}
    with gates(home.local.address, one.local.address, two.local.address) as (home_way, first, second):
        configure(
            target("one", first.address, 'api_key_variable = "KEY_OF_ONE"'),
            target("two", second.address, 'auth_string_block = "two-login"'),
        )
        with temporary_settings(of_home), talking_to(f"{home_way.address}/api"):
            report = await artifact_sweep(mode="delete", at_once=1)
            drain()
    assert [row.outcome for row in report.targets] == ["completed", "completed"]
    login = base64.b64encode(b"user:password-of-two")
    secrets = {b"pnu_key-of-home", b"header-of-home", b"pnu_key-of-one", b"password-of-two", login}
    for way, own_secrets in (
        (home_way, {b"pnu_key-of-home", b"header-of-home"}),
        (first, {b"pnu_key-of-one"}),
        (second, {login}),
    ):
        assert {secret for secret in secrets if secret in way.heard} == own_secrets


async def test_what_keeps_one_target_from_beginning_is_its_own_row(servers: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is not set, a block that does not exist, a server that is not there; the last target is clean."""
    home, there = servers("sqlite"), servers("postgresql")
    for server in (home, there):
        await server.database.clear()
        await server.database.insert(series("a", range(1, 6)))
    monkeypatch.delenv("NOT_SET", raising=False)
    address = there.local.address
    configure(
        target("no-variable", "http://127.0.0.1:7", 'api_key_variable = "NOT_SET"'),
        target("no-block", "http://127.0.0.1:8", 'api_key_block = "nobody-made-it"'),
        target("no-database", address.replace("127.0.0.1", "localhost"), 'database_block = "nobody-made-it"'),
        target("nothing-there", "http://127.0.0.1:9"),
        target("there", address),
    )
    rows, error = await sweep(home, at_once=2)
    assert [row.outcome for row in rows.values()] == ["failed"] * 4 + ["completed"]
    assert rows["there"].deleted == 3
    assert "the variable NOT_SET is not set" in rows["no-variable"].causes[0]
    assert 'target "no-block": api_key_block: the server has no Secret block nobody-made-it' in rows["no-block"].causes[0]
    assert 'target "no-database": the server has no Secret block nobody-made-it' in rows["no-database"].causes[0]
    assert "cannot reach" in rows["nothing-there"].causes[0]
    assert len(str(error).splitlines()) == 5


async def test_a_target_is_reached_through_its_database_and_by_its_own_policies(servers: Ask) -> None:
    """The address of the database is in a block of the server on which the run is, and nowhere else."""
    home, there = servers("sqlite"), servers("postgresql")
    for server in (home, there):
        await server.database.clear()
        await server.database.insert(series("a", range(1, 6)))
    with home.active():
        await Secret(value=there.database.url).asave("there-database", overwrite=True)
    own_policy = '[[targets.policies]]\nname = "four"\nkeep_last = 4\n'
    configure(target("there", there.local.address, f'database_block = "there-database"\n{own_policy}'))
    rows, error = await sweep(home)
    assert error is None
    assert (rows["there"].deleted, await others(there)) == (1, {"a": 4})


async def test_a_copy_of_the_database_of_a_target_is_refused(servers: Ask, tmp_path: Path) -> None:
    """It has the same artifacts, but not what the run has just created; and the flow run is on another server."""
    home, there = servers("postgresql"), servers("sqlite")
    for server in (home, there):
        await server.database.clear()
        await server.database.insert(series("a", range(1, 6)))
    copy = tmp_path / "copy.db"
    await there.database.run(f"VACUUM INTO '{copy}'")
    with home.active():
        await Secret(value=f"sqlite+aiosqlite:///{copy}").asave("copy-database", overwrite=True)
    configure(target("there", there.local.address, 'database_block = "copy-database"'))
    rows, _error = await sweep(home)
    assert "is not the database of the Prefect server" in rows["there"].causes[0]
    assert "the progress artifact of this run is not in it" in rows["there"].causes[0]
    assert await others(there) == {"a": 5}
    with sqlite3.connect(copy) as copied:
        assert copied.execute("SELECT count(*) FROM artifact").fetchone() == (5,)


@pytest.mark.thorough
async def test_sigterm_ends_all_targets_with_their_final_reports(
    servers: Ask, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """And the sweep with one that has a row for each."""
    home, there = servers("sqlite"), servers("postgresql")
    code = "import asyncio; from prefect_artifact_retention.flows.sweep import artifact_sweep as sweep; "
    command = [sys.executable, "-c", f"{code}asyncio.run(sweep(mode='delete'))"]
    environment = isolated_environment(tmp_path) | {"PREFECT_API_URL": f"{home.local.address}/api"}
    for _attempt in range(2):
        for server in (home, there):
            await server.database.clear()
            await server.database.insert(series("a", range(1, 30)))
        with gates(home.local.address, there.local.address) as ways:
            configure(*(target(f"target-{number}", way.address) for number, way in enumerate(ways)))
            for way in ways:
                way.hold_after(2)
            process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.DEVNULL)
            end_with_us(process.pid)
            for way in ways:
                await asyncio.to_thread(way.wait_until_held, 120)
            began = time.monotonic()
            process.terminate()
            assert await process.wait() != 0
            took = time.monotonic() - began
        # A server on SQLite may have held its writes up for longer than anybody waits for a final report.
        if took < FINAL_REPORT_SECONDS:
            break
    # What Docker kills after.
    assert took < 10
    tell(f"a sweep ends {took:.1f} s after SIGTERM")
    deleted = 0
    for server in (home, there):
        (report, *_) = await own(server, REPORT_KEY)
        assert "shut down before it was finished" in report["data"]
        deleted += int(report["description"].split()[1])
    (combined, *_) = await own(home, SWEEP_KEY)
    assert combined["data"].count("shut down before it was finished") == 2
    assert int(combined["description"].split()[1]) == deleted


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code of a command, and what it prints."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_commands_go_to_the_target_that_they_name(servers: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    """A hold and its list, a preview, a deletion, the doctor; the server of the profile has nothing of it."""
    home, there = servers("sqlite"), servers("postgresql")
    for server in (home, there):
        asyncio.run(server.database.clear())
        asyncio.run(server.database.insert([*series("a", range(1, 6)), *series("b", range(1, 6))]))
    configure(target("there", there.local.address), target("nobody", "http://127.0.0.1:9"))
    with home.active():
        assert run(capsys, "hold", "a", "--target", "there")[0] == 0
        code, text = run(capsys, "holds", "--target", "there")
        assert (code, f"On {there.local.address}" in text) == (0, True)
        assert "Nothing is on hold" in run(capsys, "holds")[1]
        code, text = run(capsys, "preview", "--target", "there", "--json")
        assert json.loads(text)["target"] == "there"
        assert (json.loads(text)["planned"], json.loads(text)["server"]) == (3, f"{there.local.address}/api")
        assert run(capsys, "doctor", "--target", "there")[0] == 0
        code, text = run(capsys, "delete", "--target", "there", "--json")
        assert (code, json.loads(text)["deleted"]) == (0, 3)
        assert run(capsys, "release", "a", "--target", "there")[0] == 0
        code, text = run(capsys, "targets", "--json")
        answers = json.loads(text)["targets"]
        assert (code, [each["answers"] for each in answers]) == (1, [True, False])
        assert run(capsys, "preview", "--target", "nowhere") == (
            2,
            "artifact-retention: retention.toml: there is no target 'nowhere'; known are there, nobody\n",
        )
        for command in (("approve", "x"), ("policies", "push")):
            assert "takes no --target" in run(capsys, *command, "--target", "there")[1]
    assert asyncio.run(others(home)) == {"a": 5, "b": 5}
    assert asyncio.run(others(there)) == {"a": 5, "b": 2}
