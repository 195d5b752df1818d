"""Appenders at once, in any order of their requests: whatever was confirmed is in the latest version, once all are done.

The steps of the real helper, one at a time, against a table in memory that does to artifacts what a Prefect server does: a
creation is dated when it arrives, and takes effect later, maybe after others that arrived after it.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.client.schemas.actions import ArtifactCreate
from prefect_artifact_retention.stores.archive.stubs import Stub
from prefect_artifact_retention.tasks.producers import appending
from prefect_artifact_retention.tasks.producers.appending import rows_steps
from prefect_artifact_retention.tasks.producers.requests import Steps

BEGIN = datetime(2026, 5, 20, tzinfo=UTC)
KEPT = 6
"""What a cleanup leaves: more than the appenders that write at once here."""


class Table:
    """The versions of one key, in the order in which they took effect; the last one is the latest."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.clock = 0
        self.arrived: datetime | None = None

    def now(self) -> datetime:
        """A date after all others."""
        self.clock += 1
        return BEGIN + timedelta(milliseconds=self.clock)

    def create_artifact(self, artifact: ArtifactCreate) -> SimpleNamespace:
        """Create a version, dated when its request arrived."""
        created = self.arrived or self.now()
        row = artifact.model_dump(mode="json") | {"id": str(uuid4()), "created": created.isoformat()}
        self.rows.append(row)
        return SimpleNamespace(id=UUID(row["id"]), created=created, key=artifact.key)

    def request(self, _method: str, _path: str, *, json: dict[str, Any], headers: object) -> httpx.Response:
        """List the newest versions by date."""
        del headers
        newest = sorted(self.rows, key=lambda row: row["created"], reverse=True)
        return httpx.Response(200, content=orjson.dumps(newest[json["offset"] :][: json["limit"]]))

    def clean_up(self) -> None:
        """Delete all but the newest."""
        del self.rows[:-KEPT]

    def entries(self) -> list[str]:
        """The entries of the latest version."""
        return [row["name"] for row in json.loads(self.rows[-1]["data"])]


class Appender:
    """A process that appends some entries, one after the other, a step at a time."""

    def __init__(self, table: Table, name: str, number: int) -> None:
        self.table, self.name = table, name
        self.confirmed: list[str] = []
        self.left = [f"{name}-{each}" for each in range(number)]
        self.arrived: datetime | None = None
        self.is_dead = False
        self._steps: Steps[UUID] | None = None
        self._step: Any = None
        self._is_sent = False

    @property
    def is_done(self) -> bool:
        """Whether it has nothing more to do."""
        return self.is_dead or not self.left

    def go_on(self) -> None:
        """Let its next request arrive, or take effect."""
        if self._steps is None:
            self._steps = rows_steps([{"name": self.left[0]}], key="log", description=None, max_rows=1000, max_kb=100)
            self._step = next(self._steps)
        elif not self._is_sent:
            self.arrived, self._is_sent = self.table.now(), True
        else:
            self.table.arrived, self._is_sent = self.arrived, False
            answer = None if isinstance(self._step, float) else self._step(self.table)
            self.table.arrived = None
            try:
                self._step = self._steps.send(answer)
            except StopIteration:
                self.confirmed.append(self.left.pop(0))
                self._steps = None


