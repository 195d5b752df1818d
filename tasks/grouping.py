"""Grouping: which keys share a prune task, and which of them share a check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prefect_artifact_retention.tasks.rendering import label
from prefect_artifact_retention.tasks.run import KeyPlan

MIN_TASK_DELETIONS = 500
"""Deletions for each task run with several keys, on average. A task run costs the server as much as ten deletions."""

MAX_SHARED_VERSIONS = 2_000
"""Versions of the keys that share a check. With more, reading them takes longer than deleting what is stale."""


def pack(plans: Sequence[KeyPlan], limit: int) -> list[list[KeyPlan]]:
    """Group keys for prune tasks: one key each, or at most `limit` groups with about equally many deletions.

    There are fewer groups if they would have fewer than `MIN_TASK_DELETIONS` deletions on average.
    """
    if len(plans) <= limit:
        return [[plan] for plan in plans]
    number = max(1, min(limit, sum(len(plan.stale) for plan in plans) // MIN_TASK_DELETIONS))
    groups: list[list[int]] = [[] for _ in range(number)]
    weights = [0] * number
    for index in sorted(range(len(plans)), key=lambda index: len(plans[index].stale), reverse=True):
        lightest = weights.index(min(weights))
        groups[lightest].append(index)
        weights[lightest] += len(plans[index].stale)
    # What a time budget cuts off is what the next run begins with, so the order of the plans is kept.
    return [[plans[index] for index in group] for group in sorted(sorted(group) for group in groups if group)]


def group_label(group: Sequence[KeyPlan]) -> str:
    """Name a prune task by its key, or by the number of its keys."""
    return label(group[0].key) if len(group) == 1 else f"{len(group):,} keys from {label(group[0].key)}"


def batches_of_keys(plans: Sequence[KeyPlan], deletions: int) -> Iterator[Sequence[KeyPlan]]:
    """Split keys into batches that share a check, with at most so many deletions; what has no key shares none."""
    batch: list[KeyPlan] = []
    for plan in plans:
        together = [*batch, plan]
        if batch and (
            None in {plan.key, batch[0].key}
            or sum(len(each.stale) for each in together) > deletions
            or sum(each.report.versions for each in together) > MAX_SHARED_VERSIONS
        ):
            yield batch
            together = [plan]
        batch = together
    if batch:
        yield batch
