"""Transactions in the database of a Prefect server: its connections, their retries, and errors without passwords and data.

A lock that is not granted in time is left to a later attempt. `lock_timeout` is below the second after which PostgreSQL checks
for deadlocks, so that no other transaction is ever the victim of a deadlock with one of these.

PgBouncer may share a connection with others, from one transaction to the next. So statements are prepared without a name, and
every setting is one of its transaction: nothing is left behind, not even by a process that is killed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy as sa
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.stores.addresses import LOOKS, is_sqlite, read_postgres_address
from prefect_artifact_retention.stores.changes import Changes
from prefect_artifact_retention.stores.queries import Queries, hash_of
from prefect_artifact_retention.stores.schema import WAY_OUT
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

MAX_CONNECTIONS = 4
"""Open connections. PostgreSQL has a limit on them, which the server needs, too. A pool may give fewer; of two or three, one
is left to others."""

CONNECTION_WAIT_SECONDS = 3
"""How long each connection beyond the first is waited for. With less, a slow network passes for a small pool."""

LOCK_TIMEOUT_MILLISECONDS = 500
"""How long a deletion waits for a lock. From 1000 on, it may end the transactions of others by a deadlock."""

WRITE_TIMEOUT_SECONDS = 30
"""The longest statement of a deletion: for as long, those who write to the same keys may wait."""

READ_TIMEOUT_SECONDS = 300
BUSY_TIMEOUT_SECONDS = 10
"""How long SQLite waits for another writer, and a VACUUM of PostgreSQL for the table."""

MAX_TRANSACTION_ATTEMPTS = 6
FIRST_RETRY_PAUSE_SECONDS = 0.05
"""The pause after the first attempt, doubled after each further one: 1.6 seconds in all, then the keys are left alone."""

RECONNECT_SECONDS = 60
"""How long a connection that is lost during a run is tried again: longer than PostgreSQL takes to restart. With more, a run
whose database has gone for good ends later."""

RECONNECT_PAUSE_SECONDS = 1

LOST_SQLSTATES = frozenset({"53300", "57P01", "57P02", "57P03"})
"""PostgreSQL's codes of a server that stops or starts, or has no connection left; besides those that begin with 08."""

TRANSIENT_SQLSTATES = frozenset({"40001", "40P01", "55P03"})
"""PostgreSQL's codes of errors after which a transaction is retried: a concurrent change, a deadlock, a lock timeout."""

TRANSIENT_INSERT_SQLSTATES = TRANSIENT_SQLSTATES | {"23505"}
"""The same for the inserts of a restore: another one may have inserted a row first."""

STATEMENT_TIMEOUT_SQLSTATE = "57014"
"""PostgreSQL's code of a statement that `statement_timeout` has cancelled."""

MIN_SECRET_CHARS = 4
"""A password that is shorter is masked in messages only where it is a word of its own."""

T = TypeVar("T")
P = ParamSpec("P")


class BusyError(StoreError):
    """Another transaction is changing or locking the same rows, and so it was with each further attempt."""


class SlowError(StoreError):
    """A statement has reached its timeout."""


class LostConnectionError(StoreError):
    """The connection was lost, or could not be opened; the database may be restarting."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine, which connects when it is first used.

    Attributes:
        engine: The engine.
        label: The database, as messages name it.
        search_path: The schemas in which its tables are looked for; empty for the role's own.
        secrets: What messages must not have.
    """

    engine: AsyncEngine
    label: str
    search_path: str = ""
    secrets: tuple[str, ...] = ()


