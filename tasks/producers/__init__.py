"""Helpers for those who write artifacts; all that is named here can also be imported from `prefect_artifact_retention`.

- `publishing`: an artifact as Prefect's own helpers make it, with a TTL, a hold and other metadata.
- `appending`: an artifact that grows; many may append to it at once. `entries`: what it consists of.
- `progress`: an artifact that is updated in place while a job runs.
- `holding`: holds on a version, or on a whole key.
- `artifacts`: what all of them send, and what they refuse.
- `requests`: how they send it, in sync and in async code.
"""

from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.tasks.producers.appending import (
    aappend_markdown,
    aappend_rows,
    append_markdown,
    append_rows,
)
from prefect_artifact_retention.tasks.producers.holding import ahold, aholds, arelease, hold, holds, release
from prefect_artifact_retention.tasks.producers.progress import Progress, atrack, progress, track
from prefect_artifact_retention.tasks.producers.publishing import (
    apublish_image,
    apublish_link,
    apublish_markdown,
    apublish_progress,
    apublish_table,
    publish_artifact,
    publish_image,
    publish_link,
    publish_markdown,
    publish_progress,
    publish_table,
)

__all__ = [
    "Progress",
    "StoreError",
    "aappend_markdown",
    "aappend_rows",
    "ahold",
    "aholds",
    "append_markdown",
    "append_rows",
    "apublish_image",
    "apublish_link",
    "apublish_markdown",
    "apublish_progress",
    "apublish_table",
    "arelease",
    "atrack",
    "hold",
    "holds",
    "progress",
    "publish_artifact",
    "publish_image",
    "publish_link",
    "publish_markdown",
    "publish_progress",
    "publish_table",
    "release",
    "track",
]
