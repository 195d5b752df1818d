"""Writes policies as TOML, from which `load_policies` reads the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tomli_w
from prefect_artifact_retention.policies.loading import OWN_POLICY
from prefect_artifact_retention.policies.model import RetentionPolicy


def as_tables(policies: Sequence[RetentionPolicy]) -> list[dict[str, Any]]:
    """Return policies as configuration has them: the fields that differ from their defaults, without the built-in policy."""
    return [policy.model_dump(mode="json", exclude_defaults=True) for policy in policies if policy != OWN_POLICY]


def as_toml(policies: Sequence[RetentionPolicy]) -> str:
    """Return policies as the `[[policies]]` tables of a configuration file."""
    return "\n".join(f"[[policies]]\n{tomli_w.dumps(table)}" for table in as_tables(policies))
