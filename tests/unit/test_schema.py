"""The schema of `retention.toml`, which editors complete and check it by."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft7Validator
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.flows.demo import POLICIES
from prefect_artifact_retention.flows.schema import configuration_schema
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import RetentionPolicy

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "retention.schema.json"
CONFIGURATION = (ROOT / "retention.toml").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def examples() -> list[str]:
    """Every configuration that this project shows: the shipped one with its examples in force, the demo's, the pages'."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    uncommented = re.sub(r"^# (?=\[\[\w+\]\]$|\w+ = )", "", CONFIGURATION, flags=re.MULTILINE)
    return [CONFIGURATION, uncommented, POLICIES, *re.findall(r"(?<=\n)```toml\n(.*?)(?<=\n)```\n", pages, flags=re.DOTALL)]


def problems(toml: str) -> list[str]:
    """What an editor would underline."""
    errors = Draft7Validator(configuration_schema()).iter_errors(tomllib.loads(toml))
    return [error.message for error in errors]


def policy(**fields: object) -> str:
    """A configuration with one policy that keeps the last three, and these fields besides."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in ({"name": "test", "keep_last": 3} | fields).items()]
    return "\n".join(["[[policies]]", *lines])


def test_the_schema_is_a_schema() -> None:
    """Of the draft that it names."""
    schema = configuration_schema()
    Draft7Validator.check_schema(schema)
    assert schema["$schema"] == Draft7Validator.META_SCHEMA["$schema"]


def test_the_committed_schema_is_that_of_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    """`make schema` renews it with what the command prints."""
    assert main(["policies", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(COMMITTED.read_text(encoding="utf-8"))


def test_the_shipped_configuration_names_the_schema() -> None:
    """In its first line, by a path beside it, as editors look for it."""
    directive, path = CONFIGURATION.splitlines()[0].split()
    assert (directive, ROOT / path) == ("#:schema", COMMITTED)


@pytest.mark.parametrize("toml", examples())
def test_every_configuration_that_is_shown_is_valid(toml: str) -> None:
    """An editor that underlines our own examples helps nobody."""
    assert problems(toml) == []


def test_it_has_every_setting_but_the_secret_and_every_field_of_a_policy() -> None:
    """Each with a description, which editors show."""
    schema = configuration_schema()
    settings, fields = schema["properties"], schema["definitions"]["RetentionPolicy"]["properties"]
    assert settings.keys() == RetentionSettings.model_fields.keys() - {"database_url"}
    assert fields.keys() == RetentionPolicy.model_fields.keys()
    assert [name for name, field in {**settings, **fields}.items() if not field.get("description")] == []


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        pytest.param("max_deletoins = 3", "max_deletoins", id="a misspelt setting"),
        pytest.param(policy(keep_lats=3), "keep_lats", id="a misspelt field"),
        pytest.param('database_url = "postgresql://u:p@db/prefect"', "database_url", id="the secret"),
        pytest.param(policy(keep_daily=-1), "-1", id="a negative number"),
        pytest.param(policy(keep_last=True), "True", id="a switch in place of a number"),
        pytest.param(policy(keep_last=2.5), "2.5", id="a fraction of a version"),
        pytest.param(policy(match_keys="report-*"), "report-*", id="a glob that is no list"),
        pytest.param('[[policies]]\nname = "test"', "not valid under any of", id="no keep rule"),
        pytest.param("[[policies]]\nkeep_last = 3", "name", id="no name"),
        pytest.param('reclaim = "full"', "full", id="an unknown choice"),
    ],
)
def test_what_the_command_line_refuses_is_underlined(toml: str, named: str) -> None:
    """One problem, and its message names the culprit."""
    (problem,) = problems(toml)
    assert named in problem


def test_fractions_of_days_and_whole_numbers_of_them_are_valid() -> None:
    """TOML tells 30 from 30.0; a person does not."""
    assert problems(policy(keep_within_days=30, grace_days=0.5)) == []
