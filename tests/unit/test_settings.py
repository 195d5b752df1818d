"""Settings: which source wins, every mistake with its message, and which policies a run gets."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from builders import policy
from prefect.exceptions import ParameterTypeError
from prefect_artifact_retention.flows.cleanup import artifact_cleanup
from prefect_artifact_retention.flows.settings import (
    DEPLOY_PREFIX,
    RetentionSettings,
    find_variables,
    load_settings,
    resolve_policies,
)
from prefect_artifact_retention.policies import ConfigurationError
from prefect_artifact_retention.policies.loading import OWN_POLICY, PREVIEW_POLICY
from pydantic import SecretStr

MAX_DELETIONS = "ARTIFACT_RETENTION_MAX_DELETIONS"
POLICIES = "ARTIFACT_RETENTION_POLICIES"
CONFIG = "ARTIFACT_RETENTION_CONFIG"
TOML_POLICY = '[[policies]]\nname = "reports"\nkeep_last = 5\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, and an environment that is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    with patch.dict(os.environ):
        yield tmp_path


def write(text: str, name: str = "retention.toml") -> Path:
    """Write a file in the working directory."""
    file = Path(name)
    file.write_text(text, encoding="utf-8")
    return file


def refusal(config: Path | None = None) -> str:
    """The message with which the settings are refused."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(config)
    return str(caught.value)


# --- which source wins


def test_without_any_source_nothing_is_limited_and_no_policy_is_set() -> None:
    """Defaults: no policy, no limit, 25 prune tasks."""
    settings = load_settings()
    assert settings.model_dump() == {
        "policies": [],
        "max_deletions": 0,
        "time_budget_minutes": 0,
        "refuse_above_percent": 0,
        "max_task_runs": 25,
        "max_requests_per_minute": 0,
        "database_url": SecretStr(""),
        "database_block": "",
        "max_deletions_per_second": 0,
        "reclaim": "none",
        "archive_url": "",
        "archive_block": "",
        "archive_payloads": True,
        "archive_keep_days": 0,
        "ledger_keep_days": 0,
        "max_log_lines": 0,
        "approval_hours": 24,
        "require_accepted_policies": False,
        "targets": [],
        "allow_ephemeral_server": False,
        "purge_events": False,
    }
    assert settings.source("max_deletions") == "default"


def test_retention_toml_in_the_working_directory_is_read() -> None:
    """The file needs no flag."""
    write("max_deletions = 3\nrefuse_above_percent = 12.5\n" + TOML_POLICY)
    settings = load_settings()
    assert (settings.max_deletions, settings.refuse_above_percent) == (3, 12.5)
    assert settings.policies == [{"name": "reports", "keep_last": 5}]
    assert settings.source("max_deletions") == "retention.toml"


def test_dotenv_goes_before_the_file() -> None:
    """What .env sets wins; what it does not set is still the file's."""
    write("max_deletions = 3\nmax_task_runs = 4\n")
    write(f"{MAX_DELETIONS}=2\n", ".env")
    settings = load_settings()
    assert (settings.max_deletions, settings.max_task_runs) == (2, 4)
    assert settings.source("max_deletions") == f".env: {MAX_DELETIONS}"
    assert settings.source("max_task_runs") == "retention.toml"


def test_the_environment_goes_before_dotenv_and_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """All three set the same field: the variable wins."""
    write("max_deletions = 3\n")
    write(f"{MAX_DELETIONS}=2\n", ".env")
    monkeypatch.setenv(MAX_DELETIONS, "1")
    settings = load_settings()
    assert settings.max_deletions == 1
    assert settings.source("max_deletions") == MAX_DELETIONS


