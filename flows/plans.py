"""A preview that leaves its plan in a file, for `delete --plan`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prefect_artifact_retention.flows.cleanup import plan_only
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import RetentionError, RetentionPolicy
from prefect_artifact_retention.tasks.report import CleanupReport
from prefect_artifact_retention.tasks.shown import plan_of


class Given(NamedTuple):
    """The rules that stand in for the configured ones, which the plan is to be carried out by, too."""

    keep_last: int | None
    keep_within_days: float | None


async def preview_into(
    out: Path, given: Given, settings: RetentionSettings, policies: Sequence[RetentionPolicy], keys: Sequence[str]
) -> CleanupReport:
    """Preview, and write the plan into a file.

    Raises:
        ConfigurationError: The policies are invalid.
        StoreError: The server cannot be reached, or refuses a request.
        RetentionError: The file cannot be written.
    """
    async with plan_only(settings, policies, keys) as run:
        plan = plan_of(run, **given._asdict())
        try:
            await asyncio.to_thread(out.write_text, plan.model_dump_json(indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise RetentionError(f"{out}: cannot be written: {error.strerror}") from None
        return run.report
