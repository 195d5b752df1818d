"""Reads blocks of the server on which a run is, wherever the run reads and deletes: one place for credentials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from prefect.exceptions import ObjectNotFound
from prefect_artifact_retention.policies import ConfigurationError, StoreError
from prefect_artifact_retention.stores.connection import Connection, connect_home, reason


async def read_secret(connection: Connection, name: str, source: str) -> str:
    """Read the text of a Secret block, which a setting names; see `read_block`."""
    return str((await read_block(connection, name, "Secret", source)).get("value"))


async def read_block(connection: Connection, name: str, kind: str, source: str) -> Mapping[str, Any]:
    """Read what a block of a kind has.

    Args:
        connection: A connection of the run.
        name: The name of the block.
        kind: The name of its type.
        source: Where the block is named, for messages.

    Raises:
        ConfigurationError: There is no such block.
        StoreError: The block cannot be read.
    """
    async with connect_home(connection) as home:
        try:
            # Not by the method of the block itself, which emits an event: a preview writes nothing to the server.
            document = await home.client.read_block_document_by_name(name, kind.lower().replace(" ", "-"))
        except ObjectNotFound:
            raise ConfigurationError(f"{source}: the server has no {kind} block {name}") from None
        except httpx.HTTPError as error:
            raise StoreError(f"the {kind} block {name} cannot be read: {reason(error)}") from None
    return document.data
