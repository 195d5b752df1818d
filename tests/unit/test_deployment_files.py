"""prefect.yaml and the files in deployments/, held against Prefect's own models: Prefect ignores what it does not know."""

import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import prefect
import pytest
import yaml
from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel, RawScheduleConfig, WorkPoolConfig
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect_artifact_retention.flows.cleanup import artifact_cleanup
from prefect_artifact_retention.flows.deployment import DeploymentSettings
from prefect_artifact_retention.flows.doctor import artifact_doctor
from prefect_artifact_retention.flows.restore import artifact_restore
from prefect_artifact_retention.flows.settings import DEPLOY_PREFIX
from prefect_artifact_retention.flows.sweep import artifact_sweep
from pydantic import BaseModel, TypeAdapter

ROOT = Path(__file__).parents[2]
TYPES = {"prefect.yaml": "process", "docker.yaml": "docker", "kubernetes.yaml": "kubernetes", "managed.yaml": "managed"}
FILES = [ROOT / "prefect.yaml", *sorted((ROOT / "deployments").glob("*.yaml"))]
OUTPUTS = {"variables": {*DeploymentSettings.model_fields, "version", "description"}, "build-image": None}
DEPLOY_PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    """One of the files."""
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


def unknown(content: Mapping[str, Any], model: type[BaseModel]) -> set[str]:
    """The fields that the model does not have."""
    return set(content) - {field.alias or name for name, field in model.model_fields.items()} - set(model.model_fields)


def strings(content: object) -> Iterator[str]:
    """Every text in a file."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from strings(value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_has_only_fields_that_prefect_knows(file: Path) -> None:
    """At every level, and of the right types."""
    content = read(file)
    assert unknown(content, PrefectYamlModel) == set()
    assert len(PrefectYamlModel.model_validate(content).deployments) == 6
    for deployment in content["deployments"]:
        assert unknown(deployment, DeploymentConfig) == set()
        assert unknown(deployment["work_pool"], WorkPoolConfig) == set()
        for schedule in deployment["schedules"] or []:
            RawScheduleConfig.model_validate(schedule)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_deploys_a_flow_that_exists_with_parameters_that_it_takes(file: Path) -> None:
    """Nightly deletes, and refuses to delete more than half; the others preview or ask, and have no schedule.

    That they have none is said as null: of an empty list, Prefect 3.9 warns at each deployment, and of nothing, it asks.
    """
    nightly, on_demand, with_approval, restore, doctor, sweep = deployments = read(file)["deployments"]
    names = [each["name"] for each in deployments]
    assert names == ["nightly", "on-demand", "with-approval", "restore", "doctor", "sweep"]
    assert nightly["parameters"] == {"mode": "delete", "refuse_above_percent": 50, "require_accepted_policies": True}
    assert on_demand["parameters"] == {"mode": "preview"}
    assert with_approval["parameters"] == {"mode": "approve"}
    assert restore["parameters"] == {"apply": False}
    assert doctor["parameters"] == {"fix": False}
    assert sweep["parameters"] == {**nightly["parameters"], "mode": "preview"}
    assert [each["slug"] for each in nightly["schedules"]] == ["nightly"]
    for deployment in deployments[1:]:
        assert "schedules" in deployment
        assert deployment["schedules"] is None
    flows = artifact_cleanup, artifact_cleanup, artifact_cleanup, artifact_restore, artifact_doctor, artifact_sweep
    for deployment, flow in zip(deployments, flows, strict=True):
        assert deployment["enforce_parameter_schema"] is True
        assert load_flow_from_entrypoint(deployment["entrypoint"]).name == flow.name
        assert flow.validate_parameters(deployment["parameters"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_step_and_every_placeholder_of_a_file_exists(file: Path) -> None:
    """Prefect leaves out what it cannot resolve."""
    content = read(file)
    for step in [*content["build"], *content["push"], *content["pull"]]:
        ((name, inputs),) = step.items()
        module, _, function = name.rpartition(".")
        assert callable(getattr(import_module(module), function))
        assert set(inputs.get("required", [])) <= set(DeploymentSettings.model_fields)
    for text in strings(content):
        for step, output in re.findall(r"{{ ([\w-]+)\.(\w+) }}", text):
            assert OUTPUTS[step] is None or output in OUTPUTS[step]
        assert re.sub(r"{{ [\w-]+\.\w+ }}", "", text).count("{{") == 0


def test_all_files_deploy_the_same_deployments() -> None:
    """They differ in their work pools, so deploying another one moves the nightly run and never doubles it."""
    contents = [read(file) for file in FILES]
    pools = {deployment["work_pool"]["name"] for content in contents for deployment in content["deployments"]}
    assert pools == {"artifact-retention", *(f"artifact-retention-{kind}" for kind in ("docker", "kubernetes", "managed"))}
    for content in contents:
        for deployment in content["deployments"]:
            deployment.pop("work_pool")
        assert content["deployments"] == contents[0]["deployments"]


@pytest.mark.parametrize("file", [file for file in FILES if file.name != "managed.yaml"], ids=lambda file: file.name)
def test_the_job_variables_of_a_file_exist_in_its_kind_of_work_pool(file: Path) -> None:
    """As Prefect ships their templates; that of Prefect Managed is known to Prefect Cloud only."""
    views = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views"
    workers = json.loads((views / "aggregate-worker-metadata.json").read_text(encoding="utf-8"))
    templates = {kind: worker for collection in workers.values() for kind, worker in collection.items()}
    known = templates[TYPES[file.name]]["default_base_job_configuration"]["variables"]["properties"]
    for deployment in read(file)["deployments"]:
        assert set(deployment["work_pool"].get("job_variables", {})) <= set(known)


@pytest.mark.parametrize(
    "flow", [artifact_cleanup, artifact_restore, artifact_doctor, artifact_sweep], ids=lambda flow: flow.name
)
def test_numbers_of_the_run_form_have_bounds_and_every_field_is_described(flow: Flow[..., Any]) -> None:
    """The form refuses what is out of them, and says what each field is for."""
    schema = TypeAdapter(dict[str, Any]).validate_python(flow.parameters.model_dump())
    for name, field in schema["properties"].items():
        assert field["description"], name
        if field.get("type") in ("integer", "number"):
            assert {"minimum", "maximum"} <= set(field), name
    policy = schema["definitions"].get("RetentionPolicy", {}).get("properties", {})
    for name, field in policy.items():
        assert field["description"], name
        assert field["title"], name
        if field.get("type") in ("integer", "number"):
            assert {"minimum", "maximum"} <= set(field), name


def test_the_page_on_deploying_lists_every_variable_with_its_default() -> None:
    """And none that does not exist."""
    rows = re.findall(rf"^\| `{DEPLOY_PREFIX}(\w+)` \| ([^|]+) \|", DEPLOY_PAGE, flags=re.MULTILINE)
    assert [name.lower() for name, _ in rows] == list(DeploymentSettings.model_fields)
    for name, shown in rows:
        default = DeploymentSettings.model_fields[name.lower()].default
        if isinstance(default, bool):
            assert shown == f"`{str(default).lower()}`"
        elif isinstance(default, str) and default:
            assert shown == f"`{default}`"
