"""What policies mean, however they are written: the digest by which they are recognized, and how two lists of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect_artifact_retention.policies.loading import OWN_POLICY
from prefect_artifact_retention.policies.model import SELECTORS, RetentionPolicy

Meaning = Mapping[str, Any]
"""The fields of a policy that differ from their defaults, so that a field that is new in a release changes no meaning."""


def meaning(policies: Sequence[RetentionPolicy]) -> list[Meaning]:
    """Return what each policy means, without the one of the package's own keys: nobody has written that."""
    return [_meaning(policy) for policy in policies if policy != OWN_POLICY]


def _meaning(policy: RetentionPolicy) -> Meaning:
    fields = policy.model_dump(mode="json", exclude_defaults=True)
    # In whatever order, globs and types select the same keys.
    return fields | {name: sorted({*fields[name]}) for name in SELECTORS if isinstance(fields.get(name), list)}


def digest(policies: Sequence[RetentionPolicy]) -> str:
    """Return twelve hexadecimal digits that change with what any policy means, or with their order."""
    return digest_of(meaning(policies))


def digest_of(meanings: Sequence[Meaning]) -> str:
    """Return the digest of policies by what they mean."""
    return hashlib.sha256(json.dumps(meanings, sort_keys=True).encode()).hexdigest()[:12]


def describe_changes(before: Sequence[Meaning], after: Sequence[Meaning]) -> Iterator[str]:
    """Describe how policies differ from earlier ones, a line for each that is new, gone, or has changed."""
    old, new = ({policy["name"]: policy for policy in each} for each in (before, after))
    for name in new:
        if name not in old:
            yield f'policy "{name}" is new'
        elif old[name] != new[name]:
            known = RetentionPolicy.model_fields
            named = [*known, *sorted({*old[name], *new[name]} - known.keys())]
            fields = [field for field in named if old[name].get(field) != new[name].get(field)]
            yield f'policy "{name}": ' + ", ".join(_change(field, old[name], new[name]) for field in fields)
    yield from (f'policy "{name}" is gone' for name in old if name not in new)
    if [name for name in old if name in new] != [name for name in new if name in old]:
        yield f"the order is {', '.join(new)}, and was {', '.join(old)}"


def _change(field: str, old: Meaning, new: Meaning) -> str:
    if field not in RetentionPolicy.model_fields:
        return f"{field}, a field that this release does not have"
    default = RetentionPolicy.model_fields[field].default
    return f"{field} = {new.get(field, default)!r}, was {old.get(field, default)!r}"