def test_policies_of_the_environment_replace_those_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of policies are not merged."""
    write(TOML_POLICY)
    monkeypatch.setenv(POLICIES, '[{"name": "env", "keep_daily": 7}]')
    settings = load_settings()
    assert settings.policies == [{"name": "env", "keep_daily": 7}]
    assert settings.source("policies") == POLICIES


def test_the_variable_names_a_file_instead_of_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """ARTIFACT_RETENTION_CONFIG is read, retention.toml is not."""
    write("max_deletions = 3\nmax_task_runs = 4\n")
    write("max_deletions = 7\n", "other.toml")
    monkeypatch.setenv(CONFIG, "other.toml")
    settings = load_settings()
    assert (settings.max_deletions, settings.max_task_runs) == (7, 25)
    assert settings.source("max_deletions") == "other.toml"


def test_a_dotenv_names_the_file_too_and_the_environment_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a run would go by other policies than those that were meant."""
    for name, number in (("retention.toml", 3), ("dotenv.toml", 7), ("variable.toml", 8)):
        write(f"max_deletions = {number}\n", name)
    write(f"{CONFIG}=dotenv.toml\n", ".env")
    assert load_settings().max_deletions == 7
    monkeypatch.setenv(CONFIG, "variable.toml")
    assert load_settings().max_deletions == 8


def test_the_flag_goes_before_the_variable_that_names_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """--config wins over ARTIFACT_RETENTION_CONFIG."""
    write("max_deletions = 7\n", "variable.toml")
    flag = write("max_deletions = 8\n", "flag.toml")
    monkeypatch.setenv(CONFIG, "variable.toml")
    assert load_settings(flag).max_deletions == 8


def test_the_databases_address_is_read_from_the_environment_and_never_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a secret: no value of it stands in the settings' text, nor in the refusal."""
    monkeypatch.setenv("ARTIFACT_RETENTION_DATABASE_URL", "postgresql://user:s3cret@host/db")
    settings = load_settings()
    assert settings.database_url.get_secret_value() == "postgresql://user:s3cret@host/db"
    assert "s3cret" not in repr(settings)
    write('database_url = "postgresql://user:s3cret@host/db"\n')
    message = refusal()
    assert message.startswith("retention.toml: database_url is a secret")
    assert "ARTIFACT_RETENTION_DATABASE_URL" in message
    assert "s3cret" not in message


def test_a_dotenv_with_foreign_variables_is_fine() -> None:
    """Only names that begin with ARTIFACT_RETENTION_ are ours to judge."""
    write(f"PREFECT_API_URL=http://127.0.0.1:4200/api\nDATABASE=x\n{MAX_DELETIONS}=2\n", ".env")
    assert load_settings().max_deletions == 2


def test_foreign_variables_of_the_environment_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own variables are none of ours."""
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "WARNING")
    assert load_settings().max_deletions == 0


# --- mistakes


def test_an_unknown_field_of_the_file_is_refused_with_what_was_meant() -> None:
    """A misspelt limit that did not apply would be worse than none."""
    write("max_deletion = 3\n")
    assert refusal() == "retention.toml: unknown field max_deletion; did you mean max_deletions?"


def test_a_field_that_resembles_none_is_refused_with_the_known_ones() -> None:
    """Without a hint, the message lists what there is."""
    write("zzz = 3\n")
    message = refusal()
    assert message.startswith("retention.toml: unknown field zzz; known are policies, max_deletions, ")


def test_a_misspelt_variable_is_refused_with_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the environment."""
    monkeypatch.setenv("ARTIFACT_RETENTION_MAX_DELETION", "3")
    assert refusal() == f"environment: unknown field ARTIFACT_RETENTION_MAX_DELETION; did you mean {MAX_DELETIONS}?"


def test_a_misspelt_variable_of_dotenv_is_refused_with_what_was_meant() -> None:
    """The same for .env."""
    write("ARTIFACT_RETENTION_MAX_DELETION=3\n", ".env")
    assert refusal() == f".env: unknown field ARTIFACT_RETENTION_MAX_DELETION; did you mean {MAX_DELETIONS}?"


def test_a_file_that_is_no_toml_is_refused() -> None:
    """With the parser's own place of the mistake."""
    write("max_deletions = \n")
    message = refusal()
    assert message.startswith("retention.toml: does not parse as TOML: ")
    assert "line 1" in message


def test_a_file_that_is_no_text_is_refused() -> None:
    """Bytes that are no UTF-8 are no TOML."""
    Path("retention.toml").write_bytes(b"\xff\xfe")
    assert refusal().startswith("retention.toml: does not parse as TOML: ")


