"""Checks that a database is the one of the server, by what is in it, and that a run may delete there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

import sqlalchemy as sa
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.changes import Changes
from prefect_artifact_retention.stores.queries import Queries, count
from prefect_artifact_retention.stores.schema import COLLECTION, FLOW_RUN, WAY_OUT, check_schema
from prefect_artifact_retention.stores.server import Server
from prefect_artifact_retention.stores.transactions import BusyError, LostConnectionError, Transactions

COMPARED_COLLECTIONS = 10
"""Collections compared between server and database before a preview. With fewer, another server's database may pass."""

_IS_READ_ONLY = "SELECT current_setting('transaction_read_only') = 'on'"
_NEEDED = (
    ("artifact", "DELETE"),
    *(("artifact_collection", privilege) for privilege in ("UPDATE", "DELETE")),
    *((table, "SELECT") for table in ("artifact", "artifact_collection", "flow_run", "task_run")),
)
_NEEDED_FOR_EVENTS = tuple((table, privilege) for table in ("events", "event_resources") for privilege in ("SELECT", "DELETE"))
"""What a role must be granted."""

_SCHEMAS = """
SELECT quote_ident(nspname), CASE WHEN NOT pg_table_is_visible(c.oid)
  THEN concat_ws(', ', quote_ident(nspname), nullif(current_setting('search_path'), '')) ELSE '' END
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relname = 'artifact' AND relkind IN ('r', 'p')
  AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
ORDER BY pg_table_is_visible(c.oid) DESC, nspname
"""
"""The schemas with a table of the artifacts, first the one that is found without its name, and search paths for the others."""


async def choose_schema(database: Transactions, server: Server, own_runs: Collection[UUID], *, with_events: bool) -> None:
    """Check the tables of each schema that has some, and use those that are the server's.

    Raises:
        StoreError: None are, or those of several schemas may be.
    """
    others: list[StoreError] = []
    fitting: list[tuple[int, str, str]] = []
    for schema, search_path in await _schemas(database):
        database.search_path = search_path
        try:
            fitting.append((await _agreement(database, server, own_runs, with_events=with_events), schema, search_path))
        except LostConnectionError:
            raise
        except StoreError as error:
            others.append(error)
    if not fitting:
        raise others[0]
    best = max(agreement for agreement, _schema, _search_path in fitting)
    alike = [each for each in fitting if each[0] == best]
    if len(alike) > 1 and best:
        names = " and ".join(schema for _agreement, schema, _search_path in alike)
        raise StoreError(
            f"{database.address} has the same artifacts in its schemas {names}; name the server's in the address, as in "
            f"options=-csearch_path%3D{alike[-1][1]}"
        )
    database.search_path = alike[0][2]


async def _schemas(database: Transactions) -> Sequence[tuple[str, str]]:
    """List the schemas in which there may be tables of Prefect, each with the search path by which they are found."""
    if database.is_sqlite or database.search_path:
        return [("", database.search_path)]
    rows = await database.read(Queries.all, sa.text(_SCHEMAS))
    return [(row[0], row[1]) for row in rows] or [("", "")]


async def _agreement(database: Transactions, server: Server, own_runs: Collection[UUID], *, with_events: bool) -> int:
    """Return in how many of what changed last the tables agree with the server.

    Raises:
        StoreError: They are another server's, or not as declared.
    """
    await database.read(_check_schema, with_events=with_events)
    if own_runs:
        if set(own_runs) != await database.read(Queries.present, FLOW_RUN.c.id, own_runs):
            raise not_of(server, database, "the current flow run")
        return len(own_runs)
    for _attempt in range(3):
        latest = await server.last_changed(COMPARED_COLLECTIONS)
        present = await database.read(Queries.collections, [each.key for each in latest])
        # On a busy server, some collections change between the two reads.
        agreed = len(set(latest) & set(present))
        if agreed * 2 > len(latest) or not (latest or await database.read(Queries.scalar, count(COLLECTION))):
            return agreed
    raise StoreError(f"{_not_of(server, database)}: they differ in the artifacts that changed last; {WAY_OUT}")


def not_of(server: Server, database: Transactions, what: str) -> StoreError:
    """Return the error of a database that lacks what the server has: it is another server's, or a copy."""
    return StoreError(f"{_not_of(server, database)}: {what} is not in it; {WAY_OUT}")


def _not_of(server: Server, database: Transactions) -> str:
    return f"{database.address} is not the database of the Prefect server at {server.connection.address}"


async def _check_schema(queries: Queries, *, with_events: bool) -> None:
    await queries.connection.run_sync(check_schema, with_events=with_events)


async def check_writable(database: Transactions, *, with_events: bool, with_data: bool) -> None:
    """Check that versions can be deleted, before a plan is made in vain.

    Args:
        database: The database.
        with_events: Whether events are deleted, too.
        with_data: Whether the data of versions are replaced, too.

    Raises:
        StoreError: They cannot.
    """
    if database.is_sqlite:
        try:
            await database.write(Changes.touch)
        except BusyError:
            # Somebody else is writing, so it can be written to.
            return
        except StoreError as error:
            raise StoreError(f"{error}; to delete, the file and its folder must be writable; {WAY_OUT}") from None
        return
    if await database.read(Queries.scalar, sa.text(_IS_READ_ONLY)):
        raise StoreError(f"{database.address} is read-only, as a replica is; {WAY_OUT}")
    needed = (
        *_NEEDED,
        *(_NEEDED_FOR_EVENTS if with_events else ()),
        *([("artifact", "UPDATE")] if with_data else []),
    )
    lacking = [
        f"{privilege} on {table}"
        for table, privilege in needed
        if not await database.read(Queries.scalar, sa.select(sa.func.has_table_privilege(table, privilege)))
    ]
    if lacking:
        raise StoreError(f"{database.address}: permission denied: the role may not {', '.join(lacking)}; {WAY_OUT}")
