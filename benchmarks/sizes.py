"""How much each benchmark does: in full, and small enough for the tests."""

from __future__ import annotations

from dataclasses import dataclass

from filling import Size


@dataclass(frozen=True)
class Sizes:
    """The sizes of all benchmarks.

    Attributes:
        rounds: How often each side is measured, in turns, where deletions are compared; the median counts.
        run_rounds: The same where whole runs are, and for the levels.
        levels: Numbers of requests at once that the fixed clients are tried with.
        pruning: What is pruned down to one version a key, by the API.
        script: What the usual script and the API store clean up to ten versions a key.
        idle: What a run without work looks at.
        batched: What the database store and a batched DELETE clean up to a tenth.
        scale: What a run without work looks at in a process of its own; the database store cleans the last up to a tenth.
        api_scale: How many of these sizes the API store gets, too.
        keys: Numbers of keys for the cost of a key.
        versions: Numbers of versions a key for the cost of a version.
        bytes: Sizes of a version's data for the cost of a byte.
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
)