class Transactions:
    """Runs transactions, no more at once than the database has connections for.

    Attributes:
        address: The database, as messages name it.
        search_path: The schemas in which its tables are looked for; empty for the role's own.
        is_established: Whether the run has begun: from then on, a lost connection is opened again.
    """

    def __init__(self, opened: Opened) -> None:
        self.engine = opened.engine
        self.is_sqlite = opened.engine.dialect.name == "sqlite"
        self.address = opened.label
        self.search_path = opened.search_path
        self.connections = MAX_CONNECTIONS
        self.is_established = False
        self._secrets = opened.secrets
        self._writer, self._inserter = (
            self.engine.execution_options(**({"begin": "IMMEDIATE"} if self.is_sqlite else {"isolation_level": level}))
            for level in ("REPEATABLE READ", "READ COMMITTED")
        )
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._lost_since: float | None = None

    async def limit_connections(self) -> None:
        """Use no more connections than can be had at once, by the limits of the database and of a pool before it.

        Where these are few, one is left to others, such as the server.
        """
        connections: list[AsyncConnection] = []
        usable = used = 0
        with self.translated_errors():
            try:
                for _number in range(MAX_CONNECTIONS):
                    async with asyncio.timeout(CONNECTION_WAIT_SECONDS if usable else None):
                        connections.append(await self.engine.connect())
                        await connections[-1].execute(sa.select(1))
                    usable += 1
            except (sa.exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                if not usable:
                    raise
            finally:
                used = usable if usable in (0, 1, MAX_CONNECTIONS) else usable - 1
                for connection in connections[used:usable]:
                    await connection.invalidate()
                # The unused ones first: the pool opens them again only if all others are in use, which the slots prevent.
                for connection in reversed(connections):
                    await connection.close()
        self._slots = asyncio.Semaphore(used)
        self.connections = used

    async def read(self, work: Callable[Concatenate[Queries, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read in a transaction, retried as `write` is.

        Raises:
            StoreError: The database cannot be reached or refuses a statement.
        """
        return await self._retried(lambda: self._read_once(lambda queries: work(queries, *args, **kwargs)))

    async def _read_once(self, work: Callable[[Queries], Awaitable[T]]) -> T:
        async with self._slots:
            with self.translated_errors():
                async with self.engine.begin() as connection:
                    await self._bound(connection, {"statement_timeout": READ_TIMEOUT_SECONDS * 1000})
                    return await work(Queries(connection))

    async def write(self, work: Callable[Concatenate[Changes, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do some work in a transaction that sees one state of the database, retried after transient errors.

        Raises:
            BusyError: The last attempt met another transaction, too.
            SlowError: A statement took too long.
            StoreError: The database cannot be reached or refuses a statement.
        """
        return await self._retried(lambda: self._write_once(lambda changes: work(changes, *args, **kwargs)))

    async def insert(self, work: Callable[Concatenate[Changes, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do some work as `write` does, in a transaction of which each statement sees what others have committed before.

        It may insert for long, and lock what others write to only before it ends.
        """
        return await self._retried(lambda: self._write_once(lambda changes: work(changes, *args, **kwargs), inserts=True))

    async def _write_once(self, work: Callable[[Changes], Awaitable[T]], *, inserts: bool = False) -> T:
        transaction: int | None = None
        done: list[T] = []
        try:
            async with self._slots:
                with self.translated_errors(TRANSIENT_INSERT_SQLSTATES if inserts else TRANSIENT_SQLSTATES):
                    async with (self._inserter if inserts else self._writer).begin() as connection:
                        timeouts = {
                            "statement_timeout": WRITE_TIMEOUT_SECONDS * 1000,
                            "lock_timeout": LOCK_TIMEOUT_MILLISECONDS,
                        }
                        transaction = await self._bound(connection, timeouts, sa.func.txid_current())
                        done.append(await work(Changes(connection)))
        except LostConnectionError:
            # It may have been lost after the COMMIT was sent.
            if not done or not await self._is_committed(transaction):
                raise
        return done[0]

    async def _is_committed(self, transaction: int | None) -> bool:
        """Return whether a transaction was committed whose connection was lost."""
        status = sa.select(sa.func.txid_status(sa.literal(transaction, sa.BigInteger)))
        for _poll in range(RECONNECT_SECONDS):
            # The server may not have noticed yet that nobody is there any more.
            if (found := await self.read(Queries.scalar, status)) != "in progress":
                return bool(found == "committed")
            await asyncio.sleep(1)
        return False

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat a transaction after transient errors; and after the loss of its connection, once the run has begun."""
        pause = FIRST_RETRY_PAUSE_SECONDS
        attempts = 0
        while True:
            try:
                result = await attempt()
            except BusyError:
                self._lost_since = None
                attempts += 1
                if attempts == MAX_TRANSACTION_ATTEMPTS:
                    raise
                await asyncio.sleep(pause)
                pause *= 2
            except LostConnectionError:
                if not self.is_established or self._seconds_lost() > RECONNECT_SECONDS:
                    raise
                await asyncio.sleep(RECONNECT_PAUSE_SECONDS)
            else:
                self._lost_since = None
                return result

    def _seconds_lost(self) -> float:
        """Return for how long the database has been out of reach, for all transactions together."""
        now = asyncio.get_running_loop().time()
        self._lost_since = self._lost_since or now
        return now - self._lost_since

    async def _bound(
        self, connection: AsyncConnection, settings: Mapping[str, int], *asked: sa.ColumnElement[int]
    ) -> int | None:
        """Apply settings and the search path to the transaction. Return the first of the values asked for, if any."""
        if self.is_sqlite:
            return None
        named: dict[str, object] = {**settings, **({"search_path": self.search_path} if self.search_path else {})}
        applied = (sa.func.set_config(name, str(value), sa.true()) for name, value in named.items())
        row = (await connection.execute(sa.select(*asked, *applied))).one()
        return row[0] if asked else None

    async def vacuum(self) -> None:
        """Vacuum the table of the artifacts; on SQLite, the whole file.

        Raises:
            StoreError: The role may not vacuum the table, or it stays locked.
        """
        if self.is_sqlite:
            with self.translated_errors():
                async with self.engine.execution_options(begin="").connect() as connection:
                    await connection.exec_driver_sql("VACUUM")
            return
        ((table, role, may_vacuum),) = await self.read(Queries.all, sa.text(_VACUUM))
        if not may_vacuum:
            # PostgreSQL itself would only warn.
            raise StoreError(f"{self.address}: the role {role} may not vacuum the table artifact")
        # The creation of an index, or another vacuum, may lock the table for hours, and a VACUUM can have no setting: so
        # the lock is waited for here; an autovacuum gives way to that.
        await self._read_once(lambda queries: self._lock_for_vacuum(queries, table))
        messages: list[str] = []
        async with self._slots:
            with self.translated_errors():
                async with self.engine.connect() as connection:
                    driver: Any = (await connection.get_raw_connection()).driver_connection
                    driver.add_log_listener(lambda _connection, message: messages.append(str(message)))
                    # In no transaction, so it must not be a prepared statement.
                    await driver.execute(f"VACUUM (SKIP_LOCKED, ANALYZE) {table}")
        if skipped := next((message for message in messages if "lock not available" in message), None):
            raise StoreError(f"{self.address}: {printable(skipped)}")

    async def _lock_for_vacuum(self, queries: Queries, table: str) -> None:
        await self._bound(queries.connection, {"lock_timeout": BUSY_TIMEOUT_SECONDS * 1000})
        await queries.connection.exec_driver_sql(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")

    @contextmanager
    def translated_errors(self, transient: Collection[str] = TRANSIENT_SQLSTATES) -> Iterator[None]:
        """Translate errors into `StoreError`, without passwords and data: the libraries quote whole statements."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            code = getattr(error.orig, "sqlstate", None)
            kind: type[StoreError] = StoreError
            if error.connection_invalidated or _is_lost(code):
                kind = LostConnectionError
            elif code == STATEMENT_TIMEOUT_SQLSTATE:
                kind = SlowError
            elif code in transient or "database is locked" in str(error.orig):
                kind = BusyError
            raise kind(f"{self.address}: {self.reason(error.orig)}") from None
        except (sa.exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            is_lost = isinstance(error, OSError) or _is_lost(getattr(error, "sqlstate", None))
            kind = LostConnectionError if is_lost else StoreError
            raise kind(f"cannot use {self.address}: {self.reason(error)}") from None

    def reason(self, error: BaseException | None) -> str:
        """Return the message of a library's error, without secrets."""
        cause = error.__cause__ if error and error.__cause__ else error
        text = printable(str(cause).partition("\n")[0]) or type(cause).__name__
        for secret in self._secrets:
            # A short one would be found in the middle of words, and the message would be a riddle that gives it away.
            quoted = re.escape(secret) if len(secret) >= MIN_SECRET_CHARS else rf"(?<!\w){re.escape(secret)}(?!\w)"
            text = re.sub(quoted, "***", text)
        return text


def _is_lost(sqlstate: str | None) -> bool:
    return sqlstate is not None and (sqlstate in LOST_SQLSTATES or sqlstate.startswith("08"))


_VACUUM = """
SELECT format('%I.%I', nspname, relname), current_user, CASE WHEN current_setting('server_version_num')::int >= 170000
  THEN has_table_privilege(c.oid, 'MAINTAIN') ELSE pg_has_role(relowner, 'USAGE') END
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = 'artifact'::regclass
"""
"""The whole name of the table of the artifacts, the role, and whether it may vacuum the table."""


def open_engine(text: str) -> Opened:
    """Make the engine of an address, as in Prefect's `PREFECT_API_DATABASE_CONNECTION_URL`; the driver may be left out.

    Raises:
        StoreError: The address is not one of a PostgreSQL or SQLite database.
    """
    # Kubernetes secrets often end with a line break.
    text = text.strip()
    if is_sqlite(text):
        try:
            url = sa.make_url(text).set(drivername="sqlite+aiosqlite")
        except (sa.exc.ArgumentError, ValueError):
            raise StoreError(LOOKS) from None
        return Opened(_sqlite_engine(url), f"the SQLite database {url.database}")
    address = read_postgres_address(text)
    # No named prepared statements: the next transaction may get another connection from a pool, which does not know them. And
    # after five uses, PostgreSQL plans one for any values, and assumes ten where there are thousands. The setting
    # plan_cache_mode would affect the triggers of each row, too.
    unnamed = {"statement_cache_size": 0, "prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: ""}
    engine = _pooled("postgresql+asyncpg://", dsn=address.dsn, timeout=address.timeout, **unnamed)
    host = f" at {address.host}" if address.host else ""
    return Opened(engine, f"the PostgreSQL database {address.name}{host}", address.search_path, address.secrets)


def _pooled(url: str | sa.URL, **connect_args: object) -> AsyncEngine:
    return create_async_engine(url, connect_args=connect_args, pool_size=MAX_CONNECTIONS, max_overflow=0, pool_use_lifo=True)


def _sqlite_engine(url: sa.URL) -> AsyncEngine:
    # SQLite would create a missing file.
    if not url.database or not Path(url.database).is_file():
        raise StoreError(f"there is no SQLite database {url.database}; {WAY_OUT}")
    engine = _pooled(url, timeout=BUSY_TIMEOUT_SECONDS)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _record: object) -> None:  # noqa: ANN401 - the adapter of a driver
        # None: the driver begins no transactions by itself.
        connection.isolation_level = None
        connection.create_function("python_hash", -1, hash_of)
        connection.create_function("python_length", 1, lambda value: len(json.dumps(value)))
        # As Prefect sets it: states of runs may refer to an artifact, and must not refer to a deleted one. But for the cache,
        # 16 MB of each connection: with Prefect's 80, a run takes 140 MB more, and no less time.
        cursor = connection.cursor()
        for setting in ("foreign_keys = ON", "synchronous = NORMAL", "cache_size = -16000"):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        if mode := connection.get_execution_options().get("begin", "DEFERRED"):
            connection.exec_driver_sql(f"BEGIN {mode}")

    return engine
