"""What producers say of one version is stored as it is read, or refused where they say it."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import pytest
from fake import FakeServer
from prefect_artifact_retention.policies.control import Control, read_control
from prefect_artifact_retention.tasks.publish import publish_artifact

NOW = datetime(2026, 5, 20, 12, tzinfo=UTC)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server in memory, to which Prefect talks."""
    with FakeServer().listening() as fake, fake.active():
        yield fake


async def published(server: FakeServer, **control: object) -> Control:
    """What a cleanup reads of a version that is published like this."""
    version_id = await publish_artifact("x", type="markdown", key="report", **control)
    return read_control(server.database.artifacts[version_id]["metadata_"] or {}, NOW)


@pytest.mark.parametrize(
    ("hold", "held"),
    [
        (True, "held"),
        ("true", "held"),
        (" True ", "held"),
        (date(2030, 12, 31), "held until 2030-12-31"),
        ("2030-12-31", "held until 2030-12-31"),
        (datetime(2030, 12, 31, 23), "held until 2030-12-31"),  # noqa: DTZ001 - without a zone, the day is meant
        (datetime(2030, 12, 31, 23, tzinfo=timezone(-timedelta(hours=8))), "held until 2031-01-01"),
        (False, None),
        ("false", None),
        (None, None),
    ],
)
async def test_a_hold_is_read_as_it_was_meant(server: FakeServer, hold: object, held: str | None) -> None:
    """As a bool, a date, or the text of either."""
    assert await published(server, hold=hold) == Control(held=held)


@pytest.mark.parametrize("hold", ["", "yes", "2030-12-32", "31.12.2030", 1, 0, 2030, timedelta(days=1)], ids=repr)
async def test_a_hold_that_cannot_be_meant_is_refused(server: FakeServer, hold: object) -> None:
    """And nothing is published."""
    with pytest.raises(ValueError, match=r"^hold = .* is neither true, false nor a date such as 2030-12-31$"):
        await published(server, hold=hold)
    assert not server.database.artifacts


@pytest.mark.parametrize(
    ("ttl_days", "days"),
    [
        (30, 30),
        (30.0, 30),
        ("30", 30),
        ("0.5", 0.5),
        (1 / 3, 1 / 3),
        (1e-5, 1e-5),
        (Decimal("3e1"), 30),
        (36_525, 36_525),
        (12_345.678901, 12_345.678901),
    ],
)
async def test_a_ttl_is_read_as_it_was_meant(server: FakeServer, ttl_days: object, days: float) -> None:
    """Not rounded, whatever type the number has."""
    assert await published(server, ttl_days=ttl_days) == Control(ttl=timedelta(days=days), has_ttl=True)


@pytest.mark.parametrize(
    "ttl_days",
    [
        0,
        1e-7,
        -1,
        True,
        False,
        "",
        "a week",
        "1e-7",
        float("nan"),
        float("inf"),
        "nan",
        36_526,
        timedelta(days=30),
        Fraction(1, 2),
    ],
    ids=repr,
)
async def test_a_ttl_that_cannot_be_meant_is_refused(server: FakeServer, ttl_days: object) -> None:
    """Stored as 0 or as True, it would keep the version for ever."""
    with pytest.raises(ValueError, match=r"^ttl_days = .* is no number of days between 0\.00001 and 36525$"):
        await published(server, ttl_days=ttl_days)
    assert not server.database.artifacts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", [{"x": object()}]),
        ("data", b"\xff"),
        ("data", "\udcff"),
        ("description", "\udcff"),
        ("description", 3),
    ],
    ids=["object", "bytes", "surrogate", "surrogate in the description", "number for the description"],
)
async def test_what_cannot_be_serialized_is_named_and_the_server_is_not_blamed(field: str, value: object) -> None:
    """Before any request: here, no server is there to be asked."""
    with pytest.raises(ValueError, match=f"^{field} cannot be serialized as JSON: "):
        await publish_artifact(**{"data": "x", "type": "table", field: value})  # type: ignore[arg-type]
