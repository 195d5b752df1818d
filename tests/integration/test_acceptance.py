"""Changed policies are not applied unattended: until a person has applied or accepted them, a scheduled run is refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from database import series
from fake import FakeServer
from prefect.client.schemas.objects import CreatedBy, FlowRun
from prefect.context import FlowRunContext
from prefect_artifact_retention.flows.acceptance import accept
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.policies.acceptance import VARIABLE_PREFIX, Acceptance, read_acceptance
from prefect_artifact_retention.policies.meaning import meaning
from prefect_artifact_retention.tasks.acceptance import is_attended
from prefect_artifact_retention.tasks.report import CleanupFailed, CleanupReport
from servers import BY_FAKE, FAKE, POSTGRESQL_API, SQLITE_API, Server, on, thorough

NOW = datetime(2026, 11, 28, tzinfo=UTC)
REQUIRED: dict[str, Any] = {"mode": "delete", "require_accepted_policies": True}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a configuration."""
    monkeypatch.chdir(tmp_path)
    configure(3)
    return tmp_path


def configure(keep_last: int, more: str = "") -> None:
    """Change the policies."""
    Path("retention.toml").write_text(f'[[policies]]\nname = "all"\nkeep_last = {keep_last}\n{more}', encoding="utf-8")


async def nightly(server: Server | FakeServer) -> CleanupReport:
    """A scheduled run."""
    return await server.cleanup(**REQUIRED, attended=False)


async def refusals(server: Server | FakeServer) -> list[str]:
    """Why a scheduled run is refused; nothing goes."""
    before = await server.database.ids()
    with pytest.raises(CleanupFailed) as caught:
        await nightly(server)
    assert await server.database.ids() == before
    return caught.value.report.refusals


@on(*BY_FAKE)
async def test_the_first_scheduled_run_goes_on_and_so_does_one_with_the_same_policies(server: Server | FakeServer) -> None:
    """Also with a comment more, and after a release with new fields, which have their defaults."""
    await server.database.insert(series("a", [1, 2, 3, 4, 5]))
    assert (await nightly(server)).deleted == 2
    configure(3, 'keep_daily = 0 # off\nmatch_keys = ["*"]\n')
    assert (await nightly(server)).outcome == "completed"


@on(FAKE, thorough(SQLITE_API), thorough(POSTGRESQL_API))
async def test_a_scheduled_run_with_other_policies_is_refused_until_a_person_has_run_it(server: Server | FakeServer) -> None:
    """With how they differ; a preview by a person does not count, nor a run over some keys."""
    await server.database.insert(series("a", [1, 2, 3, 4, 5]))
    await nightly(server)
    configure(1)
    first, *changes = await refusals(server)
    assert "no person has applied or accepted them" in first
    assert "artifact-retention policies accept" in first
    assert changes == ['policy "all": keep_last = 1, was 3']
    await server.cleanup(mode="preview")
    await server.cleanup([RetentionPolicy(name="all", keep_last=1)], mode="delete", keys=["b"])
    await server.cleanup(mode="delete", keys=["nothing-*"])
    await server.cleanup(mode="delete", keys=["nothing-*"], attended=False)
    assert await refusals(server)
    assert (await server.cleanup(**REQUIRED)).deleted == 2
    assert (await nightly(server)).outcome == "completed"


@on(FAKE)
async def test_accepted_policies_are_applied_and_so_are_those_that_were_applied_before(server: FakeServer) -> None:
    """Whoever goes back to policies of before needs nobody; and the next difference counts from these."""
    await nightly(server)
    configure(2)
    with server.active():
        record, _source = await accept(load_settings(), "ada")
    assert (record.by, read_acceptance(record.variable, record.value())) == ("ada", record)
    server.pass_time(timedelta(days=1))
    assert (await nightly(server)).outcome == "completed"
    configure(3)
    server.pass_time(timedelta(days=1))
    assert (await nightly(server)).outcome == "completed"
    configure(1)
    assert (await refusals(server))[1:] == ['policy "all": keep_last = 1, was 3']


