"""The settings: from the environment, `.env` and `retention.toml`, in this order. A flow parameter or flag overrides all.

Every mistake is a `ConfigurationError` that names its source. A misspelt name is refused instead of ignored: a limit that
silently does not apply is worse than none.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from prefect_artifact_retention.flows.targets import Target, find_target, load_targets, source_of
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, load_policies
from prefect_artifact_retention.policies.loading import (
    OWN_POLICY,
    PREVIEW_POLICY,
    check_policies,
    describe_validation_error,
)
from prefect_artifact_retention.policies.model import MAX_DAYS, refuse_bool
from prefect_artifact_retention.tasks.report import GIVEN_POLICIES, Mode
from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

ENV_PREFIX = "ARTIFACT_RETENTION_"
CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
DEPLOY_PREFIX = f"{ENV_PREFIX}DEPLOY_"
"""The prefix of the variables that `prefect deploy` reads; a run ignores them."""
KUBERNETES = re.compile(
    rf"{ENV_PREFIX}(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes sets in every pod beside a Service called `artifact-retention` or `artifact-retention-...`; no settings."""

DEFAULT_FILE = "retention.toml"
DOTENV = ".env"


DATABASE_ONLY = ("max_deletions_per_second", "reclaim", "purge_events")
"""The settings that say nothing about a run through the API."""

ARCHIVE_ONLY = ("archive_payloads", "archive_keep_days", "ledger_keep_days")
"""The settings that say nothing about a run without an archive."""

Number = Annotated[int, Field(ge=0, le=10_000_000), BeforeValidator(refuse_bool)]
Minutes = Annotated[float, Field(ge=0, le=10_080, allow_inf_nan=False), BeforeValidator(refuse_bool)]
Days = Annotated[float, Field(ge=0, le=MAX_DAYS, allow_inf_nan=False), BeforeValidator(refuse_bool)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), BeforeValidator(refuse_bool)]


