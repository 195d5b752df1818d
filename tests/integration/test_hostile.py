"""Hostile text in all that a server may hold and say: none of it gets out of the place where it is shown."""

import asyncio
import base64
import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx
import pytest
from database import Row, days
from markdown_it import MarkdownIt
from markdown_it.token import Token
from prefect import get_client
from prefect.client.schemas.objects import State, StateType
from prefect_artifact_retention.flows.cleanup import artifact_cleanup
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.tasks.rendering import WORD_JOINER
from prefect_artifact_retention.tasks.report import CleanupFailed
from servers import BY_API, PROMPT, PROMPT_SECONDS, SQLITE_API, Server, count_rows, on, started_when_asked

pytestmark = pytest.mark.thorough

HOSTILE = (
    "\x1b[31m\u202e\r\n\n# Taken over\n\n| a | b |\n|---|---|\n<script>alert(1)</script> [x](javascript:y) ![z](//evil) `**"
)
AS_A_GLOB = HOSTILE.replace("[", "[[]")
KEYS = [
    HOSTILE,
    "",
    "abc\n",
    "\x1b]0;title\x07\x1b[2J",
    "a|b`c*<b>&amp;",
    "<img src=http://evil onerror=alert(1)>",
    "\u2066abc\u2069\u200b",
    "[bold red]markup[/] :skull:",
    "k" * 3000,
    "see HTTPS://evil.example, www.evil.example or me@evil.example",
]
BECOMES_LINK = re.compile(r"https?://|www\.|[\w.+-]@\w", re.IGNORECASE)
"""What both of Prefect's user interfaces make a link of, as GitHub's markdown does, though it is plain text."""

KEEP_1 = RetentionPolicy(name="<b>|one*", match_types=[HOSTILE, "markdown"], keep_last=1)
PICTURE = "data:image/svg+xml;base64,"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Servers that write at once what they are told, so that all of it is looked at. Never idle, they end with this file."""
    with started_when_asked(tmp_path_factory.mktemp("hostile"), **PROMPT) as get:
        yield get


async def fill(server: Server) -> None:
    """Three versions of each key, one of them held by something unreadable, all of hostile type and description."""
    metadata = {"retention-hold": HOSTILE, "retention-ttl-days": HOSTILE, HOSTILE: HOSTILE}
    for key in KEYS:
        held = Row(key, days(2), data=HOSTILE, type=HOSTILE, metadata=metadata)
        await server.database.insert([Row(key, days(1), type=HOSTILE), held, Row(key, days(3), data={HOSTILE: [HOSTILE]})])
    await server.database.run("UPDATE artifact SET description = :text", [{"text": HOSTILE}])
    await server.database.run("UPDATE artifact_collection SET description = :text", [{"text": HOSTILE}])


def printable(text: str) -> bool:
    """Whether nothing in it steers a terminal, or turns a line around."""
    return all(char.isprintable() or char in "\n\u00a0" for char in text)


def published(text: str) -> str:
    """Text without what keeps it from becoming a link."""
    return text.replace(WORD_JOINER, "")


def tokens(parsed: list[Token]) -> Iterator[Token]:
    """All parts of a markdown document, however deep."""
    for token in parsed:
        yield token
        yield from tokens(token.children or [])


def check_markdown(text: str, address: str) -> None:
    """Nothing but our own markup: our headings, links to the server itself, pictures of our own making."""
    assert printable(published(text))
    parts = list(tokens(MarkdownIt("commonmark").enable("table").parse(text)))
    assert not {"html_block", "html_inline", "em_open", "strong_open", "code_inline", "fence", "hr"} & {t.type for t in parts}
    headings = [parts[index + 1].content for index, token in enumerate(parts) if token.type == "heading_open"]
    assert not [heading for heading in headings if "Taken" in heading]
    assert all(str(token.attrs["href"]).startswith(address) for token in parts if token.type == "link_open")
    assert not [token.content for token in parts if token.type == "text" and BECOMES_LINK.search(token.content)]
    pictures = [str(token.attrs["src"]) for token in parts if token.type == "image"]
    for picture in pictures:
        assert picture.startswith(PICTURE)
        svg = ET.fromstring(base64.b64decode(picture.removeprefix(PICTURE)))  # noqa: S314 - our own
        assert {each.tag.rpartition("}")[2] for each in svg.iter()} <= {"svg", "style", "rect", "text", "line"}
        assert printable("".join(svg.itertext()))


def loads(data: object) -> Any:  # noqa: ANN401 - JSON
    """A JSON column as either database's driver gives it."""
    return json.loads(data) if isinstance(data, str) and data[:1] in '"[{' else data


