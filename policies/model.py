"""The value types: `Version` (one artifact row), `Versions` (all of one key), `Verdict` and `RetentionPolicy`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from operator import itemgetter
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, overload
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from prefect_artifact_retention.policies.formatting import days, printable
from prefect_artifact_retention.policies.globs import covers, impossible
from prefect_artifact_retention.policies.periods import CALENDAR
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

RESULT = "result"
"""The type of artifacts without a key in which Prefect 2 kept the results of runs; those of Prefect 3 have no type."""


LINK = "link"
TYPES = ("markdown", "table", "progress", "image", LINK, RESULT)
"""The artifact types that Prefect has names for; producers may have others."""


class Version(NamedTuple):
    """One artifact row.

    Attributes:
        id: The artifact's id.
        key: Its key; None for an artifact without one.
        created: When the row was created, by the server's clock.
        updated: When it was last changed, by the server's clock.
        type: The artifact type (`markdown`, `table`, ...).
        size: Bytes of its data as Prefect stores it: as JSON, as Python's `json.dumps` writes it.
        flow_run_id: The flow run that wrote it.
        task_run_id: The task run that wrote it.
        metadata: The metadata that its producer set; a store may leave out all but the `retention-` entries.
    """

    id: UUID
    key: str | None
    created: datetime
    updated: datetime
    type: str | None = None
    size: int = 0
    flow_run_id: UUID | None = None
    task_run_id: UUID | None = None
    metadata: Mapping[str, str] = MappingProxyType({})

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Version {self.key!r} {self.created:%Y-%m-%dT%H:%M:%S} {self.id}>"


class Versions(Sequence[Version]):
    """The distinct versions of one key (or artifacts without a key), the newest first by (created, id), stored by columns.

    A large run has millions of them and looks at few, so a `Version` is built only when it is accessed.

    Attributes:
        key: The key of all of them.
        ids: The `id` of each; the other columns are likewise attributes of `Version`.
        controlled: The indexes of those that have metadata.
    """

    __slots__ = (
        "_columns",
        "controlled",
        "created",
        "flow_run_ids",
        "ids",
        "key",
        "sizes",
        "task_run_ids",
        "types",
        "updated",
    )

    def __init__(self, key: str | None, columns: Sequence[Sequence[Any]]) -> None:
        """Sort the columns of distinct versions: those of a `Version`, in its order, without the key.

        Raises:
            ValueError: The columns differ in length.
        """
        ids, created, *_ = columns
        if any(len(column) != len(ids) for column in columns):
            raise ValueError("columns of different lengths")
        order = sorted(range(len(ids)), key=[*zip(created, ids, strict=True)].__getitem__, reverse=True)
        if len(order) > 1:
            in_order = itemgetter(*order)
            columns = [in_order(column) for column in columns]
        self.key = key
        self._columns = columns
        self.ids: Sequence[UUID] = columns[0]
        self.created: Sequence[datetime] = columns[1]
        self.updated: Sequence[datetime] = columns[2]
        self.types: Sequence[str | None] = columns[3]
        self.sizes: Sequence[int] = columns[4]
        self.flow_run_ids: Sequence[UUID | None] = columns[5]
        self.task_run_ids: Sequence[UUID | None] = columns[6]
        self.controlled = [index for index, metadata in enumerate(columns[7]) if metadata]

    @classmethod
    def of(cls, versions: Iterable[Version]) -> Versions:
        """Sort versions, and drop duplicates: a listing that shifts while it is read may repeat a version.

        Raises:
            ValueError: The versions have more than one key.
        """
        if isinstance(versions, Versions):
            return versions
        rows = {version.id: version for version in versions}.values()
        ids, keys, *columns = [*zip(*rows, strict=True)] or [()] * len(Version._fields)
        if any(key != keys[0] for key in keys):
            raise ValueError(f"versions of more than one key: {keys[0]!r} and others")
        return cls(keys[0] if keys else None, [ids, *columns])

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Version: ...

    @overload
    def __getitem__(self, index: slice) -> list[Version]: ...

    def __getitem__(self, index: int | slice) -> Version | list[Version]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        version_id, *others = (column[index] for column in self._columns)
        return Version(version_id, self.key, *others)

    def first_until(self, moment: datetime) -> int:
        """Return the lowest index of a version that was created at a moment or before."""
        return bisect_left(self.created, True, key=lambda created: created <= moment)  # noqa: FBT003 - the value sought

    def from_index(self, index: int) -> Versions:
        """Return the versions from an index on, which are the older ones."""
        return Versions(self.key, [column[index:] for column in self._columns])

    def metadata(self, index: int) -> Mapping[str, str]:
        """Return the metadata of the version at an index."""
        metadata: Mapping[str, str] = self._columns[7][index]
        return metadata


class Verdict(NamedTuple):
    """Keep or delete one version, and why.

    Attributes:
        version: The version judged.
        keep: Whether it stays.
        reasons: All the reasons as text, the same in the log, the report and the command line.
        rules: The name of the rule behind each reason, in the same order (a policy field, or `latest`, `hold`, ...).
    """

    version: Version
    keep: bool
    reasons: tuple[str, ...]
    rules: tuple[str, ...]


def refuse_bool(value: object) -> object:
    """Refuse true and false where a number is expected: bool is an int in Python."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic reports ValueErrors
    return value


