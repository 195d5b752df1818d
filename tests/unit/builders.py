"""Short ways to write a collection, a policy, and verdicts as lines of text."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect_artifact_retention.policies import RetentionPolicy, Verdict, Version

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
"""A Tuesday in ISO week 48."""

_FIRST_DAY = datetime(1, 1, 1, tzinfo=UTC)


def policy(**fields: object) -> RetentionPolicy:
    """A valid policy called "test"."""
    return RetentionPolicy.model_validate({"name": "test", **fields})


def version(  # noqa: PLR0913 - each but the first is rarely given
    created: datetime,
    *,
    number: int | None = None,
    key: str | None = "report",
    metadata: Mapping[str, str] | None = None,
    flow_run_id: UUID | None = None,
    task_run_id: UUID | None = None,
    kind: str | None = "markdown",
    updated: datetime | None = None,
) -> Version:
    """A version whose id follows from its time unless `number` gives it; never updated, unless it is said when."""
    identity = UUID(int=(created - _FIRST_DAY) // timedelta(microseconds=1) if number is None else number)
    return Version(
        identity,
        key,
        created,
        updated or created,
        type=kind,
        metadata=metadata or {},
        flow_run_id=flow_run_id,
        task_run_id=task_run_id,
    )


def days_old(  # noqa: PLR0913 - as above
    age: float,
    *,
    key: str | None = "report",
    metadata: Mapping[str, str] | None = None,
    flow_run_id: UUID | None = None,
    task_run_id: UUID | None = None,
    kind: str | None = "markdown",
) -> Version:
    """A version created `age` days before NOW."""
    created = NOW - timedelta(days=age)
    return version(created, key=key, metadata=metadata, flow_run_id=flow_run_id, task_run_id=task_run_id, kind=kind)


def history(*ages: float, key: str | None = "report") -> list[Version]:
    """Versions of these ages in days."""
    return [days_old(age, key=key) for age in ages]


def with_metadata(age: float, **metadata: str) -> Version:
    """A version of this age whose producer set `retention-…` metadata: ttl_days="1" is retention-ttl-days = "1"."""
    return days_old(age, metadata={f"retention-{name.replace('_', '-')}": text for name, text in metadata.items()})


def by_age(verdicts: Iterable[Verdict], *, now: datetime = NOW) -> list[str]:
    """Verdicts as lines that begin with the age in days."""
    return [_line(f"{(now - verdict.version.created) / timedelta(days=1):g}d", verdict) for verdict in verdicts]


def by_time(verdicts: Iterable[Verdict]) -> list[str]:
    """Verdicts as lines that begin with the time of creation in UTC."""
    return [_line(f"{verdict.version.created:%Y-%m-%d %H:%M}", verdict) for verdict in verdicts]


def kept(verdicts: Sequence[Verdict]) -> set[UUID]:
    """The ids that stay."""
    return {verdict.version.id for verdict in verdicts if verdict.keep}


def _line(label: str, verdict: Verdict) -> str:
    return f"{label} {'KEEP' if verdict.keep else 'DELETE'} {'; '.join(verdict.reasons)}"
