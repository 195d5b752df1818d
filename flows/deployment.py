"""The variables of a deployment, read when `prefect deploy` runs, so that its files need no edits.

`prefect.yaml` and the files in `deployments/` call `variables` as their first build step, and name its results as
`{{ variables.cron }}` and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from prefect.client.schemas.schedules import CronSchedule
from prefect_artifact_retention.flows.settings import (
    DEPLOY_PREFIX,
    DOTENV,
    find_variables,
    load_settings,
    resolve_policies,
)
from prefect_artifact_retention.policies import ConfigurationError
from prefect_artifact_retention.policies.loading import describe_validation_error
from prefect_artifact_retention.stores.connection import ui_address
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DESCRIPTION = Path("deployments/description.md")
"""The description of the deployments, relative to the top of the checkout, where `prefect deploy` runs."""


class DeploymentSettings(BaseSettings):
    """The variables of a deployment, from the environment or `.env`: `ARTIFACT_RETENTION_DEPLOY_` and a name in capitals."""

    model_config = SettingsConfigDict(env_prefix=DEPLOY_PREFIX, env_file=DOTENV, extra="ignore", frozen=True)

    cron: str = Field(default="0 3 * * *", description="When the nightly run starts, as a cron expression.")
    timezone: str = Field(default="UTC", description="The time zone of that, such as `Europe/Zurich`.")
    directory: str = Field(
        default_factory=lambda: str(Path.cwd()),
        description="Process pools: where the worker finds `retention.toml`. Default: where you deploy from.",
    )
    image: str = Field(default="", description="Docker and Kubernetes: the image to build and push, with its registry.")
    base_image: str = Field(default="python:3.12-slim", description="Docker and Kubernetes: the image to build on.")
    pull_base_image: bool = Field(default=True, description="Docker and Kubernetes: look for a newer base image.")
    build_network: str = Field(default="default", description="Docker and Kubernetes: the network of the build.")
    requirements: Literal["requirements.txt", "requirements-archive.txt"] = Field(
        default="requirements.txt",
        description="Docker and Kubernetes: the libraries of the image. `requirements-archive.txt` has those of the archive.",
    )
    network: str = Field(default="bridge", description="Docker: the network of the run, such as `host`.")
    namespace: str = Field(default="default", description="Kubernetes: the namespace of the run.")
    repository: str = Field(default="", description="Prefect Managed: the URL of your git repository.")
    branch: str = Field(default="main", description="Prefect Managed: its branch.")

    @field_validator("directory")
    @classmethod
    def _absolute(cls, directory: str) -> str:
        if not Path(directory).is_absolute():
            raise ValueError("must be an absolute path, because a worker may start anywhere")
        return directory

    @field_validator("image")
    @classmethod
    def _without_tag(cls, image: str) -> str:
        if ":" in image.rpartition("/")[2] or "@" in image:
            raise ValueError("must have no tag: each build gets its own")
        return image

    @field_validator("repository")
    @classmethod
    def _without_credentials(cls, repository: str) -> str:
        if urlsplit(repository).password is not None:
            raise ValueError("must hold no password or token, because anybody can read a deployment")
        return repository


def variables(required: Sequence[str] = ()) -> dict[str, object]:
    """Read the variables of a deployment; a build step of `prefect deploy`.

    Args:
        required: The variables that must be set.

    Returns:
        The settings by name, the `version` of this package, and the `description` of the deployments, whose links lead into
        Prefect's user interface.

    Raises:
        SystemExit: A variable is missing, unknown or invalid. Prefect would show any other error as a traceback.
    """
    try:
        settings = _read(required)
        description = _description()
    except ConfigurationError as error:
        sys.stderr.write(f"artifact-retention: {error}\n")
        raise SystemExit(2) from None
    return settings.model_dump() | {"version": version("prefect-artifact-retention"), "description": description}


def _read(required: Sequence[str]) -> DeploymentSettings:
    find_variables(DEPLOY_PREFIX, DeploymentSettings.model_fields)
    _check_policies()
    try:
        settings = DeploymentSettings()
        CronSchedule(cron=settings.cron, timezone=settings.timezone)
    except ValidationError as error:
        lines = (line.partition(" ") for line in describe_validation_error(error))
        raise ConfigurationError("\n".join(f"{DEPLOY_PREFIX}{name.upper()} {rest}" for name, _, rest in lines)) from error
    if missing := [DEPLOY_PREFIX + name.upper() for name in required if not getattr(settings, name)]:
        raise ConfigurationError(f"not set: {', '.join(missing)}; docs/deploy.md says what goes there")
    return settings


def _check_policies() -> None:
    """Refuse invalid policies before the first nightly run. No policies are a warning: the worker may have its own."""
    settings = load_settings()
    if settings.policies:
        resolve_policies((), settings, "delete")
    else:
        sys.stderr.write("artifact-retention: no policy is configured here; runs in mode delete fail until there is one\n")


def _description() -> str:
    """Read the description, with absolute links: on Prefect Cloud, the user interface of a workspace is not at the root."""
    try:
        text = DESCRIPTION.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"there is no {DESCRIPTION} here: deploy from the top of the checkout") from error
    return text.replace("](/", f"]({ui_address()}/")
