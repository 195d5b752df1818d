"""Archives for tests: versions as a run archives them, parts of them, JSON texts that are hard to keep, and failing disks."""

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect_artifact_retention.stores.archive.archive import Archive
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, PartManifest, RunManifest

NIGHT = datetime(2026, 11, 3, 2, 0, tzinfo=UTC)
SERVER = "http://prefect.example/api"

JSON_TEXTS = {
    "infinite": "1e400",
    "negative zero": "-0",
    "negative zero as a fraction": "-0.0",
    "trailing zero": "1.10",
    "exponent": "1E2",
    "beyond a double": "1.7976931348623159e308",
    "beyond 64 bits": "12345678901234567890",
    "too many digits for a double": "0.1234567890123456789",
    "5,000 digits": "9" * 5000,
    "duplicates": '{"a": 1, "a": 2}',
    "blanks": ' { "b" :\t1 ,\n"a": [ ] } ',
    "zero character": r'"\u0000"',
    "lone surrogate": r'"\ud800"',
    "surrogate pair": r'"\ud83d\ude00"',
    "other scripts": '"Grüße 東京 \U0001f600"',
    "null": "null",
    "empty": "{}",
    "not a number": "NaN",
}
"""The kinds of JSON text that a database keeps to the byte, and a parser does not."""

_numbers = count(1)


def archived(key: str | None = "report", number: int = 0, **changes: Any) -> ArchivedVersion:  # noqa: ANN401
    """A version as a run archives it, each another one, a second younger than the one before; of a number, always the same."""
    number = number or next(_numbers)
    data = f'"text {number}"'
    plain = ArchivedVersion(
        id=UUID(int=number << 64 | 0x4000_8000_0000_0000),
        flow_run_id=UUID(int=number + 1),
        task_run_id=None,
        key=key,
        type="markdown",
        description=None,
        created=datetime(2026, 9, 1, tzinfo=UTC) + timedelta(seconds=number, microseconds=7),
        updated=datetime(2026, 9, 2, tzinfo=UTC),
        data=data,
        metadata="null",
        size=len(data),
        was_latest=False,
        policy="nightly",
        policy_digest="d1gest",
        reasons=("superseded 40 days ago",),
        rules=("keep_last",),
        run_id="run-1",
        run_name="quick-fox",
        decided_at=NIGHT,
        approved_by=None,
        server=SERVER,
    )
    return plain._replace(**changes)


def by(run: int, versions: Iterable[ArchivedVersion], **changes: Any) -> list[ArchivedVersion]:  # noqa: ANN401
    """Versions as another run archives them, that many nights later."""
    when = NIGHT + timedelta(days=run - 1)
    return [each._replace(run_id=f"run-{run}", run_name=f"fox-{run}", decided_at=when, **changes) for each in versions]


def columns(versions: Sequence[ArchivedVersion]) -> dict[str, Sequence[Any]]:
    """Versions by columns, as they are added to a part."""
    return {name: [version[place] for version in versions] for place, name in enumerate(ArchivedVersion._fields)}


def write(archive: Archive, *groups: Sequence[ArchivedVersion], **options: Any) -> PartManifest:  # noqa: ANN401
    """Publish a part of some row groups, for the run of their first version."""
    run_id = groups[0][0].run_id
    with archive.stage(f"{run_id}-{archive.first_free_number(run_id):05}", **options) as part:
        for group in groups:
            part.add(columns(group))
        return part.publish()


def end(archive: Archive, run: int, *, spared: Sequence[UUID] = (), ended_at: datetime = NIGHT) -> None:
    """Publish what a run did in all."""
    parts = [part for part in archive.manifests() if part.run_id == f"run-{run}"]
    archive.publish_run(
        RunManifest(
            run_id=f"run-{run}",
            run_name=f"fox-{run}",
            server=SERVER,
            ended_at=ended_at,
            outcome="completed",
            parts=[part.name for part in parts],
            versions=sum(part.rows for part in parts),
            deleted=sum(part.rows for part in parts) - len(spared),
            spared=spared,
        )
    )


def read(archive: Archive, *query: Any) -> Iterator[ArchivedVersion]:  # noqa: ANN401
    """The versions of an archive, one by one."""
    for batch in archive.versions(*query):
        yield from batch


def plain(version: ArchivedVersion) -> ArchivedVersion:
    """A version with lists as they are read."""
    return version._replace(reasons=[*version.reasons], rules=[*version.rules])


def ledger_ids(archive: Archive, *query: Any) -> list[UUID]:  # noqa: ANN401
    """The ids of a ledger, in its order."""
    return [UUID(each) for each in archive.ledger(*query)["id"].to_pylist()]


class Calls:
    """Counts the calls to the file system below a folder, as Python's audit events tell them, and acts at one of them."""

    folder = ""
    """The folder, while calls are counted."""
    seen = 0
    act: Callable[[], None] | None = None
    at = 0

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        """See `sys.addaudithook`."""
        if not self.folder or event not in {"open", "os.link", "os.remove", "os.mkdir", "os.scandir", "os.listdir"}:
            return
        if not any(isinstance(each, str | os.PathLike) and str(each).startswith(self.folder) for each in arguments):
            return
        self.seen += 1
        if self.act and self.seen == self.at:
            self.act()


CALLS = Calls()
sys.addaudithook(CALLS.hook)


@contextmanager
def counted(folder: Path, at: int = 0, act: Callable[[], None] | None = None) -> Iterator[Calls]:
    """Count the calls below a folder, and do something at one of them."""
    CALLS.seen, CALLS.at, CALLS.act, CALLS.folder = 0, at, act, str(folder)
    try:
        yield CALLS
    finally:
        CALLS.folder = ""


def fail() -> None:
    """Let a call fail as a bad disk does."""
    raise OSError(errno.EIO, "Input/output error")
