"""Gives figures of the last delete runs in the format of OpenMetrics: as text, in a file, or to a push gateway."""

from __future__ import annotations

import os
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from prefect_artifact_retention.flows.cleanup import EPHEMERAL_SERVER
from prefect_artifact_retention.policies import ConfigurationError, StoreError
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.stores.connection import connect, uses_ephemeral_server
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.tasks.history import read_rows
from prefect_artifact_retention.tasks.metrics import collect_metrics
from prometheus_client import CollectorRegistry, push_to_gateway
from prometheus_client.openmetrics.exposition import generate_latest

JOB = "artifact-retention"
PUSH_SECONDS = 30


class Collected(NamedTuple):
    """The figures of one server.

    Attributes:
        server: The address of its API, without credentials.
        registry: The figures.
    """

    server: str
    registry: CollectorRegistry


async def collect() -> Collected:
    """Read the history of the server, and collect its figures.

    Raises:
        ConfigurationError: No server is configured.
        StoreError: The server cannot be reached, or refuses a request.
    """
    if uses_ephemeral_server():
        raise ConfigurationError(f"{EPHEMERAL_SERVER}. No cleanup has run there")
    async with connect() as connection:
        await connection.now()
        rows = await read_rows(Server(connection))
        return Collected(connection.address, collect_metrics(connection.address, rows))


def text(collected: Collected) -> str:
    """Return the figures in the format of OpenMetrics."""
    return str(generate_latest(collected.registry), "utf-8")  # type: ignore[no-untyped-call]


def write(file: Path, collected: Collected) -> None:
    """Write a file that whoever reads it finds whole, before and after; of a link, the file that it leads to.

    Raises:
        ConfigurationError: The file cannot be written, or is none that could be replaced, such as a device.
    """
    try:
        target = file.resolve()
        is_special = file.exists() and not file.is_file()
    except (OSError, RuntimeError):
        raise ConfigurationError(f"command line: --out {file} cannot be reached") from None
    if is_special:
        raise ConfigurationError(f"command line: --out {file} is no regular file; without --out, the figures go to stdout")
    # Its name does not end in .prom, by which node_exporter would read it.
    new = target.with_name(f"{target.name}.{os.getpid()}.new")
    try:
        new.write_text(text(collected), encoding="utf-8")
        new.replace(target)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise ConfigurationError(f"command line: --out {file} cannot be written: {error.strerror}") from None


def check_gateway(address: str) -> None:
    """Refuse an address that is none, and one with credentials, which the list of processes would show.

    Raises:
        ConfigurationError: It is not to be used.
    """
    try:
        parts = urlsplit(address)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and address.isascii()
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError("command line: --push: the address must be http://HOST:PORT or https://HOST:PORT")
    if parts.username is not None:
        raise ConfigurationError(
            "command line: --push: the address has credentials, which the list of processes would show to everybody. "
            "Print the figures instead, and let a client push them that reads its credentials from a file, such as curl"
        )


def push(address: str, collected: Collected) -> None:
    """Replace what the push gateway at an address has of this server.

    Raises:
        StoreError: It cannot be reached, or refuses the figures.
    """
    grouping = {"server": collected.server}
    try:
        push_to_gateway(address, job=JOB, registry=collected.registry, grouping_key=grouping, timeout=PUSH_SECONDS)
    except HTTPError as error:
        raise StoreError(f"the push gateway answers with {error.code} {printable(str(error.reason))}") from None
    except (URLError, OSError, HTTPException, UnicodeError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        raise StoreError(f"the push gateway cannot be reached: {printable(str(cause))}") from None
