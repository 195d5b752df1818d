"""Publishes artifacts as Prefect's own `create_*_artifact` do, with a TTL, a hold and other metadata.

Each stores the same data as Prefect's own, for it is Prefect that formats them, in one request, and returns the id. Prefect's
own drop metadata, publish nothing where a sync one is called in an async flow, and only warn outside of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from decimal import Decimal
from typing import Any, Unpack
from uuid import UUID

from prefect.artifacts import (
    Artifact,
    ImageArtifact,
    LinkArtifact,
    MarkdownArtifact,
    ProgressArtifact,
    TableArtifact,
)
from prefect_artifact_retention.tasks.producers.artifacts import Retention, check_key, new_artifact, retention_metadata
from prefect_artifact_retention.tasks.producers.requests import OnError, Steps, arun, created, run

Table = dict[str, list[Any]] | list[dict[str, Any]] | list[list[Any]]


class Options(Retention, total=False):
    """The options of every helper, besides those of `Retention`.

    Attributes:
        on_error: `raise` raises a `StoreError` if the server cannot be reached or refuses the artifact, and a `ValueError` if
            an argument cannot be meant; `log` logs either and returns None, so that a report never fails its flow. Nor
            does it hold the flow up: what fails is not sent again, which Prefect's client else does for two minutes.
    """

    on_error: OnError


def parted(options: Options) -> tuple[OnError, Retention]:
    """Return what to do about errors, and what goes into the metadata.

    Raises:
        TypeError: There is no such option. As any error of the source code, it is none to be logged.
    """
    if unknown := options.keys() - Retention.__annotations__.keys() - {"on_error"}:
        raise TypeError(f"there is no option {min(unknown)!r}: there are {', '.join(Retention.__annotations__)} and on_error")
    retention: Any = {name: value for name, value in options.items() if name != "on_error"}
    return options.get("on_error", "raise"), retention


def publish_markdown(
    markdown: str, key: str | None = None, description: str | None = None, **options: Unpack[Options]
) -> UUID | None:
    """Publish a markdown artifact; see `Options`."""
    return _publish(lambda: MarkdownArtifact(markdown=markdown), key, description, **options)


async def apublish_markdown(
    markdown: str, key: str | None = None, description: str | None = None, **options: Unpack[Options]
) -> UUID | None:
    """Publish a markdown artifact in async code; see `Options`."""
    return await _apublish(lambda: MarkdownArtifact(markdown=markdown), key, description, **options)


def publish_table(
    table: Table, key: str | None = None, description: str | None = None, **options: Unpack[Options]
) -> UUID | None:
    """Publish a table artifact: rows, or columns; NaN becomes null. See `Options`."""
    return _publish(lambda: TableArtifact(table=table), key, description, **options)


async def apublish_table(
    table: Table, key: str | None = None, description: str | None = None, **options: Unpack[Options]
) -> UUID | None:
    """Publish a table artifact in async code: rows, or columns; NaN becomes null. See `Options`."""
    return await _apublish(lambda: TableArtifact(table=table), key, description, **options)


def publish_link(
    link: str,
    link_text: str | None = None,
    key: str | None = None,
    description: str | None = None,
    **options: Unpack[Options],
) -> UUID | None:
    """Publish a link artifact, which Prefect stores as markdown; see `Options`."""
    return _publish(lambda: LinkArtifact(link=link, link_text=link_text), key, description, **options)


async def apublish_link(
    link: str,
    link_text: str | None = None,
    key: str | None = None,
    description: str | None = None,
    **options: Unpack[Options],
) -> UUID | None:
    """Publish a link artifact in async code; see `publish_link`."""
    return await _apublish(lambda: LinkArtifact(link=link, link_text=link_text), key, description, **options)


def publish_image(
    image_url: str, key: str | None = None, description: str | None = None, **options: Unpack[Options]
) -> UUID | None:
    """Publish an image artifact, by the address of the image; see `Options`."""
    return _publish(lambda: ImageArtifact(image_url=image_url), key, description, **options)


async def apublish_image(
    image_url: str, key: str | None = None, description: str | None = None, **options: Unpack[Options]
) -> UUID | None:
    """Publish an image artifact in async code, by the address of the image; see `Options`."""
    return await _apublish(lambda: ImageArtifact(image_url=image_url), key, description, **options)


def publish_progress(
    progress: float, key: str | None = None, description: str | None = None, **options: Unpack[Options]
) -> UUID | None:
    """Publish a progress artifact, in percent; see `Options`. To keep one up to date, use `progress`."""
    return _publish(lambda: ProgressArtifact(progress=progress), key, description, **options)


async def apublish_progress(
    progress: float, key: str | None = None, description: str | None = None, **options: Unpack[Options]
) -> UUID | None:
    """Publish a progress artifact in async code, in percent; see `Options`. To keep one up to date, use `progress`."""
    return await _apublish(lambda: ProgressArtifact(progress=progress), key, description, **options)


async def publish_artifact(  # noqa: PLR0913 - the fields of an artifact
    data: object,
    *,
    type: str,  # noqa: A002 - Prefect's name of the field
    key: str | None = None,
    description: str | None = None,
    hold: bool | date | str | None = False,
    ttl_days: float | Decimal | str | None = None,
    metadata: Mapping[str, str] | None = None,
    on_error: OnError = "raise",
) -> UUID | None:
    """Publish an artifact of any type, with its data as they are to be stored; in async code only.

    Args:
        data: The content, by its type: markdown text, the rows of a table as JSON, a number for progress.
        type: `markdown`, `table`, `image`, `progress` or a type of your own.
        key: The key of which this becomes the latest version.
        description: The description in the UI.
        hold: See `Options`.
        ttl_days: See `Options`.
        metadata: See `Options`.
        on_error: See `Options`.
    """
    retention = Retention(hold=hold, ttl_days=ttl_days, metadata=metadata)
    return await arun(_steps(data, type, key, description, **retention), _what(key), on_error, retries=on_error == "raise")


def _publish(
    make: Callable[[], Artifact], key: str | None, description: str | None, **options: Unpack[Options]
) -> UUID | None:
    on_error, retention = parted(options)
    return run(_formatted(make, key, description, **retention), _what(key), on_error, retries=on_error == "raise")


async def _apublish(
    make: Callable[[], Artifact], key: str | None, description: str | None, **options: Unpack[Options]
) -> UUID | None:
    on_error, retention = parted(options)
    return await arun(_formatted(make, key, description, **retention), _what(key), on_error, retries=on_error == "raise")


def _formatted(
    make: Callable[[], Artifact], key: str | None, description: str | None, **retention: Unpack[Retention]
) -> Steps[UUID]:
    """Publish what one of Prefect's own classes makes of the arguments, whose keys they check less strictly."""
    try:
        artifact = make()
        data = artifact.format(_sync=True)  # type: ignore[call-arg]  # Prefect's own way to call it where a loop runs
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"data cannot be serialized as JSON: {error}") from error
    return (yield from _steps(data, artifact.type, key, description, **retention))


def _steps(
    data: object, kind: str | None, key: str | None, description: str | None, **retention: Unpack[Retention]
) -> Steps[UUID]:
    if key is not None:
        check_key(key)
    metadata = retention_metadata(**retention)
    made = yield from created(new_artifact(data, type=kind, key=key, description=description, metadata=metadata))
    return made.id


def _what(key: str | None) -> str:
    return f"publish an artifact of the key {key!r}" if key else "publish an artifact"
