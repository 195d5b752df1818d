"""The `[[targets]]` of the configuration: the servers and workspaces of a sweep, and where the credentials of each come from.

No credential stands in the configuration: such files get into images and repositories. So no message quotes what was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, load_policies
from prefect_artifact_retention.policies.formatting import printable
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,48}[a-z0-9])?")
"""Names stand in labels of events, in metadata and in tables."""

VARIABLE = re.compile(r"(?!pn[a-z]_)[A-Za-z_][A-Za-z0-9_]*")
"""Not the key itself: those of Prefect Cloud, `pnu_...` and `pnb_...`, could be names of variables."""

BLOCK = re.compile(r"[a-z0-9-]+")
CREDENTIALS = ("api_key_variable", "api_key_block", "auth_string_variable", "auth_string_block")
SECRETS = ("api_key", "key", "auth_string", "password", "token", "database_url")
"""What somebody may write into a table by mistake."""


class Target(BaseModel):
    """A server, or a workspace of Prefect Cloud, that a run cleans up from another one."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(description="What it is called in parameters, flags and reports: lowercase letters, digits and dashes.")
    api_url: str = Field(description="The address of its API, as PREFECT_API_URL has it, without credentials.")
    api_key_variable: str = Field(default="", description="The environment variable that has its API key.")
    api_key_block: str = Field(
        default="", description="The Secret block that has its API key, on the server on which the run is."
    )
    auth_string_variable: str = Field(
        default="", description="The environment variable that has its user and password, as PREFECT_API_AUTH_STRING."
    )
    auth_string_block: str = Field(
        default="", description="The Secret block that has its user and password, on the server on which the run is."
    )
    database_block: str = Field(
        default="",
        description="The Secret block that has the address of its database, on the server on which the run is. Empty: it is "
        "reached through its API.",
    )
    policies: list[RetentionPolicy] = Field(default=[], description="Policies in place of the configured ones.")

    @model_validator(mode="after")
    def _check(self) -> Target:
        if problem := next(self._problems(), ""):
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        if not NAME.fullmatch(self.name):
            yield "name must have at most 50 lowercase letters, digits and dashes, no dash at an end"
        if problem := _wrong_with(self.api_url):
            yield f"api_url {problem}"
        given = [field for field in CREDENTIALS if getattr(self, field)]
        if len(given) > 1:
            yield f"{given[0]} cannot stand beside {given[1]}: a target has one key, or one user and password"
        for field in (*CREDENTIALS, "database_block"):
            value, kind = getattr(self, field), "variable" if field.endswith("_variable") else "block"
            if value and not (VARIABLE if kind == "variable" else BLOCK).fullmatch(value):
                yield f"{field} must be the name of a {kind}, and no secret itself"


def load_targets(tables: Sequence[Any], *, source: str) -> tuple[Target, ...]:
    """Read the targets from configuration.

    Args:
        tables: One mapping of field names to values per target, as TOML or JSON gives them.
        source: The file or variable that they come from, for the messages.

    Raises:
        ConfigurationError: A target is invalid, or two have the same name, or address. Lists the problems, one to a line.
    """
    targets: list[Target] = []
    problems: list[str] = []
    for number, table in enumerate(tables, start=1):
        where = source_of(source, _name_in(table)) or f"{source}: target number {number}"
        try:
            target = _load(table, where)
        except ConfigurationError as error:
            problems.append(str(error))
            continue
        if any(each.name == target.name for each in targets):
            problems.append(f"{source}: two targets have name = {target.name}")
        elif other := next((each.name for each in targets if _place(each.api_url) == _place(target.api_url)), ""):
            problems.append(f'{where}: has the api_url of target "{other}": each would delete what only the other one keeps')
        targets.append(target)
    if problems:
        raise ConfigurationError("\n".join(problems))
    return tuple(targets)


def find_target(targets: Iterable[Target], name: str, *, source: str) -> Target:
    """Return the target of a name.

    Raises:
        ConfigurationError: There is none.
    """
    by_name = {target.name: target for target in targets}
    if name not in by_name:
        known = f"known are {', '.join(by_name)}" if by_name else "no [[targets]] table is configured"
        raise ConfigurationError(f"{source}: there is no target {printable(name)!r}; {known}")
    return by_name[name]


def source_of(source: str, name: str) -> str:
    """Return what messages call a target; empty without a name."""
    return f'{source}: target "{name}"' if name else ""


def _name_in(table: object) -> str:
    name = table.get("name") if isinstance(table, Mapping) else None
    return name if isinstance(name, str) and NAME.fullmatch(name) else ""


def _load(table: object, where: str) -> Target:
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{where}: is no table of fields")
    tables = table.get("policies", [])
    if not isinstance(tables, list):
        raise ConfigurationError(f"{where}: policies is no list of policies")
    # What is written below [[targets.policies]] belongs to that policy, whose messages would quote it.
    for each in (table, *(policy for policy in tables if isinstance(policy, Mapping))):
        if field := next((name for name in each if name in SECRETS), ""):
            remedy = "database_block" if field == "database_url" else "api_key_variable, api_key_block or their like"
            raise ConfigurationError(f"{where}: {field} is a secret, which no configuration may hold: use {remedy}")
    policies = load_policies(tables, source=where)
    try:
        return Target.model_validate({**table, "policies": policies})
    except ValidationError as error:
        lines = [f"{where}: {line}" for line in _describe(error)]
        raise ConfigurationError("\n".join(lines)) from None


def _describe(error: ValidationError) -> Iterator[str]:
    """Describe what is wrong without a value: it may be a secret in the wrong place."""
    for problem in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            yield f"unknown field {printable(field)}; known are {', '.join(Target.model_fields)}"
        elif problem["type"] == "missing":
            yield f"{field} is missing"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{field}: {message[:1].lower()}{message[1:]}" if field else message


def _place(url: str) -> tuple[str, str, int | None, str]:
    """Return what two addresses of the same API have in common."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return parts.scheme, parts.hostname or "", port, parts.path.rstrip("/")


def _wrong_with(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and url.isascii()
    except ValueError:
        return "is no address"
    if "@" in parts.netloc:
        return "has credentials in it: use auth_string_variable or auth_string_block"
    if not usable or url != url.strip():
        return "must be http://HOST/api or https://HOST/api"
    return "has a query or a fragment, and may have neither" if parts.query or parts.fragment else ""
