"""A server of a version that this package is not tested with: one clear warning, and the run goes on."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from database import series
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, PREFECT_CLOUD_API_URL, temporary_settings
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.flows.explanation import explain
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import RetentionPolicy
from servers import BY_API, BY_FAKE, FAKE, Server, on

KEEP_2 = RetentionPolicy(name="keep two", keep_last=2)
TESTED = "this package is tested with Prefect 3.8 to 3.9, and may misread other versions"
UNTOLD = f"the server does not say which version of Prefect it runs; {TESTED}"

ANSWERS = [
    pytest.param(httpx.Response(200, json="3.8.0"), [], id="oldest"),
    pytest.param(httpx.Response(200, json="3.9.14.dev2+7.gabcdef"), [], id="newest"),
    pytest.param(httpx.Response(200, json="3.10.0"), [f"the server runs Prefect 3.10.0; {TESTED}"], id="newer"),
    pytest.param(httpx.Response(200, json="3.80.0"), [f"the server runs Prefect 3.80.0; {TESTED}"], id="much newer"),
    pytest.param(httpx.Response(200, json="3.7.9"), [f"the server runs Prefect 3.7.9; {TESTED}"], id="older"),
    pytest.param(httpx.Response(200, json="30.8.0"), [f"the server runs Prefect 30.8.0; {TESTED}"], id="far newer"),
    pytest.param(httpx.Response(200, json="4.0\x1b[31m"), [f"the server runs Prefect 4.0\\x1b[31m; {TESTED}"], id="hostile"),
    pytest.param(httpx.Response(200, json={"a": 1}), [UNTOLD], id="no version"),
    pytest.param(httpx.Response(200, text="<html>"), [UNTOLD], id="no JSON"),
    pytest.param(httpx.Response(404, json={"detail": "Not Found"}), [UNTOLD], id="not told"),
]


def answer_version(patch: pytest.MonkeyPatch, answer: httpx.Response) -> list[str]:
    """Let every server say this about its version; returns the list of the questions."""
    send = httpx.AsyncHTTPTransport.handle_async_request
    asked: list[str] = []

    async def answered(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/admin/version"):
            return await send(transport, request)
        asked.append(request.url.path)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content, request=request)

    patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", answered)
    return asked


@on(*BY_API)
async def test_the_present_server_is_no_reason_to_warn(server: Server) -> None:
    """Whatever answers to the tests is among the versions tested."""
    assert (await server.cleanup([KEEP_2])).warnings == []


@on(FAKE)  # what a real server answers is replaced here
@pytest.mark.parametrize(("answer", "warnings"), ANSWERS)
async def test_a_version_that_is_not_tested_is_warned_of_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, answer: httpx.Response, warnings: list[str]
) -> None:
    """And cleaned like any other."""
    # Prefect itself asks once, and runs no flow where the major version is another.
    await server.cleanup([KEEP_2])
    rows = await server.database.insert(series("report", [1, 2, 3]))
    with monkeypatch.context() as patch:
        asked = answer_version(patch, answer)
        report = await server.cleanup([KEEP_2], mode="delete")
        assert (report.outcome, len(asked)) == ("completed", 1)
        with server.active():
            assert (await explain(RetentionSettings(), "report")).warnings == warnings
    assert report.warnings == warnings
    assert await server.database.ids() == {row.id for row in rows[:2]}


@on(*BY_FAKE)
@pytest.mark.parametrize("version", ["4.0.1", "no version", None])
async def test_a_server_on_which_prefect_runs_no_flow_is_reported_in_one_line(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    version: str | None,
) -> None:
    """The command line deletes nothing there; a preview, which is no flow, has the warning."""
    monkeypatch.chdir(tmp_path)
    rows = await server.database.insert(series("report", [1, 2, 3]))
    answer_version(monkeypatch, httpx.Response(404) if version is None else httpx.Response(200, json=version))
    # Prefect remembers for each address that it has asked.
    address = f"{server.local.address}/api".replace("127.0.0.1", "localhost")
    with temporary_settings(updates={PREFECT_API_URL: address}):
        assert await asyncio.to_thread(main, ["delete", "--key", "report", "--keep-last", "1"]) == 1
        error = capsys.readouterr().err
        assert await asyncio.to_thread(main, ["preview", "--json"]) == 0
    assert error.startswith("artifact-retention: Prefect runs no flow on this server: ")
    assert error.count("\n") == 1
    assert await server.database.ids() == {row.id for row in rows}
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning.endswith(TESTED)


@on(*BY_FAKE)
async def test_cloud_has_no_such_version(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not even asked; our own server stands in for it."""
    asked = answer_version(monkeypatch, httpx.Response(404))
    cloud = {PREFECT_CLOUD_API_URL: f"{server.local.address}/api", PREFECT_API_KEY: "pnu_none"}
    with temporary_settings(updates=cloud):
        report = await server.cleanup([KEEP_2])
    assert (report.warnings, asked) == ([], [])