@pytest.fixture(autouse=True)
def separate_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no appender rely on what another one has read."""
    monkeypatch.setattr(appending, "FRESH_SECONDS", -1)
    yield
    appending.remembered.clear()


def run(appenders: list[Appender], schedule: list[int], *, cleans_up: bool = False) -> None:
    """Let the appenders take steps as scheduled, then in turn; an appender with a negative number dies."""
    for number in schedule:
        appender = appenders[abs(number) % len(appenders)]
        if number < 0:
            appender.is_dead = True
        elif not appender.is_done:
            appender.go_on()
        if cleans_up:
            appender.table.clean_up()
    while alive := [each for each in appenders if not each.is_done]:
        for appender in alive:
            appender.go_on()


schedules = st.lists(st.integers(0, 3), max_size=80)


@pytest.mark.parametrize("cleans_up", [False, True])
@settings(max_examples=100, deadline=None)
@given(schedule=schedules, number=st.integers(1, 3))
def test_whatever_was_confirmed_is_in_the_latest_version(schedule: list[int], number: int, cleans_up: bool) -> None:  # noqa: FBT001
    """Once, and nothing else; also while a cleanup deletes old versions."""
    table = Table()
    appenders = [Appender(table, f"p{each}", number) for each in range(4)]
    run(appenders, schedule, cleans_up=cleans_up)
    assert sorted(table.entries()) == sorted(entry for each in appenders for entry in each.confirmed)
    assert all(len(each.confirmed) == number for each in appenders)


def move(row: dict[str, Any]) -> None:
    """Let the data of a version be in the archive, and a line in their place."""
    row["data"] = json.loads(Stub(UUID(row["id"]), "table", 20_000, BEGIN, "run").text())


@settings(max_examples=100, deadline=None)
@given(schedule=schedules, later=schedules, number=st.integers(1, 3))
def test_versions_in_the_archive_hold_nobody_up_if_the_newest_has_their_entries(
    schedule: list[int], later: list[int], number: int
) -> None:
    """Nor those who append at once: their own ids may be known to nobody any more."""
    table = Table()
    appenders = [Appender(table, f"p{each}", number) for each in range(4)]
    run(appenders, schedule)
    newest = max(table.rows, key=lambda row: row["created"])
    for row in table.rows:
        if row is not newest:
            move(row)
    appending.remembered.clear()
    others = [Appender(table, f"later{each}", number) for each in range(4)]
    run(others, later)
    assert sorted(table.entries()) == sorted(entry for each in (*appenders, *others) for entry in each.confirmed)
    assert all(len(each.confirmed) == number for each in others)


def test_what_is_found_in_the_archive_once_an_entry_is_written_is_left_to_the_next_append() -> None:
    """An error then would let the entry be written twice."""
    table = Table()
    first = Appender(table, "first", 1)
    run([first], [])
    move(table.rows[0])
    # As far below as nobody looks, unless others append, too.
    for _version in range(appending.FIRST_READ):
        table.create_artifact(ArtifactCreate(key="log", type="table", data="[]"))
    appending.remembered.clear()
    appenders = [Appender(table, f"p{each}", 1) for each in range(2)]
    run(appenders, [0, 1] * 20)
    assert sorted(table.entries()) == ["p0-0", "p1-0"]


@settings(max_examples=100, deadline=None)
@given(schedule=st.lists(st.integers(-3, 3), max_size=80))
def test_the_next_append_finds_what_appenders_that_died_have_hidden(schedule: list[int]) -> None:
    """Each dies at most once, at any moment, and loses at most the entry that it was appending."""
    table = Table()
    appenders = [Appender(table, f"p{each}", 3) for each in range(4)]
    run(appenders, schedule)
    last = Appender(table, "last", 1)
    run([last], [])
    confirmed = [entry for each in (*appenders, last) for entry in each.confirmed]
    found = table.entries()
    assert len(found) == len({*found})
    assert {*confirmed} - {*found} == set()
    assert len(found) - len(confirmed) <= sum(each.is_dead for each in appenders)


@pytest.mark.parametrize("number", [33, 40, 64])
def test_more_appenders_at_once_than_fit_into_a_page_lose_nothing(number: int) -> None:
    """One is done before all others, which have read what it has read, create their versions."""
    table = Table()
    run([Appender(table, "seed", 1)], [])
    appenders = [Appender(table, f"p{each}", 1) for each in range(number)]
    for each in appenders:
        for _step in ("begin", "the read arrives", "it is answered"):
            each.go_on()
    first, *others = appenders
    run([first], [])
    for each in others:
        for _step in ("the creation arrives", "it takes effect"):
            each.go_on()
    run(appenders, [])
    assert sorted(table.entries()) == sorted(["seed-0", *(f"p{each}-0" for each in range(number))])


def test_a_version_that_is_not_shown_is_not_confirmed() -> None:
    """As by a server that answers from a copy that lags behind."""
    table = Table()
    run([Appender(table, "before", 1)], [])
    one = Appender(table, "one", 1)
    for _step in range(5):
        one.go_on()
    (shown, hidden), table.rows = table.rows, table.rows[:1]
    for _step in ("the check arrives", "it is answered"):
        one.go_on()
    assert not one.is_done
    table.rows = [shown, hidden]
    run([one], [])
    assert table.entries() == ["before-0", "one-0"]


def test_the_clocks_of_appenders_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version by hand comes after what was there before, also where an appender's clock is ahead of the server's."""
    table = Table()
    with monkeypatch.context() as patch:
        patch.setattr("time.time_ns", lambda: 2**62)
        run([Appender(table, "ahead", 1)], [])
    table.create_artifact(ArtifactCreate(key="log", type="table", data=json.dumps([{"name": "by hand"}])))
    run([Appender(table, "after", 1)], [])
    assert table.entries() == ["ahead-0", "by hand", "after-0"]