@on(FAKE)
async def test_what_a_run_without_the_setting_applies_counts_as_accepted(server: FakeServer) -> None:
    """So that to switch it on stops nothing that was going on."""
    await server.cleanup(mode="delete", attended=False)
    configure(2)
    await server.cleanup(mode="delete", attended=False)
    assert (await nightly(server)).outcome == "completed"


@on(FAKE)
async def test_what_a_refused_run_would_have_applied_is_not_accepted(server: FakeServer) -> None:
    """Neither by this nor by another guard."""
    await server.database.insert(series("a", [1, 2, 3, 4, 5]))
    await server.cleanup(mode="delete")
    configure(1)
    with pytest.raises(CleanupFailed):
        await server.cleanup(mode="delete", refuse_above_percent=1)
    assert await refusals(server)


@on(FAKE)
@pytest.mark.parametrize("value", ["oops", {"format": 2}])
async def test_a_record_that_cannot_be_read_is_not_taken_for_none(server: FakeServer, value: object) -> None:
    """Nobody knows what was applied, so a person has to say it."""
    await server.database.insert(series("a", [1, 2, 3, 4, 5]))
    await nightly(server)
    (name,) = (each for each in server.database.variables if each.startswith(VARIABLE_PREFIX))
    server.database.variables[name]["value"] = value
    assert f"can be read ({name})" in (await refusals(server))[0]
    await server.cleanup(**REQUIRED)
    assert (await nightly(server)).outcome == "completed"


@on(FAKE)
async def test_a_scheduled_run_over_some_keys_by_policies_of_its_own_is_not_refused(server: FakeServer) -> None:
    """They change nothing that is configured; over some keys by what is configured, it is refused."""
    await server.database.insert(series("a", [1, 2, 3, 4, 5]))
    await nightly(server)
    own = [RetentionPolicy(name="own", keep_last=2)]
    assert (await server.cleanup(own, **REQUIRED, keys=["a"], attended=False)).deleted == 1
    configure(1)
    with pytest.raises(CleanupFailed, match="policies have changed"):
        await server.cleanup(**REQUIRED, keys=["a"], attended=False)


def test_policies_too_many_for_a_variable_are_known_by_their_digest() -> None:
    """The record still accepts them."""
    many = meaning([RetentionPolicy(name=f"p{uuid4()}", match_keys=[f"k{uuid4()}"], keep_last=1) for _ in range(200)])
    record = Acceptance.of(many, NOW, "ada")
    assert record.value()["policies"] == ""
    read = read_acceptance(record.variable, record.value())
    assert read is not None
    assert (read.digest, read.policies) == (record.digest, None)
    few = Acceptance.of(many[:30], NOW, "ada")
    assert read_acceptance(few.variable, few.value()) == few
    assert len(str(few.value())) < 5_000


DATED = {"format": 1, "at": "2026-01-01T00:00Z", "by": "y"}


@pytest.mark.parametrize("value", [None, "yes", {}, DATED | {"at": "x"}, DATED | {"policies": "eJyrVgIAAHkAeg"}])
def test_a_variable_that_cannot_be_read_accepts_nothing(value: object) -> None:
    """Whoever has written it."""
    assert read_acceptance(f"{VARIABLE_PREFIX}0123456789ab", value) is None


@pytest.mark.parametrize(
    ("fields", "attended"),
    [
        ({}, True),
        ({"auto_scheduled": True}, False),
        ({"parent_task_run_id": uuid4()}, False),
        ({"created_by": CreatedBy(type="SCHEDULE")}, False),
        ({"created_by": CreatedBy(type="AUTOMATION")}, False),
        ({"created_by": CreatedBy(type="USER", display_value="ada")}, True),
    ],
)
def test_a_run_is_attended_if_a_person_has_started_it(fields: dict[str, object], attended: bool) -> None:  # noqa: FBT001
    """As the server tells of its flow run."""
    run = FlowRun(flow_id=uuid4(), **fields)  # type: ignore[arg-type]
    with FlowRunContext.model_construct(flow_run=run):
        assert is_attended() == attended


def test_a_run_without_prefect_is_attended() -> None:
    """There is nobody else."""
    assert is_attended()
