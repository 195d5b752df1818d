"""The sizes of the benchmarks: in full, and small enough for the tests."""

from __future__ import annotations

from dataclasses import dataclass

from filling import Size


@dataclass(frozen=True)
class Sizes:
    """The sizes of all benchmarks.

    Attributes:
        rounds: Rounds in which deletions are compared, each side in turn; the median counts.
        run_rounds: Rounds in which whole runs, or levels of concurrency, are compared.
        levels: The fixed concurrencies of the bare clients.
        pruning: The artifacts of which the API store keeps one version a key.
        script: The artifacts of which the usual script and the API store keep ten versions a key.
        idle: The artifacts of a run without work.
        batched: The artifacts of which the database store and a batched DELETE keep a tenth.
        scale: The artifacts of a process without work; of the last, the database store then keeps a tenth.
        api_scale: How many of these sizes the API store is measured with, too.
        keys: Numbers of keys for the cost of a key.
        versions: Numbers of versions a key for the cost of a version.
        bytes: Sizes of a version's data for the cost of a byte.
        appends: How often each writer appends to one key.
        writers: How many do so at once.
    """

    rounds: int
    run_rounds: int
    levels: tuple[int, ...]
    pruning: Size
    script: Size
    idle: Size
    batched: Size
    scale: tuple[Size, ...]
    api_scale: int
    keys: tuple[int, ...]
    versions: tuple[int, ...]
    bytes: tuple[int, ...]
    appends: int
    writers: int


FULL = Sizes(
    rounds=5,
    run_rounds=3,
    levels=(1, 2, 4, 8, 16),
    pruning=Size(keys=40, versions=61),
    script=Size(keys=40, versions=100),
    idle=Size(keys=500, versions=40),
    batched=Size(keys=1_000, versions=100),
    scale=(Size(keys=100, versions=100), Size(keys=1_000, versions=100), Size(keys=10_000, versions=100)),
    api_scale=2,
    keys=(10, 100, 1_000),
    versions=(10, 100, 1_000),
    bytes=(100, 1_000, 10_000, 100_000, 1_000_000),
    appends=50,
    writers=8,
)

SMALL = Sizes(
    rounds=1,
    run_rounds=1,
    levels=(1, 2),
    pruning=Size(keys=3, versions=11),
    script=Size(keys=2, versions=15),
    idle=Size(keys=5, versions=10),
    batched=Size(keys=5, versions=20),
    scale=(Size(keys=10, versions=20),),
    api_scale=0,
    keys=(2,),
    versions=(10,),
    bytes=(100,),
    appends=3,
    writers=2,
)
