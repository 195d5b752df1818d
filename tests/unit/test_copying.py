"""How rows are copied into PostgreSQL, with a driver that never comes to an end."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from prefect_artifact_retention.stores.changes import Changes


class _Driver:
    """A connection whose buffer nobody empties."""

    def __init__(self, refuses: Exception | None = None) -> None:
        self.listeners: set[Callable[[object], None]] = set()
        self.add_termination_listener = self.listeners.add
        self.remove_termination_listener = self.listeners.discard
        self.refuses = refuses
        self.is_terminated = False

    async def copy_records_to_table(self, _table: str, **_rows: object) -> None:
        if self.refuses:
            raise self.refuses
        await asyncio.Event().wait()

    def terminate(self) -> None:
        self.is_terminated = True


def copying(driver: _Driver) -> asyncio.Task[None]:
    """Begin to copy a row."""

    async def raw() -> Any:  # noqa: ANN401 - as SQLAlchemy has it
        return SimpleNamespace(driver_connection=driver)

    connection: Any = SimpleNamespace(get_raw_connection=raw, dialect=SimpleNamespace(name="postgresql"))
    return asyncio.create_task(Changes(connection).copy("artifact", ["key"], [("report",)]))


async def test_a_connection_that_is_lost_ends_a_copy() -> None:
    """With the code by which a transaction is known that may be repeated."""
    driver = _Driver()
    task = copying(driver)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (lost,) = driver.listeners
    lost(driver)
    with pytest.raises(sa.exc.DBAPIError) as caught:
        await task
    assert caught.value.orig is not None
    assert (caught.value.orig.sqlstate, driver.is_terminated) == ("08003", True)  # type: ignore[attr-defined]
    assert not driver.listeners


async def test_a_copy_can_be_cancelled() -> None:
    """It is not taken for a lost connection."""
    driver = _Driver()
    task = copying(driver)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not driver.is_terminated
    assert not driver.listeners


@pytest.mark.parametrize("error", [UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), TypeError("no"), OverflowError("no")])
async def test_a_value_that_the_driver_refuses_is_refused_by_the_database(error: Exception) -> None:
    """As of any other statement."""
    with pytest.raises(sa.exc.DBAPIError) as caught:
        await copying(_Driver(error))
    assert caught.value.orig is error
