"""How a run ends: what it exits with, and that nothing that fails beside it decides over that."""

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest
from command import COMMAND, heed_ctrl_c
from database import Row, days, series
from fake import FakeServer
from fake_database import BROKEN, Artifact
from prefect_artifact_retention.flows.cleanup import LISTENER
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy
from prefect_artifact_retention.tasks.report import CleanupFailed
from prefect_artifact_retention.tasks.run import Step
from servers import BY_FAKE, FAKE, POSTGRESQL_API, SQLITE_API, Server, on, thorough, when_planned

KEEP_2 = RetentionPolicy(name="keep two", keep_last=2)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a policy of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retention.toml").write_text('[[policies]]\nname = "keep two"\nkeep_last = 2\n', encoding="utf-8")
    return tmp_path


async def call(server: Server, *arguments: str) -> int:
    """Call the command line, which has an event loop of its own."""
    with server.active():
        return await asyncio.to_thread(main, arguments)


@on(*BY_FAKE)
@pytest.mark.parametrize("glob", ["", "Report-*", "report_*", "Report"])
async def test_a_scope_that_no_key_can_match_deletes_nothing_and_is_bad_usage(
    server: Server, glob: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither do the other globs beside it, and nothing is written."""
    rows = await server.database.insert(series("report-a", [1, 2, 3]))
    with pytest.raises(ConfigurationError, match=f"^keys: '{glob.replace('*', '[*]')}' matches no key"):
        await server.cleanup([KEEP_2], mode="delete", keys=["report-*", glob])
    assert await server.database.ids() == {row.id for row in rows}
    assert await call(server, "preview", "--key", glob) == 2
    assert f"artifact-retention: keys: '{glob}' matches no key" in capsys.readouterr().err


@on(*BY_FAKE)
async def test_a_glob_that_a_key_may_match_one_day_is_only_warned_of(server: Server) -> None:
    """An odd key that is there is cleaned up, though Prefect would accept no such key today."""
    await server.database.insert(series("Odd_key", [1, 2, 3]))
    report = await server.cleanup([KEEP_2], mode="delete", keys=["one-day-*", "Odd_*"])
    assert (report.outcome, report.deleted) == ("completed", 1)
    assert report.warnings == ["no key matches one-day-*"]


@on(*BY_FAKE)
async def test_a_run_says_which_of_its_settings_have_no_effect(server: Server, folder: Path) -> None:
    """In the warnings of its report."""
    (folder / "retention.toml").write_text('reclaim = "vacuum"\n', encoding="utf-8")
    report = await server.cleanup([KEEP_2], mode="delete")
    (warning,) = report.warnings
    assert warning.startswith("retention.toml: reclaim = vacuum is ignored: ")


@on(FAKE)
async def test_a_preview_that_could_not_read_a_key_has_failed(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line as in the flow; what could be read is shown all the same."""
    await server.database.insert([*series("good", [1, 2, 3]), *series("bad", [1, 2])])
    await server.database.insert([Row("bad", days(3), data=BROKEN)])
    assert await call(server, "preview", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["outcome"], report["planned"]) == ("failed", 1)
    assert await call(server, "preview", "--key", "good", "--json") == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "completed"


@on(*BY_FAKE)
async def test_a_listener_that_fails_changes_nothing_for_the_run(server: Server) -> None:
    """As the progress does whose reader has gone: every key is planned and pruned all the same."""
    rows = await server.database.insert([*series("one", [1, 2, 3]), *series("two", [1, 2, 3])])

    async def fail(_step: Step, _done: int, _total: int) -> None:
        raise BrokenPipeError

    token = LISTENER.set(fail)
    try:
        report = await server.cleanup([KEEP_2], mode="delete")
    finally:
        LISTENER.reset(token)
    assert (report.outcome, report.deleted, report.warnings) == ("completed", 2, [])
    assert await server.database.ids() == {rows[number].id for number in (0, 1, 3, 4)}


WITNESSED = """
import sys, traceback
from prefect_artifact_retention.flows import cli

show = cli._show
with open(sys.argv.pop(1), "w") as witness:
    def witnessed(report, **options):
        print(report.outcome, report.errors, file=witness, flush=True)
        return show(report, **options)

    cli._show = witnessed
    try:
        sys.exit(cli.main())
    except BaseException:
        traceback.print_exc(file=witness)
        raise
"""
"""Runs the command line, and writes into a file what nobody would see where its output goes nowhere."""


@pytest.mark.thorough
@on(POSTGRESQL_API, thorough(SQLITE_API))  # a server on SQLite may hold up all writes for a minute, and the run then fails
@pytest.mark.parametrize("reader", ["gone", pytest.param("/dev/full", marks=pytest.mark.thorough)])
async def test_a_delete_run_whose_output_nobody_takes_exits_as_it_ended(server: Server, folder: Path, reader: str) -> None:
    """As in `delete 2>&1 | head -1`: 0, and the stale versions of every key have gone."""
    rows = await server.database.insert([*series("one", [1, 2, 3]), *series("two", [1, 2, 3])])
    if reader == "gone":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(reader, os.O_WRONLY)
    command = [sys.executable, "-c", WITNESSED, "witness.txt", "delete"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=server.local.environment, stdout=writing, stderr=writing
    )
    os.close(writing)
    assert await process.wait() == 0, (folder / "witness.txt").read_text(encoding="utf-8")
    assert {row.id for row in rows} & await server.database.ids() == {rows[number].id for number in (0, 1, 3, 4)}


@pytest.mark.thorough
@on(SQLITE_API)
@pytest.mark.parametrize("presses", [1, pytest.param(2, marks=pytest.mark.thorough)])
async def test_ctrl_c_in_mid_run_says_that_a_rerun_does_the_rest(server: Server, folder: Path, presses: int) -> None:
    """Exit code 130 and no traceback, however often it is pressed; and the rerun, a moment later, does it."""
    rows = await server.database.insert([row for number in range(12) for row in series(f"key-{number}", [1, 2, 3, 4])])
    environment = server.local.environment | {"ARTIFACT_RETENTION_MAX_REQUESTS_PER_MINUTE": "240"}
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        "delete",
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=heed_ctrl_c,
    )
    assert process.stderr
    told = b""
    while b"deleting: " not in told:
        line = await process.stderr.readline()
        assert line, told
        told += line
    for _press in range(presses):
        process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.2)
    stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (130, b""), stderr
    last_line = stderr.decode().splitlines()[-1]
    assert last_line == "artifact-retention: interrupted; a rerun goes on where this one stopped"
    assert b"Traceback" not in stderr
    kept = {row.id for index, row in enumerate(rows) if index % 4 < 2}
    assert kept < await server.database.ids() & {row.id for row in rows}
    assert await call(server, "delete") == 0
    assert await server.database.ids() & {row.id for row in rows} == kept