class RetentionSettings(BaseSettings):
    """What can be configured besides the flow's parameters. 0 is off, unless said otherwise."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_file=DOTENV, extra="ignore", frozen=True)

    policies: list[Any] = Field(default=[], description="The policies, in the order in which they are tried.")
    max_deletions: Number = Field(default=0, description="Delete at most this many versions in one run.")
    time_budget_minutes: Minutes = Field(default=0, description="Stop after this time; planning takes at most half of it.")
    refuse_above_percent: Percent = Field(
        default=0, description="Delete nothing of a policy if a larger share of its versions would go unexpectedly."
    )
    max_task_runs: Annotated[int, Field(ge=1, le=10_000), BeforeValidator(refuse_bool)] = Field(
        default=25, description="Prune tasks at most; more keys are packed together."
    )
    max_requests_per_minute: Number = Field(
        default=0, description="Requests to the server at most. 0 is 150 on Prefect Cloud, and no limit elsewhere."
    )
    database_url: SecretStr = Field(
        default=SecretStr(""), description="The server's own database, to read and delete there instead of through the API."
    )
    database_block: str = Field(
        default="", description="The Secret block of the server that holds the address of its own database."
    )
    max_deletions_per_second: Number = Field(default=0, description="Versions deleted in the database in a second at most.")
    reclaim: Literal["none", "vacuum"] = Field(
        default="none", description="Whether a run ends with a VACUUM of what it has deleted in the database."
    )
    purge_events: bool = Field(
        default=False, description="Whether what the server's events hold of deleted versions is deleted in the database, too."
    )

    archive_url: str = Field(
        default="",
        description="A folder or an address of an object store (s3://, gs://, az://), where versions are archived before they "
        "are deleted.",
    )
    archive_block: str = Field(
        default="",
        description="The Remote File System block of the server that has the address of the archive, and its credentials.",
    )
    archive_payloads: bool = Field(
        default=True,
        description="Whether the archive has the data of versions; else it is a ledger, and nothing comes back.",
    )
    archive_keep_days: Days = Field(
        default=0, description="Delete the data of versions from the archive after this time; 0 is never."
    )
    ledger_keep_days: Days = Field(
        default=0, description="Delete what the archive says of deleted versions after this time, too; 0 is never."
    )
    max_log_lines: Number = Field(
        default=0,
        description="Keys of which the log of a run tells what was deleted, one a line. 0 is 100 on Prefect Cloud, else all.",
    )

    approval_hours: Annotated[float, Field(gt=0, le=2_160, allow_inf_nan=False), BeforeValidator(refuse_bool)] = Field(
        default=24, description="How long a run waits for its approval, after which it fails, and has deleted nothing."
    )
    require_accepted_policies: bool = Field(
        default=False,
        description="Whether a scheduled run is refused whose policies no person has applied or accepted yet.",
    )

    targets: list[Any] = Field(
        default=[],
        description="The servers and workspaces that are cleaned up from here: one each for `--target` and a sweep.",
    )

    allow_ephemeral_server: bool = Field(
        default=False,
        description="Whether a run may delete on the temporary server that Prefect starts where none is named.",
    )

    _sources: dict[str, str] = {}

    def with_parameters(self, *, ignore_guard: bool = False, **parameters: float) -> RetentionSettings:
        """Return these settings with the parameters of one run, of which 0 means as configured.

        A parameter overrides a setting, but of two guards the stricter holds: that of a deployment must not undo the one that
        somebody has configured. Only `ignore_guard` switches it off.
        """
        guards = [self.refuse_above_percent, parameters.pop("refuse_above_percent", 0)]
        strictest = min((percent for percent in guards if percent), default=0)
        given = {name: value for name, value in parameters.items() if value}
        return self.model_copy(update={**given, "refuse_above_percent": 0 if ignore_guard else strictest})

    def with_policies(self, policies: Sequence[Any], source: str) -> RetentionSettings:
        """Return these settings with policies from a source of their own."""
        settings = self.model_copy(update={"policies": list(policies)})
        settings._sources = {**self._sources, "policies": source}  # noqa: SLF001 - of the copy
        return settings

    @property
    def leaves_policies_to_server(self) -> bool:
        """Whether nothing is said of policies here. An empty list says that there are none, and hides those of a file."""
        return not self.policies and "policies" not in self._sources

    def all_targets(self) -> tuple[Target, ...]:
        """Return the targets.

        Raises:
            ConfigurationError: One of them is invalid.
        """
        return load_targets(self.targets, source=self.source("targets"))

    def at_target(self, name: str) -> RetentionSettings:
        """Return the settings of a run on a target: with its database, and its own policies, if any. Without a name, these.

        Raises:
            ConfigurationError: There is no such target, or one is invalid.
        """
        if not name:
            return self
        target = find_target(self.all_targets(), name, source=self.source("targets"))
        where = source_of(self.source("targets"), name)
        own = {"policies": list(target.policies)} if target.policies else {}
        database = {"database_url": SecretStr(""), "database_block": target.database_block}
        there = self.model_copy(update=own | database)
        there._sources = self._sources | dict.fromkeys([*own, "database_block"], where)  # noqa: SLF001 - a copy of these
        return there

    @property
    def archives_payloads(self) -> bool:
        """Whether an archive is configured that keeps data."""
        return bool(self.archive_url or self.archive_block) and self.archive_payloads

    @property
    def archive_setting(self) -> str:
        """The setting that says where the archive is, after the place where it was set, for messages; empty without one."""
        name = next((each for each in ("archive_url", "archive_block") if getattr(self, each)), "")
        return name and f"{self.source(name)}: {name}"

    def without_effect(self) -> Iterator[str]:
        """Describe the settings that have no effect beside the others."""
        if self.database_url.get_secret_value() and self.database_block:
            yield f"{self.source('database_block')}: database_block is ignored, because database_url is set"
        if self.archive_url and self.archive_block:
            yield f"{self.source('archive_block')}: archive_block is ignored, because archive_url is set"
        if not self.database_url.get_secret_value() and not self.database_block:
            why = "it applies to deletions in the database, and neither database_url nor database_block is set"
            yield from self._ignored(DATABASE_ONLY, why)
        if not self.archive_url and not self.archive_block:
            yield from self._ignored(
                ARCHIVE_ONLY, "it applies to an archive, and neither archive_url nor archive_block is set"
            )

    def _ignored(self, names: Iterable[str], why: str) -> Iterator[str]:
        for name in names:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                yield f"{self.source(name)}: {name} = {value} is ignored: {why}"

    @classmethod
    def settings_customise_sources(  # noqa: D102 - pydantic-settings' hook
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The arguments are the content of the file, so they have the lowest priority.
        return env_settings, dotenv_settings, init_settings

    def source(self, field: str) -> str:
        """Return where a field was set: a file, a variable, or "default"."""
        return self._sources.get(field, "default")


def load_settings(config: Path | None = None) -> RetentionSettings:
    """Read the settings.

    Args:
        config: The TOML file; by default the one that `ARTIFACT_RETENTION_CONFIG` names, in the environment or in `.env`, else
            `retention.toml` in the working directory if there is one.

    Raises:
        ConfigurationError: A file is missing or does not parse, or a name or a value is invalid.
    """
    named = config or _configured_file()
    file = named or Path(DEFAULT_FILE)
    table = _read_toml(file) if named or file.is_file() else {}
    sources = _sources(file, table)
    try:
        settings = RetentionSettings(**table)
    except SettingsError as error:
        what = "targets" if '"targets"' in str(error) else "policies"
        raise ConfigurationError(f"{sources.get(what, ENV_PREFIX + what.upper())}: is no JSON list of {what}") from None
    except ValidationError as error:
        names = [str(problem["loc"][0]) for problem in error.errors()]
        # What is written among the targets may be a secret in the wrong place.
        lines = [
            f"{sources.get(name, file)}: {'targets is no list of tables' if name == 'targets' else line}"
            for name, line in zip(names, describe_validation_error(error), strict=True)
        ]
        raise ConfigurationError("\n".join(lines)) from None
    settings._sources.update(sources)  # noqa: SLF001 - filled where it is made
    settings.all_targets()
    return settings


def read_policies(file: Path) -> tuple[RetentionPolicy, ...]:
    """Read the policies of a file as they stand there, whatever the environment says.

    Raises:
        ConfigurationError: The file cannot be read, or has an invalid policy, or none.
    """
    table = _read_toml(file)
    _refuse_unknown(str(file), table, RetentionSettings.model_fields)
    tables = table.get("policies")
    if not isinstance(tables, list) or not tables:
        raise ConfigurationError(f"{file}: has no [[policies]] table")
    return load_policies(tables, source=str(file))


def resolve_policies(
    given: Sequence[RetentionPolicy], settings: RetentionSettings, mode: Mode
) -> tuple[tuple[RetentionPolicy, ...], str]:
    """Return the policies of a run and their source. The first one is that of the package's own keys.

    Args:
        given: Policies from a parameter or flags; empty means not given. They replace the configured ones, except that keys
            with a configured `keep_all` policy stay protected by it.
        settings: The settings.
        mode: Without any policy, a preview uses a built-in one, and a deletion fails.

    Raises:
        ConfigurationError: The policies are invalid, or there are none in a delete run.
    """
    configured = load_policies(settings.policies, source=settings.source("policies"))
    if given:
        shields = [policy for policy in configured if policy.keep_all and policy not in given]
        policies, source = (*shields, *given), GIVEN_POLICIES
    elif configured:
        policies, source = configured, settings.source("policies")
    elif mode == "preview":
        policies, source = (PREVIEW_POLICY,), "built in, for previews only"
    else:
        raise ConfigurationError(
            f"no policy is configured, and nothing is deleted without one: write a [[policies]] table into {DEFAULT_FILE}, "
            f"or name a file with --config or {CONFIG_VARIABLE}, or give --key with --keep-last"
        )
    all_policies = (OWN_POLICY, *policies)
    check_policies(all_policies, source=source)
    return all_policies, source


def _configured_file() -> Path | None:
    for variables in (os.environ, _read_dotenv()):
        for name, value in variables.items():
            if name.upper() == CONFIG_VARIABLE and value:
                return Path(value)
    return None


def _read_dotenv() -> Mapping[str, str | None]:
    try:
        return dotenv_values(DOTENV) if Path(DOTENV).is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{DOTENV}: cannot be read: {error}") from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: does not parse as TOML: {error}") from error


def _sources(file: Path, table: dict[str, Any]) -> dict[str, str]:
    """Return the source of each field: the environment, else `.env`, else the file. Unknown names are an error."""
    fields = RetentionSettings.model_fields
    _refuse_unknown(str(file), table, fields)
    if "database_url" in table:
        raise ConfigurationError(
            f"{file}: database_url is a secret, and such files get into images and repositories: "
            f"set {ENV_PREFIX}DATABASE_URL, or name a Secret block of the server with database_block"
        )
    sources = dict.fromkeys(table, str(file))
    for origin, names in find_variables(ENV_PREFIX, [*fields, "config"]).items():
        sources |= {name.removeprefix(ENV_PREFIX).lower(): origin + name for name in names}
    return sources


def find_variables(prefix: str, fields: Iterable[str]) -> dict[str, list[str]]:
    """Find the variables with a prefix in `.env` and in the environment.

    Returns:
        The names by source, in ascending priority, without those that Kubernetes sets for Services.

    Raises:
        ConfigurationError: A variable names no field, or `.env` cannot be read.
    """
    known = [prefix + field.upper() for field in fields]
    found = {}
    for origin, variables in ((f"{DOTENV}: ", _read_dotenv()), ("", os.environ)):
        ours = [name.upper() for name in variables if name.upper().startswith(prefix)]
        ours = [name for name in ours if name in known or not KUBERNETES.fullmatch(name)]
        found[origin] = [name for name in ours if prefix == DEPLOY_PREFIX or not name.startswith(DEPLOY_PREFIX)]
        _refuse_unknown(origin or "environment", found[origin], known)
    return found


def _refuse_unknown(origin: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ConfigurationError(f"{origin.rstrip(': ')}: unknown field {name}; {hint}")
