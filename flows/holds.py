"""Prints holds as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.policies.holds import Hold
from prefect_artifact_retention.tasks.rendering import NO_BREAK
from rich.text import Text

HEADER = ("Key", "Version", "Until (UTC)", "Held by", "Since (UTC)", "Reason")


def as_json(hold: Hold) -> dict[str, Any]:
    """Return the fields of a hold, and whether it has expired."""
    return hold.model_dump(mode="json") | {"expired": not hold.is_in_force(datetime.now(UTC))}


def show(holds: Sequence[Hold], address: str) -> None:
    """Print holds as a table, one row each, and the server that has them: there may be several."""
    server = Text(printable(f"On {address}"))
    if not holds:
        terminal.show(server, Text("Nothing is on hold."))
        return
    terminal.show(server, terminal.WholeTable([Text(name) for name in HEADER], [_row(hold) for hold in holds]))


def _row(hold: Hold) -> list[Text]:
    since = f"{hold.since.astimezone(UTC):%Y-%m-%d %H:%M}" if hold.since else ""
    until = str(hold.until) if hold.until else "no end"
    return [
        Text(printable(hold.key or "")),
        Text(str(hold.id) if hold.id else f"all{NO_BREAK}versions"),
        Text(until if hold.is_in_force(datetime.now(UTC)) else f"{until}, expired"),
        Text(printable(hold.by)),
        Text(since.replace(" ", NO_BREAK)),
        Text(printable(hold.reason)),
    ]