def test_a_named_file_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without its configuration is not the run that was meant; by flag and by variable alike."""
    assert refusal(Path("missing.toml")) == "missing.toml: cannot be read: No such file or directory"
    monkeypatch.setenv(CONFIG, "gone.toml")
    assert refusal() == "gone.toml: cannot be read: No such file or directory"


MISTAKES = [
    # TOML, what the message says after `retention.toml: `
    ("max_deletions = -1", "max_deletions = -1: input should be greater than or equal to 0"),
    ("max_deletions = true", "max_deletions = True: must be a number, not true or false"),
    ("max_deletions = 10000001", "max_deletions = 10000001: input should be less than or equal to 10000000"),
    ("max_deletions = 1.5", "max_deletions = 1.5: input should be a valid integer"),
    ('max_deletions = "many"', "max_deletions = 'many': input should be a valid integer"),
    ("time_budget_minutes = -0.1", "time_budget_minutes = -0.1: input should be greater than or equal to 0"),
    ("time_budget_minutes = false", "time_budget_minutes = False: must be a number, not true or false"),
    ("time_budget_minutes = nan", "time_budget_minutes = nan: input should be"),
    ("time_budget_minutes = inf", "time_budget_minutes = inf: input should be"),
    ("refuse_above_percent = 101", "refuse_above_percent = 101: input should be less than or equal to 100"),
    ("max_task_runs = 0", "max_task_runs = 0: input should be greater than or equal to 1"),
    ("max_requests_per_minute = -5", "max_requests_per_minute = -5: input should be greater than or equal to 0"),
    ('policies = "all"', "policies = 'all': input should be a valid list"),
]


@pytest.mark.parametrize(("toml", "message"), MISTAKES, ids=[toml for toml, _ in MISTAKES])
def test_a_value_that_cannot_be_meant_is_refused(toml: str, message: str) -> None:
    """The message names the file, the field and the value."""
    write(toml + "\n")
    assert refusal().startswith(f"retention.toml: {message}")


def test_a_value_of_the_environment_that_cannot_be_meant_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is the variable, though the file sets the field as well."""
    write("max_deletions = 3\n")
    monkeypatch.setenv(MAX_DELETIONS, "-4")
    message = refusal()
    assert message.startswith(f"{MAX_DELETIONS}: max_deletions = '-4': input should be greater than or equal to 0")


def test_a_value_of_dotenv_that_cannot_be_meant_is_refused_by_its_name() -> None:
    """The source is .env and the variable in it."""
    write(f"{MAX_DELETIONS}=many\n", ".env")
    assert refusal().startswith(f".env: {MAX_DELETIONS}: max_deletions = 'many': input should be a valid integer")


def test_all_mistakes_are_named_at_once() -> None:
    """One line for each."""
    write("max_deletions = -1\nmax_task_runs = 0\n")
    fields = [line.split(" = ")[0] for line in refusal().splitlines()]
    assert fields == ["retention.toml: max_deletions", "retention.toml: max_task_runs"]


@pytest.mark.parametrize("text", ["[{", "keep_last = 3"])
def test_policies_that_are_no_json_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable."""
    monkeypatch.setenv(POLICIES, text)
    assert refusal() == f"{POLICIES}: is no JSON list of policies"


@pytest.mark.parametrize("text", ['{"name": "x"}', '"x"', "3"])
def test_policies_that_are_json_but_no_list_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One policy alone still is a list of one."""
    monkeypatch.setenv(POLICIES, text)
    message = refusal()
    assert message.startswith(f"{POLICIES}: policies = ")
    assert "should be a valid list" in message


# --- which policies a run gets


def test_a_preview_without_any_policy_gets_the_built_in_one() -> None:
    """So that the first thing a user tries shows something."""
    assert resolve_policies((), load_settings(), "preview") == ((OWN_POLICY, PREVIEW_POLICY), "built in, for previews only")


def test_a_deletion_without_any_policy_is_refused() -> None:
    """Nothing is ever deleted by a rule that nobody wrote."""
    with pytest.raises(ConfigurationError, match="no policy is configured, and nothing is deleted without one"):
        resolve_policies((), load_settings(), "delete")


@pytest.mark.parametrize("mode", ["preview", "delete"])
def test_configured_policies_serve_both_modes_after_our_own(mode: str) -> None:
    """The package's own policy goes before them; the source is where they stand."""
    write(TOML_POLICY)
    policies, source = resolve_policies((), load_settings(), mode)  # type: ignore[arg-type]
    assert policies == (OWN_POLICY, policy(name="reports", keep_last=5))
    assert source == "retention.toml"


