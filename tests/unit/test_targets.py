"""The targets of the configuration: each mistake is one message that names the target and quotes no secret."""

import json
import re
import socket
from pathlib import Path

import pytest
from prefect_artifact_retention.flows import roll_call
from prefect_artifact_retention.flows.settings import load_settings
from prefect_artifact_retention.flows.targets import load_targets
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy
from prefect_artifact_retention.stores.destination import Destination
from prefect_artifact_retention.tasks.report import scope_digest
from prefect_artifact_retention.tasks.sweep import SweepReport, TargetRow, headline, outcome_message

TARGET = 'name = "lab"\napi_url = "https://lab.example.com/api"\n'
SECRET = "pnu_Secret-1"  # noqa: S105 - one of nobody


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problem(*tables: str, file: str = "") -> str:
    """What is wrong with a configuration of these targets."""
    text = file or "".join(f"[[targets]]\n{table}\n" for table in tables)
    Path("retention.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert not re.search("pnu_Secret", f"{caught.value} {caught.value.__cause__}")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).removeprefix("retention.toml: ")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (f'{TARGET}api_key = "{SECRET}"', 'target "lab": api_key is a secret'),
        (f'{TARGET}database_url = "{SECRET}"', "use database_block"),
        (f'{TARGET}api_key_variable = "{SECRET}"', "api_key_variable must be the name of a variable, and no secret itself"),
        (f'{TARGET}api_key_variable = "pnu_Secret1"', "api_key_variable must be the name of a variable, and no secret itself"),
        (f'{TARGET}policies = [{{name = "a", keep_last = 1, api_key = "{SECRET}"}}]', "api_key is a secret"),
        (f'{TARGET}auth_string_block = "user:{SECRET}"', "auth_string_block must be the name of a block"),
        (f'name = "lab"\napi_url = "https://user:{SECRET}@lab/api"', "api_url has credentials in it"),
        (f'name = "lab"\napi_url = "https://lab/api?key={SECRET}"', "api_url has a query"),
        ('name = "lab"\napi_url = "lab.example.com/api"', "api_url must be http://HOST/api or https://HOST/api"),
        (f'name = "{SECRET}"\napi_url = "https://lab/api"', "target number 1: name must have"),
        ('api_url = "https://lab/api"', "target number 1: name is missing"),
        ('name = "lab"', 'target "lab": api_url is missing'),
        (f'{TARGET}api_key_variable = "A"\nauth_string_block = "b"', "api_key_variable cannot stand beside auth_string_block"),
        (f'{TARGET}colour = "{SECRET}"', "unknown field colour; known are name, api_url"),
        (f"{TARGET}policies = [{{keep_last = 1}}]", 'target "lab": policy number 1: name is missing'),
        (f'{TARGET}policies = "{SECRET}"', 'target "lab": policies is no list of policies'),
    ],
)
def test_a_target_that_cannot_be_meant_is_refused_by_name(table: str, message: str) -> None:
    """Everywhere, for whoever reads the file has to correct it; and without what was written."""
    assert message in problem(table)


def test_tables_that_are_none_and_names_that_stand_twice_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the environment."""
    assert problem(TARGET, TARGET) == "two targets have name = lab"
    assert problem(file=f'[targets]\nname = "lab"\napi_key = "{SECRET}"\n') == "targets is no list of tables"
    assert problem(file=f'targets = ["{SECRET}"]\n') == "target number 1: is no table of fields"
    monkeypatch.setenv("ARTIFACT_RETENTION_TARGETS", f"[{SECRET}")
    assert problem(file=" ") == "ARTIFACT_RETENTION_TARGETS: is no JSON list of targets"
    monkeypatch.setenv("ARTIFACT_RETENTION_TARGETS", json.dumps([{"name": "lab", "api_url": SECRET}]))
    assert problem(file=" ").startswith('ARTIFACT_RETENTION_TARGETS: target "lab": api_url must be')


def test_the_settings_of_a_target_have_its_policies_and_nothing_of_the_own_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database belongs to one server: that of the configuration to the home."""
    monkeypatch.setenv("ARTIFACT_RETENTION_DATABASE_URL", "postgresql://home/prefect")
    home = '[[policies]]\nname = "home"\nkeep_last = 3\n'
    own = '[[targets.policies]]\nname = "own"\nkeep_last = 1\n'
    other = TARGET.replace("lab", "other")
    Path("retention.toml").write_text(
        f'{home}[[targets]]\n{TARGET}database_block = "lab-db"\n{own}[[targets]]\n{other}', encoding="utf-8"
    )
    settings = load_settings()
    lab, plain = settings.at_target("lab"), settings.at_target("other")
    assert lab.policies == [RetentionPolicy(name="own", keep_last=1)]
    assert lab.source("policies") == 'retention.toml: target "lab"'
    assert (lab.database_block, lab.database_url.get_secret_value()) == ("lab-db", "")
    assert (plain.policies, plain.source("policies")) == (settings.policies, "retention.toml")
    assert (plain.database_block, plain.database_url.get_secret_value()) == ("", "")
    assert settings.at_target("") is settings
    with pytest.raises(ConfigurationError, match="there is no target 'lap'; known are lab, other"):
        settings.at_target("lap")


