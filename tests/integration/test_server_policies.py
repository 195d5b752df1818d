"""The list of policies on a real server: pushed, pulled, changed in between, honoured by runs, and broken."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from database import series
from fake import FakeServer
from prefect_artifact_retention.flows.acceptance import accept
from prefect_artifact_retention.flows.cleanup import preview
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.flows.doctor import examine_server
from prefect_artifact_retention.flows.server_policies import push, read_log
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.policies import ConfigurationError, RetentionError, RetentionPolicy, StoreError
from prefect_artifact_retention.policies.pushes import SOURCE
from prefect_artifact_retention.stores.connection import Connection, connect
from prefect_artifact_retention.stores.policy_lists import PolicyLists
from prefect_artifact_retention.tasks.report import CleanupFailed
from servers import (
    BY_FAKE,
    FAKE,
    POSTGRESQL_API,
    POSTGRESQL_DATABASE,
    SQLITE_API,
    UNHURRIED_SECONDS,
    Server,
    count_rows,
    on,
    thorough,
)

REAL_ONCE = on(SQLITE_API, thorough(POSTGRESQL_API))
REQUIRED: dict[str, Any] = {"mode": "delete", "require_accepted_policies": True}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a configuration."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def policies(*keep_last: int) -> list[dict[str, Any]]:
    """A list with one policy for each number, the last one for all keys."""
    names = [*(f"k{number}-*" for number in range(1, len(keep_last))), "*"]
    return [
        {"name": f"p{at}", "match_keys": [name], "keep_last": number}
        for at, (name, number) in enumerate(zip(names, keep_last, strict=True))
    ]


def configure(*keep_last: int, more: str = "") -> None:
    """Write a configuration file."""
    tables = ["[[policies]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in each.items()) for each in policies(*keep_last)]
    Path("retention.toml").write_text("\n".join([more, *tables]), encoding="utf-8")


def configure_none(text: str = "") -> None:
    """Write a configuration file without policies."""
    Path("retention.toml").write_text(text, encoding="utf-8")


def unconfigure() -> None:
    """Remove it."""
    Path("retention.toml").unlink()


async def push_configured(server: Server, by: str = "ada", over: str = "") -> list[str]:
    """Push what is configured, and return the changes."""
    with server.active():
        return (await push(load_settings(), by, over)).changes


async def save_in_ui(server: Server | FakeServer, data: object) -> None:
    """Save the block as the UI does, where it is; in the server in memory, create it."""
    if isinstance(server, FakeServer):
        now = server.now()
        block = {"id": server.database.new_id(), "data": data, "updated": now, "block_schema": {"fields": {}}}
        server.database.blocks["artifact-retention/policies"] = block
        return
    with server.active():
        async with connect() as connection:
            found = await PolicyLists(connection).read()
            assert found
            body = {"data": data, "merge_existing_data": False}
            await connection.request("PATCH", f"/block_documents/{found.id}", body)


async def command(server: Server, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line, and return its exit code and what it prints."""
    with server.active():
        code = await asyncio.to_thread(main, ["policies", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@REAL_ONCE
async def test_what_is_pushed_is_pulled_and_pushed_again_changes_nothing(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """By command; the TOML that is pulled has the digest of what was pushed, and so has the check of the list."""
    configure(3, 5)
    code, out, _err = await command(server, capsys, "push", "--by", "ada", "--json")
    pushed = json.loads(out)
    assert (code, pushed["push"], pushed["by"]) == (0, 1, "ada")
    assert pushed["changes"] == ['policy "p0" is new', 'policy "p1" is new']
    assert (await command(server, capsys, "pull", "--out", "pulled.toml"))[:2] == (0, "")
    unconfigure()
    code, out, _err = await command(server, capsys, "check", "--live", "--json")
    assert (code, json.loads(out)["source"], json.loads(out)["digest"]) == (0, SOURCE, pushed["digest"])
    # What earlier tests have told the server may still be on its way into the database.
    before = await count_rows(server, UNHURRIED_SECONDS)
    code, out, _err = await command(server, capsys, "push", "--config", "pulled.toml", "--json")
    again = json.loads(out)
    assert (code, again["push"], again["digest"], again["changes"]) == (0, None, pushed["digest"], [])
    assert await count_rows(server, UNHURRIED_SECONDS) == before


@REAL_ONCE
async def test_each_push_keeps_the_list_before_it_and_the_log_tells_who_changed_what(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Edits in the UI, too, with their time; each list can be pulled by the digest that the log has."""
    configure(3)
    await push_configured(server)
    await save_in_ui(server, {"policies": policies(7)})
    with server.active():
        (edit, first) = await read_log()
    assert (edit.what, edit.changes, edit.by) == ("changed in the UI", ['policy "p0": keep_last = 7, was 3'], "")
    assert edit.at
    configure(4)
    await push_configured(server, "bob", over=edit.digest)
    code, out, _err = await command(server, capsys, "log", "--json")
    log = json.loads(out)["changes"]
    assert [(each["what"], each["by"], each["changes"]) for each in log] == [
        ("pushed", "bob", ['policy "p0": keep_last = 4, was 7']),
        ("changed in the UI", "", ['policy "p0": keep_last = 7, was 3']),
        ("pushed", "ada", ['policy "p0" is new']),
    ]
    assert code == 0
    for each, kept in zip(log, (4, 7, 3), strict=True):
        _code, out, _err = await command(server, capsys, "pull", "--digest", each["digest"], "--json")
        assert json.loads(out)["policies"] == [{"name": "p0", "keep_last": kept}]
    assert first.digest == log[-1]["digest"]
    _code, out, _err = await command(server, capsys, "log")
    assert f"push 2 by bob ({log[0]['digest']})" in out
    code, _out, err = await command(server, capsys, "pull", "--digest", "none")
    assert (code, "no push has a list none on record" in err) == (2, True)


@REAL_ONCE
async def test_a_push_does_not_replace_what_somebody_has_changed_in_the_ui(server: Server) -> None:
    """Unless they say which list they mean; one that cannot be meant has a digest, too."""
    configure(3)
    await push_configured(server)
    await save_in_ui(server, {"policies": [{"name": "p0", "keep_last": -1}]})
    configure(4)
    with pytest.raises(RetentionError, match="was changed in the UI") as refused:
        await push_configured(server)
    assert "keep_last = -1" in str(refused.value)
    over = str(refused.value).split("--over ")[1][:12]
    await save_in_ui(server, {"policies": policies(9)})
    with pytest.raises(RetentionError, match="was changed in the UI"):
        await push_configured(server, over=over)
    await save_in_ui(server, {"policies": [{"name": "p0", "keep_last": -1}]})
    assert await push_configured(server, over=over) == ["the list before could not be meant", 'policy "p0" is new']


@REAL_ONCE
async def test_of_two_who_push_at_the_same_moment_one_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of theirs is written; and the log has the other one."""
    configure(3)
    await push_configured(server)
    create = Connection.create

    async def after_another(connection: Connection, path: str, body: Any) -> bool:  # noqa: ANN401 - JSON
        if path == "/block_documents/":
            monkeypatch.setattr(Connection, "create", create)
            configure(8)
            await push_configured(server, "bob")
        return await create(connection, path, body)

    configure(4)
    monkeypatch.setattr(Connection, "create", after_another)
    with pytest.raises(RetentionError, match="somebody else has pushed policies meanwhile"):
        await push_configured(server)
    with server.active():
        assert [each.by for each in await read_log()] == ["bob", "ada"]


@REAL_ONCE
async def test_an_edit_in_the_ui_during_a_push_is_not_lost(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The push is refused, and in no log; neither does one that only renews the form write the list."""
    configure(3)
    await push_configured(server)
    create = Connection.create

    async def after_an_edit(connection: Connection, path: str, body: Any) -> bool:  # noqa: ANN401 - JSON
        if path == "/block_documents/":
            monkeypatch.setattr(Connection, "create", create)
            await save_in_ui(server, {"policies": policies(7)})
        return await create(connection, path, body)

    configure(4)
    monkeypatch.setattr(Connection, "create", after_an_edit)
    with pytest.raises(RetentionError, match="the list was changed meanwhile"):
        await push_configured(server)
    with server.active():
        assert [each.what for each in await read_log()] == ["changed in the UI", "pushed"]
        async with connect() as connection:
            lists = PolicyLists(connection)
            found = await lists.read()
            assert found
            await save_in_ui(server, {"policies": policies(8)})
            assert await lists.renew_form(found._replace(form="of an older release"))
            found = await lists.read()
            assert found
            assert found.data == {"policies": policies(8)}


@REAL_ONCE
async def test_a_record_that_nobody_can_read_hinders_no_push(server: Server) -> None:
    """Its number is taken all the same."""
    configure(3)
    await push_configured(server)
    with server.active():
        async with connect() as connection:
            path = "/block_types/slug/artifact-retention/block_documents/name/push-000001"
            record = connection.json(await connection.request("GET", path))
            body = {"data": {"of": "another release"}, "merge_existing_data": False}
            await connection.request("PATCH", f"/block_documents/{record['id']}", body)
        (edit,) = await read_log()
    configure(4)
    assert await push_configured(server, over=edit.digest) == ['policy "p0": keep_last = 4, was 3']
    with server.active():
        assert [each.push for each in await read_log()] == [2, None]


@REAL_ONCE
async def test_an_interrupted_push_is_pushed_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is as before, and the log does not take it for anybody's edit."""
    configure(3)
    await push_configured(server)
    request = Connection.request

    async def fail(connection: Connection, method: str, path: str, *args: Any, **options: Any) -> httpx.Response:  # noqa: ANN401
        if method == "PATCH":
            raise StoreError("injected")
        return await request(connection, method, path, *args, **options)

    configure(4)
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "request", fail)
        with pytest.raises(StoreError, match="injected"):
            await push_configured(server)
    assert await push_configured(server) == ['policy "p0": keep_last = 4, was 3']
    with server.active():
        assert [each.what for each in await read_log()] == ["pushed", "not finished", "pushed"]


@on(SQLITE_API, POSTGRESQL_DATABASE)
async def test_a_run_without_policies_of_its_own_honours_the_list(server: Server) -> None:
    """As it is when the run begins, and its report names it; where a file has policies, these alone count."""
    rows = await server.database.insert(series("a", [1, 2, 3, 4, 5]))
    configure(4)
    await push_configured(server)
    report = await server.cleanup(mode="preview")
    assert (report.planned, report.policy_source) == (1, "retention.toml")
    unconfigure()
    report = await server.cleanup(mode="delete")
    assert (report.deleted, report.policy_source) == (1, SOURCE)
    await save_in_ui(server, {"policies": policies(2)})
    assert (await server.cleanup(mode="delete")).deleted == 2
    assert await server.database.ids() == {row.id for row in rows[:2]}
    configure(1)
    with server.active():
        report = await preview(load_settings())
    assert (report.planned, report.policy_source) == (1, "retention.toml")


BROKEN = [
    ({"policies": [{"name": "a", "keep_lst": 3}]}, 'policy "a": unknown field keep_lst = 3'),
    ({"policies": []}, "has no policies"),
    ({"policies": '[{"name": "a"'}, "policies is no list"),
    ({"policies": [{"name": "a", "keep_last": 3}, {"name": "b", "keep_last": 1}]}, "can never apply"),
    ({}, "policies is no list"),
]


@on(*BY_FAKE)
@pytest.mark.parametrize(("data", "message"), BROKEN, ids=[message for _, message in BROKEN])
async def test_a_list_that_cannot_be_meant_fails_every_run_closed(
    server: Server | FakeServer, data: object, message: str
) -> None:
    """A preview, too, which would otherwise show what a policy that nobody has written would delete."""
    await server.database.insert(series("a", range(1, 60)))
    if isinstance(server, Server):
        configure(3)
        await push_configured(server)
        unconfigure()
    await save_in_ui(server, data)
    before = await server.database.ids()
    for mode in ("delete", "preview"):
        with pytest.raises(ConfigurationError, match=SOURCE) as caught:
            await server.cleanup(mode=mode)
        assert message in str(caught.value)
    given = [RetentionPolicy(name="given", match_keys=["a"], keep_last=1)]
    with pytest.raises(ConfigurationError, match=SOURCE):
        await server.cleanup(given, mode="delete", keys=["a"])
    assert await server.database.ids() == before


@on(FAKE)
async def test_the_doctor_examines_a_server_whose_list_fails_every_run_and_says_so(server: FakeServer) -> None:
    """He is called when something is wrong."""
    await server.database.insert(series("a", range(1, 6)))
    await save_in_ui(server, {"policies": [{"name": "p0", "keep_last": -1}]})
    with server.active():
        checkup = await examine_server(load_settings(), lambda _findings: False)
    assert [(each.kind, each.is_left) for each in checkup.findings] == [("policies_unreadable", True)]
    assert f'{SOURCE}: policy "p0": keep_last = -1' in checkup.findings[0].examples[0]
    assert checkup.total.versions == 5


UNREADABLE = [
    (500, b"<html>", "block_types"),
    (200, b"<html>", "does not answer like a Prefect API"),
    # Of a proxy in front of the server: that is no missing list.
    (404, b"404 page not found", "which Prefect does not say"),
    (404, b'{"message": "no Route matched"}', "which Prefect does not say"),
    (404, b'{"detail": "Not Found"}', "which Prefect does not say"),
    (403, b"", "must be allowed to read blocks"),
]


@on(FAKE)
@pytest.mark.parametrize(("status", "content", "message"), UNREADABLE)
async def test_a_list_that_cannot_be_read_fails_every_run_closed(
    server: FakeServer, status: int, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what it says; also a run with rules of its own, which would otherwise miss a keep_all of the list."""
    await server.database.insert(series("a", range(1, 60)))
    await save_in_ui(server, {"policies": [{"name": "audit", "keep_all": True}]})
    real = server.answer

    async def fail(request: httpx.Request) -> httpx.Response:
        if "/block_types/" in request.url.path:
            return httpx.Response(status, content=content, request=request)
        return await real(request)

    monkeypatch.setattr(server, "answer", fail)
    before = await server.database.ids()
    given = [RetentionPolicy(name="given", keep_last=1)]
    for rules, mode in ((), "delete"), (given, "delete"), ((), "preview"):
        with pytest.raises(StoreError, match=message):
            await server.cleanup(rules, mode=mode)
    assert await server.database.ids() == before


@on(FAKE)
async def test_where_there_is_no_list_a_preview_has_its_own_policy_and_a_deletion_fails(server: FakeServer) -> None:
    """As ever; and one request more is all that the list costs."""
    await server.database.insert(series("a", range(1, 60)))
    assert (await server.cleanup(mode="preview")).policy_source == "built in, for previews only"
    with pytest.raises(ConfigurationError, match="no policy is configured"):
        await server.cleanup(mode="delete")


@on(FAKE)
async def test_an_empty_list_in_a_variable_hides_that_of_the_server(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sets it wants no policies, and not those of the server in place of the ones that the file has."""
    await server.database.insert(series("a", range(1, 10)))
    await save_in_ui(server, {"policies": policies(1)})
    configure(5)
    monkeypatch.setenv("ARTIFACT_RETENTION_POLICIES", "[]")
    with pytest.raises(ConfigurationError, match="no policy is configured"):
        await server.cleanup(mode="delete")
    monkeypatch.delenv("ARTIFACT_RETENTION_POLICIES")
    configure_none("policies = []\n")
    with pytest.raises(ConfigurationError, match="no policy is configured"):
        await server.cleanup(mode="delete")
    configure_none()
    assert (await server.cleanup(mode="delete")).deleted == 8


@on(FAKE)
async def test_the_rules_of_one_call_leave_alone_what_the_list_keeps(server: FakeServer) -> None:
    """As with policies in a file: a keep_all there is not overridden."""
    await save_in_ui(server, {"policies": [{"name": "audit", "match_keys": ["a"], "keep_all": True}]})
    await server.database.insert([*series("a", range(1, 10)), *series("b", range(1, 10))])
    given = [RetentionPolicy(name="given", keep_last=1)]
    assert (await server.cleanup(given, mode="delete")).deleted == 8


@REAL_ONCE
async def test_an_edit_in_the_ui_is_no_acceptance_and_a_push_is_one(server: Server) -> None:
    """With require_accepted_policies, as the shipped nightly: refused with the changes, until a person accepts them."""
    await server.database.insert(series("a", [1, 2, 3, 4, 5, 6]))
    configure(4)
    await push_configured(server)
    unconfigure()
    assert (await server.cleanup(**REQUIRED, attended=False)).deleted == 2
    await save_in_ui(server, {"policies": policies(2)})
    with pytest.raises(CleanupFailed) as refused:
        await server.cleanup(**REQUIRED, attended=False)
    assert refused.value.report.refusals[1:] == ['policy "p0": keep_last = 2, was 4']
    with server.active():
        _record, source = await accept(load_settings(), "ada")
    assert source == SOURCE
    assert (await server.cleanup(**REQUIRED, attended=False)).deleted == 2


@REAL_ONCE
async def test_a_block_of_an_older_release_gets_the_new_form_by_a_push(server: Server) -> None:
    """Though the policies are the same; until then, runs go by it all the same."""
    configure(3)
    with server.active():
        await push(load_settings(), "ada")
        async with connect() as connection:
            lists = PolicyLists(connection)
            found = await lists.read()
            assert found
            kind = connection.json(await connection.request("GET", "/block_types/slug/artifact-retention"))
            old = {**found.form, "title": "of an older release"}
            schema = await connection.ask("/block_schemas/", {"fields": old, "block_type_id": kind["id"]})
            await connection.request(
                "PATCH", f"/block_documents/{found.id}", {"data": found.data, "block_schema_id": schema["id"]}
            )
            assert (await push(load_settings(), "ada")).form_renewed
            renewed = await lists.read()
            assert renewed
            assert (renewed.form, renewed.data) == (found.form, found.data)
        assert not (await push(load_settings(), "ada")).form_renewed


@on(FAKE)
async def test_flags_that_stand_in_for_rules_stand_in_for_those_of_the_list(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """By command, with the selectors of the list; what it keeps for good stays."""
    table = {"name": "audit", "match_keys": ["a"], "keep_all": True}
    await save_in_ui(server, {"policies": [table, {"name": "rest", "keep_last": 9}]})
    await server.database.insert([*series("a", range(1, 10)), *series("b", range(1, 10))])
    with server.active():
        code = await asyncio.to_thread(main, ["preview", "--key", "[ab]", "--keep-last", "2", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (code, report["planned"]) == (0, 7)
    assert {each["key"]: each["policy"] for each in report["key_reports"]}["b"] == "rest, by command line"
