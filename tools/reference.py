"""The tables of docs/reference.md, made from the models that they describe, between two markers each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cyclopts import App
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect_artifact_retention.flows.cleanup import artifact_cleanup
from prefect_artifact_retention.flows.cli import app
from prefect_artifact_retention.flows.doctor import artifact_doctor
from prefect_artifact_retention.flows.restore import artifact_restore
from prefect_artifact_retention.flows.server_policies import Pushed
from prefect_artifact_retention.flows.settings import ENV_PREFIX, RetentionSettings
from prefect_artifact_retention.flows.sweep import artifact_sweep
from prefect_artifact_retention.flows.targets import Target
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.policies.pushes import Change
from prefect_artifact_retention.tasks.checkup import Checkup, DiskReport, Finding, Growth, KeySize
from prefect_artifact_retention.tasks.report import ArchiveReport, CleanupReport, KeyReport, PolicyReport, RuleCount
from prefect_artifact_retention.tasks.restore_report import RestoredKey, RestoreReport
from prefect_artifact_retention.tasks.sweep import SweepReport, TargetRow
from pydantic import BaseModel

TABLES = ("policies", "targets")
"""The settings that are lists of tables."""

Row = tuple[str, ...]
Schema = Mapping[str, Any]


def renew_tables(page: str) -> str:
    """Write every table of the page anew."""
    for name, rows in tables().items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        before, rest = page.split(begin)
        page = before + begin + "\n" + markdown(rows) + "\n" + end + rest.partition(end)[2]
    return page


def tables() -> dict[str, Iterator[Row]]:
    """The rows of each table by its marker, the head first."""
    sweeps = (SweepReport, TargetRow)
    models = (CleanupReport, KeyReport, PolicyReport, RuleCount, ArchiveReport, RestoreReport, RestoredKey)
    examination = (Checkup, Finding, KeySize, Growth, DiskReport)
    listed = (Pushed, Change)
    return {
        "policy fields": model_fields(RetentionPolicy),
        "settings": settings(),
        "target fields": model_fields(Target),
        "flow parameters": flow_parameters(artifact_cleanup),
        "sweep parameters": flow_parameters(artifact_sweep),
        "restore parameters": flow_parameters(artifact_restore),
        "doctor parameters": flow_parameters(artifact_doctor),
        "commands": commands(),
        **{model.__name__: report_fields(model) for model in (*models, *examination, *listed, *sweeps)},
    }


def model_fields(model: type[BaseModel]) -> Iterator[Row]:
    """Every field of what a table of the configuration is read into."""
    yield "field", "type", "default", "meaning"
    for name, field in properties(model.model_json_schema()):
        yield f"`{name}`", kind(field), default(field), field["description"]


def settings() -> Iterator[Row]:
    """Every setting, by its name in the file and in the environment."""
    yield "in `retention.toml`", "in the environment and `.env`", "type", "default", "meaning"
    for name, field in properties(RetentionSettings.model_json_schema()):
        written = f"`[[{name}]]`" if name in TABLES else "never: it is a secret" if field.get("writeOnly") else f"`{name}`"
        variable = f"`{ENV_PREFIX}{name.upper()}`" + (", a JSON list" if name in TABLES else "")
        yield written, variable, kind(field), default(field), field["description"]


def flow_parameters(flow: Flow[..., Any]) -> Iterator[Row]:
    """The parameters of a flow, as its run form has them."""
    yield "parameter", "type", "default", "meaning"
    for name, field in parameter_schema(flow).properties.items():
        yield f"`{name}`", kind(field), default(field), field["description"]


def commands() -> Iterator[Row]:
    """Every command with its arguments and flags."""
    yield "command", "flag", "default", "meaning"
    for name, command in leaves(app):
        arguments = command.assemble_argument_collection()
        positional = [argument.names[0] for argument in arguments if argument.index is not None]
        yield f"`{' '.join([name, *positional])}`", "", "", command.help
        for argument in arguments:
            if argument.index is None:
                given = argument.field_info.default
                shown = "required" if argument.required else f"`{given}`" if given else ""
                yield "", f"`{argument.names[0]}`", shown, argument.parameter.help or ""


def leaves(parent: App, prefix: str = "") -> Iterator[tuple[str, App]]:
    """The commands that run something, those of groups included."""
    for name in parent:
        if name.startswith("-"):
            continue
        if any(not inner.startswith("-") for inner in parent[name]):
            yield from leaves(parent[name], f"{name} ")
        else:
            yield prefix + name, parent[name]


def report_fields(model: type[BaseModel]) -> Iterator[Row]:
    """The fields of one model of the report, computed ones included."""
    yield "field", "type", "meaning"
    for name, field in properties(model.model_json_schema(mode="serialization")):
        yield f"`{name}`", kind(field), field.get("description", "")


def properties(schema: Schema) -> Iterable[tuple[str, Schema]]:
    """The fields of a model by name."""
    fields: dict[str, Schema] = schema["properties"]
    return fields.items()


BOUNDS = {"minimum": "", "exclusiveMinimum": "more than ", "maximum": "", "exclusiveMaximum": "less than "}


def kind(field: Schema) -> str:
    """The type of a field, with its bounds."""
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return f"`{field['$ref'].rpartition('/')[2]}`"
    if "anyOf" in field:
        return " or ".join(kind(choice) for choice in field["anyOf"])
    if field["type"] == "array":
        items = field.get("items")
        return f"list of {kind(items)}" if items else "list"
    name = field.get("format") if field.get("format") == "date-time" else field["type"]
    bounds = [f"{words}{field[bound]:,}" for bound, words in BOUNDS.items() if bound in field]
    return f"{name}, {' to '.join(bounds)}" if bounds else str(name)


def default(field: Schema) -> str:
    """The default of a field as TOML and JSON write it."""
    if "default" not in field:
        return "none: it is required"
    value = field["default"]
    if value in ("", []):
        return "none"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def markdown(rows: Iterable[Row]) -> str:
    """Rows as a table of Markdown, the first being its head."""
    head, *body = ([re.sub(r"\s+", " ", cell).strip().replace("|", r"\|") for cell in row] for row in rows)
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, ["---"] * len(head), *body))
