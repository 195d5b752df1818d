"""Sends the requests of the helpers: each helper is written once, as a generator of steps, and runs in sync and in async code.

A step is a function of Prefect's client, sync or async, whose answer is sent back into the generator, or a number of seconds
to pause. The sync way blocks its thread, so it also works where an event loop runs, as in an async flow or a notebook. Within
a run, the client is that of the run, if it can be used (`_open`). What a generator refuses before its first step, it refuses
before a client is opened.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, TypeVar
from uuid import UUID

import httpx
import orjson
from prefect.client.orchestration import PrefectClient, SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import Artifact
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.stores.connection import request_error, shielded, without_retries
from prefect_artifact_retention.stores.diagnosis import unusable_setting

Client = PrefectClient | SyncPrefectClient
Result = TypeVar("Result")
Steps = Generator[Callable[[Any], Any] | float, Any, Result]
OnError = Literal["raise", "log"]

MAX_LOGGED_CHARS = 500
"""A longer error is cut off in the log."""

_PROCESS = os.getpid()
"""The process that imported this; a child that it forks has another id."""


def create(artifact: ArtifactCreate) -> Callable[[Any], Any]:
    """Return the step that creates an artifact, whose answer is Prefect's `Artifact`."""
    return lambda client: client.create_artifact(artifact)


def created(artifact: ArtifactCreate) -> Steps[Artifact]:
    """Create an artifact; ValueError if the answer, maybe of a proxy, is another one: the client would make up an id."""
    made: Artifact = yield create(artifact)
    if made.created is None or made.key != artifact.key:
        raise ValueError("the answer is no artifact that was created")
    return made


def update(version_id: UUID, change: ArtifactUpdate) -> Callable[[Any], Any]:
    """Return the step that updates an artifact in place."""
    return lambda client: client.update_artifact(version_id, change)


def read(only: dict[str, Any], limit: int, offset: int = 0) -> Callable[[Any], Any]:
    """Return the step that reads the newest artifacts that match a filter, whose answer is a response: see `rows`."""
    body = {"artifacts": only, "sort": "CREATED_DESC", "limit": limit, "offset": offset}
    # Prefect's server compresses at level 9, which takes it longer than a local network saves.
    headers = {"Accept-Encoding": "identity"}
    return lambda client: client.request("POST", "/artifacts/filter", json=body, headers=headers)


def rows(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the rows of an answer to `read`."""
    found: list[dict[str, Any]] = orjson.loads(response.content)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("these are no rows")
    return found


def run(steps: Steps[Result], what: str, on_error: OnError = "raise", *, retries: bool = True) -> Result | None:
    """Run the steps in sync code.

    Args:
        steps: The steps.
        what: What they do, for messages: "publish the artifact".
        on_error: `raise` raises errors; `log` logs them as a warning, and returns None.
        retries: Whether Prefect's client sends a request again that fails: for up to two minutes.

    Raises:
        StoreError: The server cannot be reached, or refuses a request.
        ValueError: An argument of the helper is invalid; no request has been sent.
    """
    with handled(what, on_error), nullcontext() if retries else without_retries():
        step = next(steps)
        client = _open(partial(get_client, sync_client=True))
        with _explained(client, what), client:
            while True:
                try:
                    answer = time.sleep(step) if isinstance(step, float) else step(client)  # type: ignore[func-returns-value]
                except Exception as error:  # noqa: BLE001 - the generator knows what to make of it
                    go_on: Callable[[], Any] = partial(steps.throw, error)
                else:
                    go_on = partial(steps.send, answer)
                try:
                    step = go_on()
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
    return None


async def arun(steps: Steps[Result], what: str, on_error: OnError = "raise", *, retries: bool = True) -> Result | None:
    """Run the steps in async code; see `run`."""
    with handled(what, on_error), nullcontext() if retries else without_retries():
        step = next(steps)
        client = _open(get_client)
        with _explained(client, what):
            async with client:
                return await take(steps, client, step)
    return None


async def take(steps: Steps[Result], client: PrefectClient, step: Callable[[Any], Any] | float | None = None) -> Result:
    """Take the steps with an open client, from the first one that is not yet done; errors are those of the client.

    They are shielded as one: what has been sent when its caller is cancelled is known to the generator, too.
    """

    async def rest() -> Result:
        next_step = next(steps) if step is None else step
        while True:
            try:
                answer = await (asyncio.sleep(next_step) if isinstance(next_step, float) else next_step(client))
            except Exception as error:  # noqa: BLE001 - the generator knows what to make of it
                go_on: Callable[[], Any] = partial(steps.throw, error)
            else:
                go_on = partial(steps.send, answer)
            try:
                next_step = go_on()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    return await shielded(rest())


def _open(make: Callable[..., Any]) -> Any:  # noqa: ANN401 - either kind of client
    """Return the client of the run, or one of our own.

    In a forked child, that of the run reads from the parent's connection, and gets its answers. One that its run has closed,
    in a thread that outlives it, cannot be opened again. And one of another server than the settings name is not meant.
    """
    try:
        client, address = make(), get_current_settings().api.url
        is_usable = os.getpid() == _PROCESS and not client._closed  # noqa: SLF001 - nothing public tells
        if is_usable and (not address or client.api_url == httpx.URL(f"{address.rstrip('/')}/")):
            return client
        # The client of a run has None here.
        return make(httpx_settings={})
    except (OSError, ImportError, ValueError, RuntimeError, httpx.InvalidURL) as error:
        # Not "from error": some of their messages quote a credential.
        raise StoreError(f"no Prefect server to talk to: {unusable_setting(error)}") from None


@contextmanager
def _explained(client: Client, what: str) -> Iterator[None]:
    """Turn what Prefect's client raises into one error that says what failed where, and quotes no credential."""
    try:
        yield
    except httpx.HTTPError as error:
        failed = request_error(error, client.api_url, what)
        raise StoreError(f"could not {what}: {failed}{_notes(error)}", failed.status) from None
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"could not {what}: the server's answer cannot be read{_notes(error)}") from error
    except RuntimeError as error:
        # The run has closed its client meanwhile.
        raise StoreError(f"could not {what}: {error}{_notes(error)}") from error
    except StoreError as error:
        raise StoreError(f"{error}{_notes(error)}", error.status) from error


def _notes(error: Exception) -> str:
    """Return what a helper had to add to an error."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


@contextmanager
def handled(what: str, on_error: OnError) -> Iterator[None]:
    """Log any error instead of raising it, if so asked."""
    if on_error not in ("raise", "log"):
        raise ValueError(f"on_error = {on_error!r} is neither 'raise' nor 'log'")
    try:
        yield
    except Exception as error:
        if on_error == "raise":
            raise
        log_failure(what, error)


def log_failure(what: str, error: Exception) -> None:
    """Log that a helper failed, in the log of the run if there is one."""
    try:
        logger: logging.Logger | logging.LoggerAdapter[Any] = get_run_logger()
    except MissingContextError:
        logger = logging.getLogger("prefect_artifact_retention")
    text = printable(f"{type(error).__name__}: {error}"[:MAX_LOGGED_CHARS])
    logger.warning("Could not %s, and goes on without: %s", what, text)