MAX_COUNT = 1_000_000
MAX_DAYS = 36_525
"""A higher number in a policy is taken for a mistake."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT, strict=True), BeforeValidator(refuse_bool)]
Days = Annotated[float, Field(ge=0, le=MAX_DAYS, strict=True, allow_inf_nan=False), BeforeValidator(refuse_bool)]


class RetentionPolicy(BaseModel):
    """Which versions of which keys are kept. A number of 0 switches its rule off.

    The keep rules form a union: a version is deleted only if no rule keeps it. The latest version of a key, held versions,
    versions of unfinished runs, versions newer than the cleanup, and results of runs are always kept (docs/policies.md, "Who
    decides").

    Raises:
        pydantic.ValidationError: A value is out of bounds, or two fields contradict each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(title="Name", description="Unique; used in reports.", min_length=1, max_length=100)
    match_keys: list[str] = Field(
        default=["*"],
        title="Match keys",
        description="Globs (* ? [abc]) of the keys that this policy is for; the whole key, which has only a-z, 0-9 and -.",
        min_length=1,
    )
    exclude_keys: list[str] = Field(
        default=[], title="Exclude keys", description="Globs of keys that go on to the next policy."
    )
    match_types: list[str] = Field(
        default=[],
        title="Match types",
        description="Only keys whose latest version is of one of these artifact types; empty means any.",
    )
    unkeyed: bool = Field(
        default=False,
        title="Unkeyed",
        description="This policy is for artifacts without a key; only keep_within_days and expire_after_days apply.",
    )
    keep_all: bool = Field(default=False, title="Keep all", description="Nothing that it matches is ever deleted.")
    keep_last: Count = Field(default=0, title="Keep last", description="Keep the N newest versions. 0 is off.")
    keep_within_days: Days = Field(
        default=0, title="Keep within days", description="Keep every version of at most this age. 0 is off."
    )
    keep_hourly: Count = Field(default=0, title="Keep hourly", description="Keep the newest of N hours. 0 is off.")
    keep_daily: Count = Field(default=0, title="Keep daily", description="Keep the newest of N days. 0 is off.")
    keep_weekly: Count = Field(default=0, title="Keep weekly", description="Keep the newest of N ISO weeks. 0 is off.")
    keep_monthly: Count = Field(default=0, title="Keep monthly", description="Keep the newest of N months. 0 is off.")
    keep_yearly: Count = Field(default=0, title="Keep yearly", description="Keep the newest of N years. 0 is off.")
    timezone: str = Field(
        default="UTC", title="Time zone", description="IANA time zone of the calendar rules, such as Europe/Zurich."
    )
    grace_days: Days = Field(
        default=0, title="Grace days", description="Keep a version this long after a newer one replaced it. 0 is off."
    )
    keep_oldest: bool = Field(default=False, title="Keep oldest", description="Also keep the oldest version.")
    expire_after_days: Days = Field(
        default=0,
        title="Expire after days",
        description="Hard limit: older versions go even if a keep rule keeps them (the latest stays). 0 is off.",
    )
    drop_idle_keys_after_days: Days = Field(
        default=0,
        title="Drop idle keys after days",
        description="Delete the whole key, its latest included, when it has had no new version for longer than this, and no "
        "update of its latest one. 0 is off.",
    )
    offload_larger_than_kb: Count = Field(
        default=0,
        title="Offload larger than kB",
        description="Move the data of markdown and table versions that stay and have more kB (1,000 bytes) than this to the "
        "archive; the version keeps a note of where they are. Never of the latest. 0 is off.",
    )

    @field_validator("name")
    @classmethod
    def _one_printable_line(cls, name: str) -> str:
        if not name.strip() or not name.isprintable():
            raise ValueError("must be one line of visible text")
        return name

    @field_validator("match_keys", "exclude_keys")
    @classmethod
    def _possible_globs(cls, globs: list[str]) -> list[str]:
        if problems := [problem for glob in globs if (problem := impossible(glob))]:
            raise ValueError("; ".join(problems))
        return globs

    @field_validator("match_types")
    @classmethod
    def _exact_types(cls, types: list[str]) -> list[str]:
        for kind in types:
            if kind not in TYPES and (meant := kind.strip().lower()) in TYPES:
                raise ValueError(f"no artifact is of type {kind!r}; did you mean {meant!r}?")
        return types

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("is no IANA time zone (such as UTC or Europe/Zurich)") from None
        return name

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> RetentionPolicy:
        if problems := list(self._contradictions()):
            raise ValueError("\n".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        """Describe each contradiction between fields, with their values."""
        given = {name: value for name, value in self if value != type(self).model_fields[name].default}
        if self.keep_all:
            yield from _beside(given, "keep_all = true", allowed=("name", "keep_all", *SELECTORS))
        elif self.unkeyed:
            yield from _beside(given, "unkeyed = true", allowed=("name", "unkeyed", *AGE_RULES))
        if not any(given.get(rule) for rule in KEEP_RULES):
            yield f"no keep rule: set one of {', '.join(KEEP_RULES)}"
        if all(any(covers(glob, pattern) for glob in self.exclude_keys) for pattern in self.match_keys):
            yield f"exclude_keys = {self.exclude_keys} excludes all of match_keys = {self.match_keys}"
        if 0 < self.expire_after_days < self.keep_within_days:
            yield (
                f"keep_within_days = {self.keep_within_days:g} is longer than expire_after_days = {self.expire_after_days:g}"
            )
        if 0 < self.drop_idle_keys_after_days < self.keep_within_days:
            yield (
                f"drop_idle_keys_after_days = {self.drop_idle_keys_after_days:g} is shorter than "
                f"keep_within_days = {self.keep_within_days:g}"
            )
        if self.keep_oldest and self.expire_after_days:
            yield f"keep_oldest = true contradicts expire_after_days = {self.expire_after_days:g}"

    def matches(self, key: str | None, latest_type: str | None) -> bool:
        """Whether this policy selects the collection `key` (None: the artifacts without a key)."""
        if key is None or self.unkeyed:
            return key is None and self.unkeyed
        return (
            any(fnmatchcase(key, glob) for glob in self.match_keys)
            and not any(fnmatchcase(key, glob) for glob in self.exclude_keys)
            and (not self.match_types or latest_type in self.match_types)
        )

    def keeps_beyond(self, age_days: float) -> bool:
        """Whether a rule of this policy keeps versions for longer than `age_days`; latest and protected versions aside."""
        if self.keep_all:
            return True
        bounded = self.expire_after_days and self.expire_after_days <= age_days
        by_rank = any(getattr(self, rule) for rule in KEEP_RULES if rule != "keep_within_days") or self.keep_oldest
        # The grace of a version begins with its replacement, at whatever age.
        return not bounded and bool(by_rank or self.grace_days or self.keep_within_days > age_days)

    def describe(self) -> str:
        """Describe in one sentence which keys this policy selects and which versions it keeps."""
        return f"{self._subject()}: {self._rules()}."

    def _subject(self) -> str:
        if self.unkeyed:
            return "Artifacts without a key"
        subject = "Every key" if "*" in self.match_keys else "Keys " + ", ".join(self.match_keys)
        if self.exclude_keys:
            subject += " except " + ", ".join(self.exclude_keys)
        if self.match_types:
            subject += " whose latest version is of type " + " or ".join(self.match_types)
        return printable(subject)

    def _rules(self) -> str:
        if self.keep_all:
            return "keep everything"
        kept = []
        if self.keep_last:
            kept.append(f"the last {self.keep_last}")
        if self.keep_within_days:
            kept.append(f"all of the last {days(self.keep_within_days)}")
        kept += [period.describe(number) for period in CALENDAR if (number := getattr(self, period.rule))]
        if any(getattr(self, period.rule) for period in CALENDAR):
            kept[-1] += f" ({self.timezone})"
        if self.keep_oldest:
            kept.append("the oldest")
        if self.grace_days:
            kept.append(f"each for {days(self.grace_days)} after it was superseded")
        sentence = "keep " + ", ".join(kept)
        if self.expire_after_days:
            sentence += f"; nothing{'' if self.unkeyed else ' but the latest'} beyond {days(self.expire_after_days)}"
        if self.drop_idle_keys_after_days:
            sentence += f"; drop a key that is idle for more than {days(self.drop_idle_keys_after_days)}"
        if self.offload_larger_than_kb:
            sentence += f"; move data of more than {self.offload_larger_than_kb} kB to the archive, but for the latest"
        return sentence


SELECTORS = ("match_keys", "exclude_keys", "match_types")
AGE_RULES = ("keep_within_days", "expire_after_days")
KEEP_RULES = ("keep_all", "keep_last", "keep_within_days", *(period.rule for period in CALENDAR))


def _beside(given: Mapping[str, object], switch: str, *, allowed: tuple[str, ...]) -> Iterator[str]:
    for name, value in given.items():
        if name not in allowed:
            yield f"{name} = {value!r} has no meaning beside {switch}"
