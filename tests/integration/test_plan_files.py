"""Plan files: what a person has seen is all that goes, whatever others have done meanwhile, and only where it was meant."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from command import COMMAND
from database import Row, days, series
from fake import FakeServer
from prefect_artifact_retention.flows import plans
from prefect_artifact_retention.flows.cleanup import LISTENER, SHOWN
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy
from prefect_artifact_retention.tasks.planfile import PlanFile, ShownPlan, load_plan
from prefect_artifact_retention.tasks.rendering import markdown
from prefect_artifact_retention.tasks.report import CleanupFailed, CleanupReport
from prefect_artifact_retention.tasks.run import Step
from servers import BY_FAKE, FAKE, POSTGRESQL_DATABASE, SQLITE_API, Server, on, thorough

KEEP_2 = RetentionPolicy(name="two", keep_last=2)
ANYTHING = RetentionPolicy(name="loose", unkeyed=True, keep_within_days=30)
POLICIES = [KEEP_2, ANYTHING]


async def preview(server: Server | FakeServer, out: Path, *keys: str) -> PlanFile:
    """Write a plan file, and read it."""
    with server.active():
        await plans.preview_into(out, plans.Given(None, None), RetentionSettings(), POLICIES, keys)
    return load_plan(out)


async def add_older(server: Server | FakeServer, key: str, age: float, latest: UUID) -> Row:
    """Add a version to a key, as a restore does: it is not the latest."""
    if isinstance(server, FakeServer):
        return (await server.database.insert([Row(key, days(age))], latest={key: latest}))[0]
    (row,) = await server.database.insert(series("elsewhere", [age]))
    await server.database.run(f"UPDATE artifact SET key = '{key}' WHERE key = 'elsewhere'")
    await server.database.run("DELETE FROM artifact_collection WHERE key = 'elsewhere'")
    return row


@contextmanager
def carrying_out(plan: PlanFile, hours: float = 24) -> Iterator[None]:
    """Let delete runs carry out a plan."""
    token = SHOWN.set(ShownPlan.within(plan, hours))
    try:
        yield
    finally:
        SHOWN.reset(token)


async def carry_out(
    server: Server | FakeServer, plan: PlanFile, hours: float = 24, policies: list[RetentionPolicy] = POLICIES
) -> CleanupReport:
    """Run a cleanup that carries out a plan."""
    with carrying_out(plan, hours):
        return await server.cleanup(policies, mode="delete", keys=plan.scope)


@on(FAKE, thorough(POSTGRESQL_DATABASE), thorough(SQLITE_API))
async def test_what_the_file_has_goes_and_the_file_is_what_a_preview_found(
    server: Server | FakeServer, tmp_path: Path
) -> None:
    """With a key, and without one; and nothing differs."""
    rows = await server.database.insert([*series("a", [1, 2, 3, 4]), *series("b", [1, 2]), *series(None, [1, 40])])
    plan = await preview(server, tmp_path / "plan.json")
    assert {(each.key, *each.ids) for each in plan.planned} == {("a", rows[3].id, rows[2].id), (None, rows[7].id)}
    report = await carry_out(server, plan)
    assert (report.deleted, report.withheld, report.differences) == (3, 0, [])
    assert report.planned_at == plan.now
    assert await server.database.ids() == {row.id for row in rows} - {rows[2].id, rows[3].id, rows[7].id}


@on(FAKE, thorough(POSTGRESQL_DATABASE))
async def test_what_others_did_meanwhile_is_told_and_nothing_else_goes(server: Server | FakeServer, tmp_path: Path) -> None:
    """Somebody has deleted, held and created versions, and a key has come."""
    a, b = await server.database.insert(series("a", [1, 2, 3, 4, 5])), await server.database.insert(series("b", [1, 2, 3]))
    plan = await preview(server, tmp_path / "plan.json")
    await server.database.delete_version(a[4].id)
    await server.database.update_metadata(a[3].id, {"retention-hold": "true"})
    # As a restored version: older than the plan, and not in it.
    restored = await add_older(server, "b", 20, latest=b[0].id)
    new = await server.database.insert(series("c", [1, 2, 3]))
    report = await carry_out(server, plan)
    assert await server.database.ids() == {*(row.id for row in (*a[:2], a[3], *b[:2], restored, *new))}
    assert report.differences == [
        "a: 2 versions of the plan stale no longer, or gone",
        "b: 1 version more, left alone",
        "c: 1 version more, left alone",
    ]
    assert (report.deleted, report.withheld) == (2, 2)
    assert "## Differences from the plan that was shown" in markdown(report)
    assert "by the plan of" in markdown(report)


@on(FAKE)
async def test_a_version_that_came_meanwhile_makes_no_other_one_stale(server: FakeServer, tmp_path: Path) -> None:
    """By the `now` of the plan, it is not there yet."""
    rows = await server.database.insert(series("a", [1, 2, 3]))
    plan = await preview(server, tmp_path / "plan.json")
    server.pass_time(timedelta(hours=3))
    newest = await server.database.insert(series("a", [0.05]))
    report = await carry_out(server, plan)
    assert (report.deleted, report.differences) == (1, [])
    assert await server.database.ids() == {rows[0].id, rows[1].id, newest[0].id}


@on(FAKE, thorough(POSTGRESQL_DATABASE))
async def test_the_latest_of_an_idle_key_stays_with_a_version_that_was_not_shown(
    server: Server | FakeServer, tmp_path: Path
) -> None:
    """A key goes as a whole, or keeps its latest."""
    idle = [RetentionPolicy(name="two", keep_last=2, drop_idle_keys_after_days=30)]
    rows = await server.database.insert(series("a", [40, 41]))
    with server.active():
        await plans.preview_into(tmp_path / "p", plans.Given(None, None), RetentionSettings(), idle, ())
    more = (await add_older(server, "a", 60, latest=rows[0].id)).id
    report = await carry_out(server, load_plan(tmp_path / "p"), policies=idle)
    assert await server.database.ids() == {rows[0].id, more}
    assert not await server.database.dangling()
    assert (report.deleted, report.withheld, report.remaining) == (1, 2, 0)


@on(FAKE)
async def test_an_idle_key_of_which_something_was_not_shown_keeps_what_its_rules_keep_once_it_comes_to_life(
    server: FakeServer, tmp_path: Path
) -> None:
    """While the others are deleted, a producer writes to it."""
    idle = [RetentionPolicy(name="ten", keep_last=10, drop_idle_keys_after_days=30)]
    rows = await server.database.insert(series("a", range(40, 140)))
    with server.active():
        await plans.preview_into(tmp_path / "p", plans.Given(None, None), RetentionSettings(), idle, ())
    await add_older(server, "a", 200, latest=rows[0].id)
    fresh: list[Row] = []

    async def listen(step: Step, gone: int, _total: int) -> None:
        if step == "deleting" and gone and not fresh:
            fresh.extend(await server.database.insert(series("a", [0])))

    token = LISTENER.set(listen)
    report = await carry_out(server, load_plan(tmp_path / "p"), policies=idle)
    LISTENER.reset(token)
    assert {row.id for row in (*rows[:10], *fresh)} <= await server.database.ids()
    assert report.deleted == 90


@on(FAKE)
async def test_the_guard_builds_on_what_a_plan_knew_and_not_on_when_it_was_carried_out(
    server: FakeServer, tmp_path: Path
) -> None:
    """What has become stale in between goes the next night, which is no reason to refuse."""
    await server.database.insert(series("a", [(hour + 0.5) / 24 for hour in range(24)]))
    ten = [RetentionPolicy(name="ten", keep_last=10)]
    await server.cleanup(ten, mode="delete")
    with server.active():
        await plans.preview_into(tmp_path / "p", plans.Given(None, None), RetentionSettings(), ten, ())
    server.pass_time(timedelta(hours=21))
    await server.database.insert(series("a", [(hour + 0.5) / 24 for hour in range(21)]))
    assert (await carry_out(server, load_plan(tmp_path / "p"), policies=ten)).deleted == 0
    night = await server.cleanup(ten, mode="delete", refuse_above_percent=50)
    assert (night.outcome, night.deleted) == ("completed", 21)


@on(FAKE)
async def test_a_plan_moves_no_other_run_on(server: FakeServer, tmp_path: Path) -> None:
    """The next night begins where the last one stopped."""
    one = [RetentionPolicy(name="one", keep_last=1)]
    await server.database.insert([row for key in "abz" for row in series(key, [1, 2, 3])])
    assert (await server.cleanup(one, mode="delete", max_deletions=2)).stopped_at == "b"
    with server.active():
        await plans.preview_into(tmp_path / "p", plans.Given(None, None), RetentionSettings(), one, ())
    await carry_out(server, load_plan(tmp_path / "p"), policies=one)
    await server.database.insert([row for key in "ab" for row in series(key, [0.1, 0.2])])
    night = await server.cleanup(one, mode="delete", max_deletions=1)
    assert [key.key for key in night.key_reports if key.deleted] == ["b"]


@on(*BY_FAKE)
async def test_a_plan_for_some_keys_is_carried_out_for_these(server: Server | FakeServer, tmp_path: Path) -> None:
    """Its selection is in the file."""
    await server.database.insert([*series("a", [1, 2, 3]), *series("b", [1, 2, 3])])
    plan = await preview(server, tmp_path / "plan.json", "a")
    report = await carry_out(server, plan)
    assert (report.scope, report.deleted, report.differences) == (["a"], 1, [])


@on(FAKE)
async def test_a_plan_is_refused_where_it_was_not_made_for(server: FakeServer, tmp_path: Path) -> None:
    """Another server, other policies, too old, or from the future: in words, and nothing goes."""
    await server.database.insert(series("a", [1, 2, 3, 4]))
    plan = await preview(server, tmp_path / "plan.json")

    async def refusals(plan: PlanFile, hours: float = 24, **fields: object) -> list[str]:
        with pytest.raises(CleanupFailed) as caught:
            await carry_out(server, plan, hours, [KEEP_2.model_copy(update=fields), ANYTHING])
        assert caught.value.report.outcome == "refused"
        return caught.value.report.refusals

    assert await refusals(plan.model_copy(update={"server": "http://other/api"})) == [
        f"the plan is for the server http://other/api, and this is {plan.server}"
    ]
    assert await refusals(plan, keep_last=3) == ['the plan was made by other policies: policy "two": keep_last = 3, was 2']
    assert await refusals(plan, name="three") == [
        'the plan was made by other policies: policy "three" is new; policy "two" is gone'
    ]
    assert (
        "in the future by the clock of the server"
        in (await refusals(plan.model_copy(update={"now": plan.now + timedelta(hours=1)})))[0]
    )
    server.pass_time(timedelta(hours=2))
    assert "is 2 hours old, more than the 1 that are allowed" in (await refusals(plan, hours=1))[0]
    assert len(await server.database.ids()) == 4
    assert (await carry_out(server, plan)).deleted == 2


@on(FAKE)
async def test_the_guard_holds_for_a_plan_too(server: FakeServer, tmp_path: Path) -> None:
    """What a person has seen may be a mistake all the same."""
    await server.database.insert(series("a", [1, 2, 3, 4]))
    plan = await preview(server, tmp_path / "plan.json")
    with carrying_out(plan), pytest.raises(CleanupFailed, match="refuse_above_percent"):
        await server.cleanup(POLICIES, mode="delete", refuse_above_percent=10)
    assert len(await server.database.ids()) == 4


PLAN = '{"server": "s", "now": "2026-11-28T00:00Z", "scope": [], "planned": [], "policies": [%s]}'


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is no plan that `preview --out` has written"),
        ("[]", "is no plan"),
        ('{"format": "artifact-retention plan 2"}', "is no plan"),
        (PLAN % "{}", "has no name"),
        (PLAN % '{"name": ["x"]}', "has no name"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_plan_is_bad_usage(tmp_path: Path, content: str | None, problem: str) -> None:
    """And is named."""
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=problem) as caught:
        load_plan(file)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["delete", "--plan", "plan.json", "--key", "a"],
        ["delete", "--plan", "plan.json", "--max-age", "0"],
        ["delete", "--plan", "plan.json", "--max-age", "nan"],
        ["delete", "--plan", "none.json"],
    ],
)
def test_flags_that_contradict_the_plan_are_bad_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Its keys and rules are those of the preview."""
    monkeypatch.chdir(tmp_path)
    plan = PlanFile(server="s", now="2026-11-28T00:00Z", scope=[], policies=[], planned=[])  # type: ignore[arg-type]
    Path("plan.json").write_text(plan.model_dump_json(), encoding="utf-8")
    assert main(arguments) == 2
    assert "--key" in (said := capsys.readouterr().err) or "--max-age" in said or "none.json: cannot be read" in said


