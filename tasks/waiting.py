"""The plan that waits for an approval, kept with its flow run on the server, where whichever worker goes on finds it.

It is cut into parts that a proxy takes. Each time that somebody is asked, a head names the parts: it is written last, and the
last head counts.
"""

from __future__ import annotations

import hashlib
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from uuid import UUID, uuid4

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.connection import Connection
from prefect_artifact_retention.stores.run_inputs import RunInputs
from prefect_artifact_retention.tasks.planfile import PlanFile, read_plan
from pydantic import BaseModel, ConfigDict, ValidationError

PREFIX = "artifact-retention-plan"

MAX_PART_CHARS = 500_000
"""The size of a part: half of what nginx takes. With more, a proxy may refuse it; with less, there are more requests."""

MAX_VERSIONS = 1_000_000
"""The most versions that can wait for an approval, in 30 MB. With more, a plan fills the memory of the server."""

MAX_ROUNDS = 20
"""How often somebody is asked in one run at most."""


class WaitingPlan(BaseModel):
    """What somebody is asked to approve.

    Attributes:
        number: How often somebody has been asked in this run, this time included.
        name: By what name its parts are kept.
        parts: How many these are.
        sha256: The hash of what they contain.
        versions: How many versions it would delete.
        text: What is said of it, in Markdown.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    name: str
    parts: int
    sha256: str
    versions: int
    text: str


async def store_plan(connection: Connection, run_id: UUID, plan: PlanFile, number: int, text: str) -> WaitingPlan:
    """Keep a plan with its flow run.

    Raises:
        StoreError: It has too many versions, or the server refuses it.
    """
    if plan.versions > MAX_VERSIONS:
        raise StoreError(
            f"{plan.versions:,} versions are too many for one approval, which is for {MAX_VERSIONS:,} at most: "
            "give it fewer keys"
        )
    inputs, name = RunInputs(connection, run_id), uuid4().hex
    packed = zlib.compress(plan.model_dump_json().encode())
    parts = list(_cut(b64encode(packed).decode()))
    for index, part in enumerate(parts):
        await inputs.write(f"{PREFIX}-{name}-{index}", part)
    digest = hashlib.sha256(packed).hexdigest()
    waiting = WaitingPlan(number=number, name=name, parts=len(parts), sha256=digest, versions=plan.versions, text=text)
    await write_head(connection, run_id, waiting)
    return waiting


async def write_head(connection: Connection, run_id: UUID, waiting: WaitingPlan) -> None:
    """Ask for a plan that is kept already.

    Raises:
        StoreError: The server refuses it, or somebody has been asked too often.
    """
    if waiting.number > MAX_ROUNDS:
        raise StoreError(f"nothing is deleted, because {MAX_ROUNDS} questions were not answered with a clear yes or no")
    await RunInputs(connection, run_id).write(f"{PREFIX}-{waiting.number}", waiting.model_dump_json())


async def find_waiting(connection: Connection, run_id: UUID) -> WaitingPlan | None:
    """Find what somebody was asked last in a flow run; None if nobody was.

    Raises:
        StoreError: The server cannot be reached, or its answer cannot be read.
    """
    inputs, last = RunInputs(connection, run_id), None
    for number in range(1, MAX_ROUNDS + 1):
        if (text := await inputs.read(f"{PREFIX}-{number}")) is None:
            break
        last = text
    try:
        return WaitingPlan.model_validate_json(last) if last else None
    except ValidationError:
        raise StoreError("the plan that waits for an approval cannot be read") from None


async def load_plan(connection: Connection, run_id: UUID, waiting: WaitingPlan) -> PlanFile:
    """Read the plan that somebody was asked for.

    Raises:
        StoreError: It cannot be read, or is not what was written.
    """
    inputs = RunInputs(connection, run_id)
    texts = [await inputs.read(f"{PREFIX}-{waiting.name}-{index}") or "" for index in range(waiting.parts)]
    try:
        packed = b64decode("".join(texts))
    except ValueError:
        packed = b""
    if hashlib.sha256(packed).hexdigest() != waiting.sha256:
        raise StoreError("nothing is deleted, because the plan that was approved is not whole")
    return read_plan(zlib.decompress(packed), "the plan that was approved")


async def forget_plan(connection: Connection, run_id: UUID, waiting: WaitingPlan) -> None:
    """Delete the parts of a plan that nobody needs any more, as far as possible."""
    inputs = RunInputs(connection, run_id)
    for index in range(waiting.parts):
        await inputs.delete(f"{PREFIX}-{waiting.name}-{index}")


def _cut(text: str) -> Iterator[str]:
    return (text[start : start + MAX_PART_CHARS] for start in range(0, len(text), MAX_PART_CHARS))