async def check_what_people_see(server: Server) -> dict[str, Any]:
    """Look at all that a run has written for people, and return the texts of its own artifacts."""
    # Once all of it has been written.
    await count_rows(server, PROMPT_SECONDS)
    texts = {}
    for key, data, description in await server.database.run(
        "SELECT key, data, description FROM artifact WHERE key LIKE 'artifact-retention-%' ORDER BY created"
    ):
        check_markdown(description, server.local.address)
        texts[key] = loaded = loads(loads(data))
        if key == "artifact-retention-report":
            check_markdown(loaded, server.local.address)
        elif key == "artifact-retention-history":
            assert all(printable(str(cell)) and "\n" not in str(cell) for row in loaded for cell in row.values())
    for table, column in SEEN:
        for (text,) in await server.database.run(f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL"):
            assert printable(text), (table, column, text)
    return texts


SEEN = [("log", "message"), ("flow_run_state", "message"), ("task_run_state", "message"), ("task_run", "name")]
"""What the user interface shows of a run as it is."""


@on(*BY_API)
async def test_a_run_over_hostile_artifacts_that_fails_with_hostile_text_publishes_and_logs_plain_text(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report, its charts, the history, the progress, every state and every log line; and what is kept is kept."""
    await fill(server)
    await server.run_flow([KEEP_1], mode="delete", keys=["abc*"])
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def fail(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            return httpx.Response(500, json={"detail": HOSTILE}, request=request)
        return await send(transport, request)

    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", fail)
        with pytest.raises(CleanupFailed, match="Taken over") as failed:
            await server.run_flow([KEEP_1], mode="delete", keys=["*", AS_A_GLOB])
    report = failed.value.report
    assert (report.planned, report.failed) == (len(KEYS) - 1, len(KEYS) - 1)
    assert len([warning for warning in report.warnings if "unreadable retention-hold" in warning]) == len(KEYS)
    assert all(
        printable(text) and "\n" not in text for text in (*report.warnings, str(failed.value), report.policies[0].sentence)
    )
    texts = await check_what_people_see(server)
    assert "Taken over" in texts["artifact-retention-report"]
    assert PICTURE in texts["artifact-retention-report"]
    await server.run_flow([KEEP_1], mode="delete")
    assert len(await server.database.ids()) == 2 * len(KEYS)
    await check_what_people_see(server)


@on(*BY_API)
async def test_a_run_that_gives_way_to_one_of_hostile_name_says_so_in_plain_text(server: Server) -> None:
    """And takes a history with hostile rows further."""
    await fill(server)
    with server.active():
        async with get_client() as client:
            older = await client.create_flow_run(
                artifact_cleanup, name=HOSTILE, parameters={"mode": "delete"}, state=State(type=StateType.RUNNING)
            )
    phase = {"artifact-retention-phase": "deleting"}
    age = timedelta(minutes=1)
    await server.run_flow([KEEP_1], keys=[AS_A_GLOB])
    ((rows,),) = await server.database.run("SELECT data FROM artifact_collection WHERE key LIKE '%-history'")
    for key in ("artifact-retention-history", "artifact-retention-progress"):
        await server.database.delete_key(key)
    hostile = [loads(loads(rows))[0] | {"run": HOSTILE, "when (UTC)": HOSTILE, "link": HOSTILE}]
    await server.database.insert(
        [
            Row("artifact-retention-history", age, data=hostile, type="table"),
            Row("artifact-retention-progress", age, data=40.0, type="progress", metadata=phase, flow_run_id=older.id),
        ]
    )
    await server.database.run("UPDATE artifact SET description = '' WHERE description IS NULL")
    report = await server.run_flow([KEEP_1], mode="delete")
    assert report.outcome == "skipped"
    assert "Taken over" in report.refusals[0]
    old = "key LIKE '%-history' AND id NOT IN (SELECT latest_id FROM artifact_collection)"
    await server.database.run(f"DELETE FROM artifact WHERE {old}")
    texts = await check_what_people_see(server)
    assert len(texts["artifact-retention-history"]) == 2


async def refuse(_transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
    """A server that says hostile words to everything."""
    return httpx.Response(500, json={"detail": HOSTILE}, request=request)


@pytest.mark.long
@on(SQLITE_API)
async def test_the_command_line_prints_hostile_artifacts_as_plain_text(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Preview, explain, delete and their errors: no terminal is steered; as JSON the keys are what they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "retention.toml").write_text('[[policies]]\nname = "[red]one[/]"\nkeep_last = 1\n', encoding="utf-8")
    await fill(server)

    def call(*arguments: str) -> tuple[int, str]:
        with server.active():
            code = main(arguments)
        captured = capsys.readouterr()
        assert printable(captured.out), captured.out
        assert printable(captured.err), captured.err
        return code, captured.out

    code, shown = await asyncio.to_thread(call, "preview")
    assert (code, "[red]one[/]" in shown, ":skull:" in shown) == (0, True, True)
    for key in KEYS:
        code, shown = await asyncio.to_thread(call, "explain", "--", key)
        assert (code, "unreadable retention-hold" in " ".join(shown.split())) == (0, True)
    code, shown = await asyncio.to_thread(call, "preview", "--json")
    assert {key["key"] for key in json.loads(shown)["key_reports"]} == set(KEYS)
    assert (await asyncio.to_thread(call, "explain", f"no {HOSTILE}"))[0] == 1
    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", refuse)
        for command in (["preview"], ["explain", "x"], ["delete"]):
            assert (await asyncio.to_thread(call, *command))[0] == 1
    assert (await asyncio.to_thread(call, "delete", "--key", HOSTILE, "--keep-last", "1"))[0] == 2
    assert (await asyncio.to_thread(call, "delete", "--key", HOSTILE.replace("[", "[[]")))[0] == 0
