"""The sizes of the benchmarks: in full, and small enough for the tests."""

from __future__ import annotations

from dataclasses import dataclass

from filling import Size


@dataclass(frozen=True)
class Sizes:
    """The sizes of all benchmarks.

    Attributes:
        start_rounds: Rounds in which the start of commands is measured; the fastest counts.
        simulated_keys: The keys of a simulation.
        read_rounds: Rounds in which runs without work are compared, each side in turn; the fastest of a side counts.
        delete_rounds: Rounds in which deletions are compared, each side in turn; the median of the ratios counts.
        level_rounds: Rounds in which the levels of concurrency of the bare client are compared.
        levels: These levels. A server on SQLite, which takes one write at a time, is tried with the first of them only.
        sqlite_levels: How many these are.
        far_levels: The levels for a server far away.
        reading: The artifacts that a run without work reads through the API; ten times as many each.
        api_pruning: The artifacts of which a run through the API keeps one version a key.
        database_pruning: The artifacts of which a run through the database, and a batched DELETE, keep a tenth.
        database_archiving: The artifacts of which a run through the database keeps one version a key, and archives the others.
        api_archiving: The same of a run through the API.
        memory: The artifacts of which a run through the database archives all but one a key, and its memory counts.
        ledger: The deleted versions in which one key is looked for.
        ledger_parts: The files in which these are.
        scale: The artifacts of a run without work through the database; of the last, another run keeps a tenth. On PostgreSQL,
            a run without work reads the last through the API, too.
        keys: Numbers of keys for the cost of a key.
        versions: Numbers of versions a key for the cost of a version.
        bytes: Sizes of a version's data for the cost of a byte.
        appends: How often each writer appends to one key.
        writers: How many do so at once.
        target: The artifacts of each target of a sweep, of which it keeps two versions a key.
        targets: How many targets there are.
    """

    start_rounds: int
    simulated_keys: int
    read_rounds: int
    delete_rounds: int
    level_rounds: int
    levels: tuple[int, ...]
    sqlite_levels: int
    far_levels: tuple[int, ...]
    reading: tuple[Size, Size]
    api_pruning: Size
    database_pruning: Size
    database_archiving: Size
    api_archiving: Size
    memory: Size
    ledger: Size
    ledger_parts: int
    scale: tuple[Size, ...]
    keys: tuple[int, ...]
    versions: tuple[int, ...]
    bytes: tuple[int, ...]
    appends: int
    writers: int
    target: Size
    targets: int


TEN_THOUSAND, HUNDRED_THOUSAND, MILLION = (Size(keys=keys, versions=100) for keys in (100, 1_000, 10_000))

FULL = Sizes(
    start_rounds=7,
    simulated_keys=1_000,
    read_rounds=2,
    delete_rounds=3,
    level_rounds=1,
    levels=(1, 2, 4, 8, 16),
    sqlite_levels=3,
    far_levels=(8, 16, 32),
    reading=(TEN_THOUSAND, HUNDRED_THOUSAND),
    api_pruning=Size(keys=40, versions=41),
    database_pruning=HUNDRED_THOUSAND,
    database_archiving=Size(keys=1_000, versions=101),
    api_archiving=Size(keys=40, versions=41),
    memory=Size(keys=20, versions=101, bytes=1_000_000),
    ledger=Size(keys=1_000, versions=1_000),
    ledger_parts=100,
    scale=(TEN_THOUSAND, HUNDRED_THOUSAND, MILLION),
    keys=(10, 100, 1_000),
    versions=(10, 100, 1_000),
    bytes=(100, 1_000, 10_000, 100_000, 1_000_000),
    appends=50,
    writers=8,
    target=Size(keys=150, versions=3),
    targets=10,
)

SMALL = Sizes(
    start_rounds=1,
    simulated_keys=10,
    read_rounds=1,
    delete_rounds=1,
    level_rounds=1,
    levels=(1, 2),
    sqlite_levels=1,
    far_levels=(1, 2),
    reading=(Size(keys=2, versions=20), Size(keys=20, versions=20)),
    api_pruning=Size(keys=3, versions=11),
    database_pruning=Size(keys=5, versions=20),
    database_archiving=Size(keys=5, versions=20),
    api_archiving=Size(keys=3, versions=11),
    memory=Size(keys=2, versions=11, bytes=100_000),
    ledger=Size(keys=10, versions=20),
    ledger_parts=4,
    scale=(Size(keys=10, versions=20), Size(keys=40, versions=20)),
    keys=(2,),
    versions=(10,),
    bytes=(100,),
    appends=3,
    writers=2,
    target=Size(keys=3, versions=3),
    targets=2,
)
