"""The variables of a deployment: what `prefect deploy` finds wrong before anything is deployed, and where the links lead."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLOUD_UI_URL, PREFECT_UI_URL, temporary_settings
from prefect_artifact_retention.flows.deployment import DESCRIPTION, variables

ROOT = Path(__file__).parents[2]
PREFIX = "ARTIFACT_RETENTION_"
ACCOUNT, WORKSPACE = "1" * 8 + "-1111-1111-1111-" + "1" * 12, "2" * 8 + "-2222-2222-2222-" + "2" * 12


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what a deployment needs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / DESCRIPTION).parent.mkdir()
    shutil.copyfile(ROOT / DESCRIPTION, DESCRIPTION)
    Path("retention.toml").write_text('[[policies]]\nname = "p"\nkeep_last = 5\n', encoding="utf-8")
    with temporary_settings(updates={PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        yield tmp_path


def test_without_variables_the_defaults_serve(checkout: Path) -> None:
    """The worker finds the configuration where this was deployed from."""
    found = variables()
    assert (found["cron"], found["timezone"], found["directory"]) == ("0 3 * * *", "UTC", str(checkout))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DEPLOY_CRON", "soon", "DEPLOY_CRON = 'soon'"),
        ("DEPLOY_DIRECTORY", "some/where", "DEPLOY_DIRECTORY = 'some/where': must be an absolute path"),
        ("DEPLOY_IMAGE", "registry:5000/x:prod", "must have no tag"),
        ("DEPLOY_REPOSITORY", "https://me:token@git.example.com/x.git", "must hold no password"),
        ("DEPLOYMENT_TIMEZONE", "UTC", "unknown field ARTIFACT_RETENTION_DEPLOYMENT_TIMEZONE"),
        ("CRON", "* * * * *", "unknown field ARTIFACT_RETENTION_CRON"),
    ],
)
def test_what_cannot_be_meant_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, words: str
) -> None:
    """And nothing is deployed."""
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SystemExit):
        variables()
    assert words in capsys.readouterr().err


def test_an_image_may_come_from_a_registry_with_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """That colon begins no tag."""
    monkeypatch.setenv(f"{PREFIX}DEPLOY_IMAGE", "localhost:5000/artifact-retention")
    assert variables(["image"])["image"] == "localhost:5000/artifact-retention"


def test_a_missing_variable_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """With where to read about it."""
    with pytest.raises(SystemExit):
        variables(["image"])
    assert "not set: ARTIFACT_RETENTION_DEPLOY_IMAGE" in capsys.readouterr().err


def test_policies_that_every_night_would_refuse_are_not_deployed(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt rule, for instance."""
    Path("retention.toml").write_text('[[policies]]\nname = "p"\nkeep_lst = 5\n', encoding="utf-8")
    with pytest.raises(SystemExit):
        variables()
    assert "keep_lst" in capsys.readouterr().err


def test_no_policies_at_all_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """They may be configured where the worker runs."""
    Path("retention.toml").unlink()
    assert variables()
    assert "no policy is configured here" in capsys.readouterr().err


def test_elsewhere_than_at_the_top_of_the_checkout_nothing_is_deployed(capsys: pytest.CaptureFixture[str]) -> None:
    """In words, not with a traceback."""
    DESCRIPTION.unlink()
    with pytest.raises(SystemExit):
        variables()
    assert "deploy from the top of the checkout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({PREFECT_API_URL: "http://somebody:s3cret@127.0.0.1:4321/api"}, "http://127.0.0.1:4321/artifacts/key/"),
        ({PREFECT_UI_URL: "https://tools.example.com/prefect/"}, "https://tools.example.com/prefect/artifacts/key/"),
        (
            {
                PREFECT_CLOUD_UI_URL: "https://app.prefect.cloud",
                PREFECT_API_URL: f"https://api.prefect.cloud/api/accounts/{ACCOUNT}/workspaces/{WORKSPACE}",
            },
            f"https://app.prefect.cloud/account/{ACCOUNT}/workspace/{WORKSPACE}/artifacts/key/",
        ),
    ],
    ids=["a password", "a base path", "Cloud"],
)
def test_the_links_of_the_description_lead_into_the_user_interface(settings: dict[object, str], start: str) -> None:
    """Wherever that is; and hold no password."""
    with temporary_settings(updates=settings):
        description = str(variables()["description"])
    assert description.count(f"]({start}artifact-retention-") == 3
    assert "s3cret" not in description
