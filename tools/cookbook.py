"""The verdicts of docs/cookbook.md: the policies of each recipe, applied to the versions of its example.

A table lists versions in the columns `key`, `created`, `type` and `metadata`, and gains their verdicts. Where a recipe says
that a key has "a version every N hours since …", the table is made from that, and shows the versions that are kept.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect_artifact_retention.policies import RetentionPolicy, Version, load_policies
from prefect_artifact_retention.policies.evaluation import judge as judge_key
from prefect_artifact_retention.policies.loading import select_policy, type_conflict

from tools.reference import Row, markdown

NOW = datetime(2026, 11, 30, 4, tzinfo=UTC)
"""When all examples are evaluated: a Monday."""

WHEN = "%Y-%m-%d %H:%M"
RHYTHM = re.compile(r"`([a-z0-9-]+)` has a version every (\d+) hours? since ([\d-]+ \d+:\d+)")
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
OUTCOME = ("verdict", "policy", "why")
UNKEYED = "no key"


def renew_verdicts(page: str) -> str:
    """Evaluate the example of every recipe anew."""
    return "\n## ".join(renew_recipe(part) for part in recipes(page))


def recipes(page: str) -> list[str]:
    """The page in parts, from one heading to the next; the first one is the introduction."""
    return page.split("\n## ")


def renew_recipe(recipe: str) -> str:
    """Evaluate the example of one recipe anew; an introduction has none."""
    if "```toml" not in recipe:
        return recipe
    policies = load_policies(tomllib.loads(configuration(recipe))["policies"], source="docs/cookbook.md")
    rhythm = RHYTHM.search(recipe)
    table = markdown(kept_of_rhythm(rhythm, policies) if rhythm else listed(recipe, policies))
    return TABLE.sub(lambda _: table, recipe, count=1)


def configuration(recipe: str) -> str:
    """The configuration that a recipe shows."""
    return recipe.split("```toml\n")[1].partition("```\n")[0]


def kept_of_rhythm(rhythm: re.Match[str], policies: Sequence[RetentionPolicy]) -> Iterator[Row]:
    """The versions of one key that stay, and how many go."""
    key, hours, since = rhythm.groups()
    versions: list[Version] = []
    created = datetime.strptime(since, WHEN).replace(tzinfo=UTC)
    while created <= NOW:
        versions.append(Version(UUID(int=len(versions) + 1), key, created, created, "markdown"))
        created += timedelta(hours=int(hours))
    outcomes = judge(versions, policies)
    yield "created", "verdict", "why"
    for version in reversed(versions):
        verdict, _policy, why = outcomes[version.id]
        if verdict == "keep":
            yield f"{version.created:{WHEN}}", verdict, why
    gone = sum(verdict == "delete" for verdict, *_ in outcomes.values())
    yield f"the other {gone:,}", "delete", "no rule keeps them"


def listed(recipe: str, policies: Sequence[RetentionPolicy]) -> Iterator[Row]:
    """The rows of a table that lists its versions, each with its verdict."""
    lines = TABLE.search(recipe)
    if not lines:
        raise ValueError(f"no table of versions: {recipe[:60]}")
    head, _, *body = ([cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines[0].splitlines())
    given = [name for name in head if name not in OUTCOME]
    rows = [dict(zip(head, cells, strict=False)) for cells in body]
    versions = [read_version(number, row) for number, row in enumerate(rows, start=1)]
    outcomes = judge(versions, policies)
    yield (*given, *OUTCOME)
    for row, version in zip(rows, versions, strict=True):
        yield (*(row[name] for name in given), *outcomes[version.id])


def read_version(number: int, row: Mapping[str, str]) -> Version:
    """The version that a row of a table describes."""
    created = datetime.strptime(row["created"], WHEN).replace(tzinfo=UTC)
    key = None if row["key"] == UNKEYED else row["key"].strip("`")
    kind = row.get("type", "markdown")
    metadata = dict(entry.strip("`").split(" = ") for entry in row.get("metadata", "").split(", ") if entry)
    return Version(UUID(int=number), key, created, created, None if kind == "none" else kind, metadata=metadata)


def judge(versions: Iterable[Version], policies: Sequence[RetentionPolicy]) -> dict[UUID, Row]:
    """The verdict, the policy and the reasons of each version by its id."""
    collections: defaultdict[str | None, list[Version]] = defaultdict(list)
    for version in sorted(versions, key=lambda version: version.created, reverse=True):
        collections[version.key].append(version)
    outcomes: dict[UUID, Row] = {}
    for key, members in collections.items():
        policy = select_policy(policies, key, members[0].type)
        if policy is None:
            outcomes |= {version.id: ("keep", "none: unmanaged", "") for version in members}
            continue
        conflict = "" if key is None else type_conflict(policies, key, members[0].type, {member.type for member in members})
        for verdict in judge_key(members, policy, now=NOW, conflict=conflict):
            outcomes[verdict.version.id] = ("keep" if verdict.keep else "delete", policy.name, "; ".join(verdict.reasons))
    return outcomes
