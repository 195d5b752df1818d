"""Asks each target of the configuration whether it answers, and prints who does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.flows.destinations import at_target
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.flows.targets import Target
from prefect_artifact_retention.policies import RetentionError
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.stores.connection import connect
from prefect_artifact_retention.stores.server import Server
from pydantic import BaseModel, Field
from rich.text import Text

CLOUD = "Prefect Cloud"

ANSWER_SECONDS = 30
"""How long a target may take to answer. With more, one that takes a connection and is silent holds up the table, for up to the
seven minutes of all attempts of Prefect's client. With less, a busy server counts as silent."""


class Answer(BaseModel):
    """What a target answers."""

    name: str = Field(description="The name of the target.")
    server: str = Field(description="The address of its API.")
    answers: bool = Field(description="Whether it answers, and takes the credentials.")
    version: str = Field(default="", description="The version of Prefect that it says it runs.")
    remark: str = Field(default="", description="Why it does not answer, or what somebody should look at.")


async def call(settings: RetentionSettings) -> list[Answer]:
    """Ask all targets at the same time.

    Raises:
        ConfigurationError: One is invalid; not that the credentials of one are missing, which is its answer.
    """
    return await asyncio.gather(*(_ask(settings, target) for target in settings.all_targets()))


async def _ask(settings: RetentionSettings, target: Target) -> Answer:
    answer = Answer(name=target.name, server=target.api_url, answers=False)
    try:
        async with asyncio.timeout(ANSWER_SECONDS), at_target(settings, target.name), connect() as connection:
            server = Server(connection)
            await server.now()
            version = CLOUD if connection.is_cloud else await server.version()
            remark = await server.untested_version()
            return answer.model_copy(update={"answers": True, "version": version, "remark": remark})
    except RetentionError as error:
        return answer.model_copy(update={"remark": str(error)})
    except TimeoutError:
        return answer.model_copy(update={"remark": f"no answer within {ANSWER_SECONDS} seconds"})


def show(answers: Sequence[Answer]) -> None:
    """Print the answers as a table."""
    if not answers:
        terminal.show(Text("There are no targets: write [[targets]] tables into the configuration."))
        return
    header = [Text(name) for name in ("Target", "Server", "Answers", "Version", "Remark")]
    rows = [(each.name, each.server, "yes" if each.answers else "no", each.version, each.remark) for each in answers]
    terminal.show(terminal.WholeTable(header, [[Text(printable(cell)) for cell in row] for row in rows]))
