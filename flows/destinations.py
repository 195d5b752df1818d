"""Leads what runs here to a target of the configuration, with the credentials of that target and no others."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from prefect_artifact_retention.flows.blocks import read_secret
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.flows.targets import Target, find_target, source_of
from prefect_artifact_retention.policies import ConfigurationError
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.stores.destination import Destination, going_to
from pydantic import SecretStr

Result = TypeVar("Result")


async def on_target(settings: RetentionSettings, name: str, work: Callable[[], Awaitable[Result]]) -> Result:
    """Do some work on a target; without a name, on the server on which this runs.

    Raises:
        ConfigurationError: There is no such target, or its credentials are missing.
        StoreError: They cannot be read.
    """
    async with at_target(settings, name):
        return await work()


@asynccontextmanager
async def at_target(settings: RetentionSettings, name: str) -> AsyncIterator[None]:
    """Lead all connections of this context to a target; see `on_target`."""
    if not name:
        yield
        return
    target = find_target(settings.all_targets(), name, source=settings.source("targets"))
    there = await _destination(target, settings.source("targets"))
    with going_to(there):
        yield


async def _destination(target: Target, source: str) -> Destination:
    where = source_of(source, target.name)
    return Destination(
        target.name,
        target.api_url,
        api_key=await _secret(where, "api_key", target.api_key_variable, target.api_key_block),
        auth_string=await _secret(where, "auth_string", target.auth_string_variable, target.auth_string_block),
    )


async def _secret(where: str, field: str, variable: str, block: str) -> SecretStr:
    if variable:
        if not (value := os.environ.get(variable, "").strip()):
            raise ConfigurationError(f"{where}: the variable {variable} is not set, which {field}_variable names")
    elif block:
        async with connect() as home:
            value = (await read_secret(home, block, f"{where}: {field}_block")).strip()
        if not value:
            raise ConfigurationError(f"{where}: the Secret block {block} is empty, which {field}_block names")
    else:
        return SecretStr("")
    if not (value.isascii() and value.isprintable()):
        raise ConfigurationError(f"{where}: its {field} has a character that no header can have")
    return SecretStr(value)