@pytest.mark.thorough
@on(SQLITE_API)
async def test_the_command_line_carries_out_what_it_has_previewed(server: Server, tmp_path: Path) -> None:
    """With rules that stand in for the configured ones, which need not be given twice."""
    rows = await server.database.insert(series("a", [1, 2, 3]))
    (tmp_path / "retention.toml").write_text('[[policies]]\nname = "all"\nkeep_last = 10\n', encoding="utf-8")

    def command(*arguments: str) -> tuple[int, dict[str, Any]]:
        return run_command(server, tmp_path, *arguments)

    assert command("preview", "--key", "a", "--keep-last", "2", "--out", "plan.json")[1]["planned"] == 1
    code, report = command("delete", "--plan", "plan.json")
    assert (code, report["deleted"], report["differences"]) == (0, 1, [])
    assert await server.database.ids() == {rows[0].id, rows[1].id}
    text = (tmp_path / "plan.json").read_text(encoding="utf-8")
    (tmp_path / "plan.json").write_text(text.replace("127.0.0.1", "127.0.0.2"), encoding="utf-8")
    code, report = command("delete", "--plan", "plan.json")
    assert (code, report["outcome"]) == (3, "refused")
    assert command("preview", "--out", "nowhere/plan.json")[0] == 2


def run_command(server: Server, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run `artifact-retention` with `--json` in a process of its own."""
    done = subprocess.run(
        [COMMAND, *arguments, "--json"], cwd=folder, env=server.local.environment, check=False, capture_output=True, text=True
    )
    return done.returncode, json.loads(done.stdout)