def test_given_policies_go_before_the_configured_ones() -> None:
    """A flow parameter replaces the configuration, and is not merged with it."""
    write(TOML_POLICY)
    given = policy(keep_daily=3)
    assert resolve_policies((given,), load_settings(), "delete") == ((OWN_POLICY, given), "parameters of this run")


def test_a_configured_keep_all_policy_shields_its_keys_from_policies_given_for_one_run(folder: Path) -> None:
    """Whoever fills in the run form does not know of them."""
    toml = '[[policies]]\nname = "default"\nkeep_last = 9\n'
    audit = '[[policies]]\nname = "audit"\nmatch_keys = ["audit-*"]\nkeep_all = true\n'
    (folder / "retention.toml").write_text(audit + toml, encoding="utf-8")
    given = policy(name="mine", keep_last=3)
    shield = policy(name="audit", match_keys=["audit-*"], keep_all=True)
    assert resolve_policies((given,), load_settings(), "delete")[0] == (OWN_POLICY, shield, given)
    assert resolve_policies((shield, given), load_settings(), "delete")[0] == (OWN_POLICY, shield, given)


def test_policies_of_a_variable_that_cannot_be_meant_are_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names source, policy, field and value."""
    monkeypatch.setenv(POLICIES, '[{"name": "reports", "keep_last": -1}]')
    with pytest.raises(ConfigurationError) as caught:
        resolve_policies((), load_settings(), "delete")
    assert str(caught.value).startswith(f'{POLICIES}: policy "reports": keep_last = -1: ')


def test_a_policy_for_our_own_keys_only_is_refused() -> None:
    """It could never apply, because the built-in one takes these keys first."""
    settings = RetentionSettings(policies=[{"name": "mine", "match_keys": ["artifact-retention-report"], "keep_last": 1}])
    with pytest.raises(
        ConfigurationError, match=r'policy "mine": .* can never apply: policy "artifact-retention \(built in\)"'
    ):
        resolve_policies((), settings, "delete")


def test_a_policy_for_our_own_keys_among_others_loads() -> None:
    """A wider glob is meant for the other keys."""
    given = policy(match_keys=["artifact-*"], keep_last=1)
    assert resolve_policies((given,), load_settings(), "delete")[0] == (OWN_POLICY, given)


def test_a_policy_with_the_name_of_our_own_is_refused() -> None:
    """Names are unique in a report."""
    with pytest.raises(ConfigurationError, match="parameters of this run: two policies have name"):
        resolve_policies((policy(name=OWN_POLICY.name, keep_last=1),), load_settings(), "delete")


@pytest.mark.parametrize("name", ["max_deletions", "max_task_runs", "max_requests_per_minute", "max_deletions_per_second"])
@pytest.mark.parametrize("number", ["0.4", "1.6", "nan"])
def test_a_number_that_is_not_whole_is_refused_from_every_source(
    name: str, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never rounded: a limit of 0.4 would become none."""
    write(f"{name} = {number}\n")
    assert f"retention.toml: {name} = " in refusal()
    monkeypatch.setenv(f"ARTIFACT_RETENTION_{name.upper()}", number)
    assert f"ARTIFACT_RETENTION_{name.upper()}: {name} = '{number}'" in refusal()


@pytest.mark.parametrize(
    "parameter",
    [{"max_deletions": 0.4}, {"max_task_runs": 1.6}, {"max_requests_per_minute": "0.4"}, {"max_deletions": True}],
    ids=str,
)
def test_a_flow_parameter_that_is_no_whole_number_is_refused(parameter: dict[str, object]) -> None:
    """Prefect checks it by the type of the flow's argument."""
    with pytest.raises(ParameterTypeError):
        artifact_cleanup.validate_parameters(parameter)


SERVICE = {
    # As Kubernetes 1.31 sets them in every pod of the namespace, for a Service with a named port.
    "SERVICE_HOST": "10.0.0.11",
    "SERVICE_PORT": "8080",
    "SERVICE_PORT_HTTP": "8080",
    "PORT": "tcp://10.0.0.11:8080",
    "PORT_8080_TCP": "tcp://10.0.0.11:8080",
    "PORT_8080_TCP_PROTO": "tcp",
    "PORT_8080_TCP_PORT": "8080",
    "PORT_8080_TCP_ADDR": "10.0.0.11",
}