@on(FAKE)
async def test_a_version_that_grew_after_the_plan_leaves_report_and_history(server: FakeServer) -> None:
    """What it frees is more than the plan saw; what is left is not less than nothing."""
    rows = await server.database.insert(series("report", [1, 2, 3]))

    async def grow() -> None:
        server.database.artifacts[rows[2].id]["data"] = "x" * 1_000

    with when_planned(grow):
        report = await server.cleanup([KEEP_2], mode="delete")
    assert (report.outcome, report.deleted, report.bytes_freed, report.warnings) == ("completed", 1, 1_002, [])
    (row,) = json.loads(published(server, "history")["data"])
    assert (row["deleted"], row["bytes before"], row["bytes after"]) == (1, 9, 0)
    assert "Deleted 1 version" in published(server, "report")["description"]


@on(FAKE)
@pytest.mark.parametrize("key", ["history", "report"])
async def test_what_fails_when_a_report_is_published_loses_no_result(
    server: FakeServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nobody foresaw it: the history that fails costs no report, the report that fails no result of the run."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def fail(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and f'"key":"artifact-retention-{key}"'.encode() in request.content.replace(b" ", b""):
            raise ZeroDivisionError
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", fail)
    if key == "history":
        report = await server.cleanup([KEEP_2], mode="delete")
        assert report.warnings == ["the history could not be written: unexpected ZeroDivisionError"]
        assert "ZeroDivisionError" in str(published(server, "report")["data"])
    else:
        with pytest.raises(CleanupFailed, match="the report could not be written: unexpected ZeroDivisionError") as failed:
            await server.cleanup([KEEP_2], mode="delete")
        report = failed.value.report
    assert report.deleted == 1
    assert rows[2].id not in await server.database.ids()


def published(server: FakeServer, key: str) -> Artifact:
    """The version of one of the package's own keys."""
    (found,) = [each for each in server.database.artifacts.values() if each["key"] == f"artifact-retention-{key}"]
    return found


@on(*BY_FAKE)
async def test_a_guard_is_not_weakened_by_a_parameter(server: Server, folder: Path) -> None:
    """A run with a higher one refuses; one that ignores the guard deletes."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    (folder / "retention.toml").write_text("refuse_above_percent = 10\n", encoding="utf-8")
    with pytest.raises(CleanupFailed, match="more than refuse_above_percent = 10 allows"):
        await server.cleanup([KEEP_2], mode="delete", refuse_above_percent=50)
    assert {row.id for row in rows} <= await server.database.ids()
    report = await server.cleanup([KEEP_2], mode="delete", ignore_guard=True)
    assert report.deleted == 1


@on(SQLITE_API)
async def test_a_server_that_fails_after_the_deletions_costs_no_report_on_the_command_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefect cannot set the state of the flow run; what was deleted is printed all the same, with the error."""
    await server.database.insert(series("report", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request
    deleted = False

    async def fail(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        nonlocal deleted
        deleted = deleted or request.method == "DELETE"
        if deleted and "/flow_runs/" in request.url.path and request.url.path.endswith("/set_state"):
            return httpx.Response(500, json={"detail": "boom"}, request=request)
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", fail)
    assert await call(server, "delete", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["outcome"], report["deleted"]) == ("failed", 1)
    assert "the Prefect server failed after the run" in report["errors"][0]


@on(SQLITE_API)
@pytest.mark.parametrize("outcome", ["completed", "refused"])
async def test_a_lost_answer_to_the_last_request_costs_no_report_on_the_command_line(
    server: Server, outcome: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefect asks again, and gets the state as the server has it, without the result."""
    await server.database.insert(series("report", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def lose(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await send(transport, request)
        if re.search(r"/flow_runs/.*/set_state$", request.url.path) and b"RUNNING" not in request.content:
            await response.aread()
            return await send(transport, request)
        return response

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", lose)
    guard = ["--refuse-above-percent", "1"] if outcome == "refused" else []
    assert await call(server, "delete", "--json", *guard) == (3 if guard else 0)
    report = json.loads(capsys.readouterr().out)
    assert (report["outcome"], report["deleted"]) == (outcome, 0 if guard else 1)


@on(SQLITE_API)
async def test_a_cancellation_of_a_run_from_the_command_line_costs_no_report(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a worker, nobody stops it, and Prefect refuses the state in which it ends; its report is printed."""
    await server.database.insert(series("report", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def cancel(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if re.search(r"/flow_runs/.*/set_state$", request.url.path) and b"COMPLETED" in request.content:
            cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
            await (await send(transport, httpx.Request("POST", request.url, json=cancelling))).aread()
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", cancel)
    assert await call(server, "delete", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["outcome"], report["deleted"]) == ("completed", 1)


@on(SQLITE_API)
async def test_a_run_stopped_while_its_progress_artifact_is_created_says_there_that_it_stopped(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has created it, and the answer is still on its way."""
    rows = await server.database.insert(series("report", [1, 2, 3]))
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def stop(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await send(transport, request)
        if request.url.path.endswith("/artifacts/") and b"Step 1/3" in request.content:
            run.cancel()
            await asyncio.sleep(0.05)
        return response

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", stop)
    run = asyncio.create_task(server.run_flow([KEEP_2], mode="delete"))
    with pytest.raises(asyncio.CancelledError):
        await run
    (progress,) = await server.database.run("SELECT description FROM artifact WHERE key = 'artifact-retention-progress'")
    assert progress[0].startswith("Stopped. Deleted nothing")
    assert await server.database.ids() == {row.id for row in rows}