@pytest.mark.parametrize(
    ("api_url", "ui_url"),
    [
        ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200"),
        ("https://example.com/prefect/api/", "https://example.com/prefect"),
        (
            "https://api.prefect.cloud/api/accounts/a/workspaces/b",
            "https://app.prefect.cloud/account/a/workspace/b",
        ),
    ],
)
def test_the_user_interface_of_a_target_is_known_by_its_address(api_url: str, ui_url: str) -> None:
    """As Prefect infers it."""
    assert Destination("lab", api_url).ui_url == ui_url


async def test_a_target_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection, and never answers."""
    monkeypatch.setattr(roll_call, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        monkeypatch.setenv("ARTIFACT_RETENTION_TARGETS", json.dumps([{"name": "lab", "api_url": address}]))
        (answer,) = await roll_call.call(load_settings())
    assert (answer.answers, answer.remark) == (False, "no answer within 0.5 seconds")


def test_the_scope_of_a_run_on_a_target_is_another_one() -> None:
    """So that its success puts off no alarm of the home."""
    scopes = scope_digest([]), scope_digest([], "lab"), scope_digest([], "other"), scope_digest(["lab"])
    assert len({*scopes}) == 4


def test_a_sweep_ends_as_the_worst_of_its_targets_and_names_those_that_failed() -> None:
    """One line each."""
    rows = [
        TargetRow(name="a", outcome="unfinished", deleted=2),
        TargetRow(name="b", outcome="failed", causes=["it is down", "another"]),
        TargetRow(name="c", outcome="refused", causes=["too much"]),
    ]
    report = SweepReport.model_validate({"mode": "delete", "now": "2026-11-28T00:00:00Z", "targets": rows})
    assert report.outcome == "failed"
    assert headline(report) == "Deleted 2 versions (0 B) on 1 of 3 targets; 1 failed; 1 refused; 1 unfinished"
    assert outcome_message(report).splitlines()[1:] == ["b: failed: it is down", "c: refused: too much"]


def test_a_target_that_was_skipped_does_not_make_a_sweep_that_has_cleaned_up_the_others_a_skipped_one() -> None:
    """Or the alarm that waits for a success would go off each night that a target has a cleanup of its own."""
    done, skipped = TargetRow(name="a", outcome="completed"), TargetRow(name="b", outcome="skipped")
    for rows, outcome in (([done, skipped], "completed"), ([skipped], "skipped")):
        report = SweepReport.model_validate({"mode": "delete", "now": "2026-11-28T00:00:00Z", "targets": rows})
        assert report.outcome == outcome


@pytest.mark.parametrize("other", ["https://lab.example.com/api/", "https://LAB.example.com:443/api"])
def test_one_server_is_one_target(other: str) -> None:
    """By two names, it would have two lists of policies, and keep only what both keep."""
    tables = [{"name": "lab", "api_url": "https://lab.example.com/api"}, {"name": "again", "api_url": other}]
    with pytest.raises(ConfigurationError, match='target "again": has the api_url of target "lab"'):
        load_targets(tables, source="retention.toml")
    (*_, kept) = load_targets([tables[0], tables[1] | {"api_url": "http://lab.example.com/api"}], source="retention.toml")
    assert kept.name == "again"