@pytest.mark.parametrize("service", ["", "UI_", "DEPLOY_", "METRICS_EXPORTER_"])
def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_setting(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service called artifact-retention, or artifact-retention-ui, fails no run in its namespace."""
    for name, value in SERVICE.items():
        monkeypatch.setenv(f"ARTIFACT_RETENTION_{service}{name}", value)
    monkeypatch.setenv(MAX_DELETIONS, "3")
    assert load_settings().max_deletions == 3
    assert find_variables(DEPLOY_PREFIX, ["pool"]) == {".env: ": [], "": []}


@pytest.mark.parametrize("name", ["SERVICE", "SERVICE_HOSTS", "PORTS", "PORT_HTTP", "MAX_DELETION"])
def test_what_only_resembles_it_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting is still an error."""
    monkeypatch.setenv(f"ARTIFACT_RETENTION_{name}", "1")
    assert f"environment: unknown field ARTIFACT_RETENTION_{name}" in refusal()


def test_what_applies_to_the_database_only_is_told_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the source of each; a throttle that is believed in may be worse than none."""
    write('reclaim = "vacuum"\n')
    monkeypatch.setenv("ARTIFACT_RETENTION_MAX_DELETIONS_PER_SECOND", "5")
    why = "is ignored: it applies to deletions in the database, and neither database_url nor database_block is set"
    assert list(load_settings().without_effect()) == [
        f"ARTIFACT_RETENTION_MAX_DELETIONS_PER_SECOND: max_deletions_per_second = 5 {why}",
        f"retention.toml: reclaim = vacuum {why}",
    ]


@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_BLOCK"])
def test_with_a_database_nothing_is_ignored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever its address comes from; and without one, nothing is said of defaults."""
    assert not list(load_settings().without_effect())
    write('reclaim = "vacuum"\nmax_deletions_per_second = 5\n')
    monkeypatch.setenv(f"ARTIFACT_RETENTION_{name}", "x")
    assert not list(load_settings().without_effect())


def test_a_block_beside_an_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address goes first."""
    write('database_block = "prefect-database"\n')
    monkeypatch.setenv("ARTIFACT_RETENTION_DATABASE_URL", "sqlite:///x")
    told = list(load_settings().without_effect())
    assert told == ["retention.toml: database_block is ignored, because database_url is set"]


@pytest.mark.parametrize(
    ("configured", "parameter", "holds"), [(10, 50, 10), (50, 10, 10), (10, 0, 10), (0, 50, 50), (0, 0, 0), (10, 100, 10)]
)
def test_the_stricter_guard_holds(configured: float, parameter: float, holds: float) -> None:
    """That of a deployment does not undo what is configured; only the explicit parameter does."""
    write(f"refuse_above_percent = {configured}\nmax_deletions = 5\n")
    settings = load_settings()
    assert settings.with_parameters(refuse_above_percent=parameter).refuse_above_percent == holds
    assert settings.with_parameters(refuse_above_percent=parameter, ignore_guard=True).refuse_above_percent == 0


def test_other_parameters_override_the_settings() -> None:
    """In either direction; 0 means as configured."""
    write("max_deletions = 5\nmax_task_runs = 4\n")
    settings = load_settings().with_parameters(max_deletions=9, max_task_runs=0)
    assert (settings.max_deletions, settings.max_task_runs) == (9, 4)


def test_what_is_for_an_archive_has_no_effect_without_one() -> None:
    """And of two that name one, the address counts."""
    write("archive_keep_days = 30\nledger_keep_days = 0.5\n")
    why = "is ignored: it applies to an archive, and neither archive_url nor archive_block is set"
    assert list(load_settings().without_effect()) == [
        f"retention.toml: archive_keep_days = 30.0 {why}",
        f"retention.toml: ledger_keep_days = 0.5 {why}",
    ]
    write('archive_keep_days = 30\narchive_block = "archive"\n')
    assert not list(load_settings().without_effect())
    write('archive_url = "old"\narchive_block = "archive"\n')
    told = list(load_settings().without_effect())
    assert told == ["retention.toml: archive_block is ignored, because archive_url is set"]
