"""How an archive itself loses what is too old: run by run, first the payloads, then the ledger.

The part that takes the place of others is published, with its manifest, before these go; and of each file, the manifest goes
before the data. So whatever is left of a pruning that was killed does not count, and the next one removes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from prefect_artifact_retention.stores.archive.location import DATA, MANIFESTS, STAGING, Location
from prefect_artifact_retention.stores.archive.manifests import (
    Catalog,
    are_stripped,
    find_unmarked,
    is_part,
    manifest_file,
    manifests_of_run,
    part_file,
    publish_run,
    read_catalog,
)
from prefect_artifact_retention.stores.archive.model import ArchiveError, PartManifest
from prefect_artifact_retention.stores.archive.parquet import LEDGER, PAYLOAD, SCHEMA, open_part
from prefect_artifact_retention.stores.archive.writing import stage_part

ABANDONED_DAYS = 7.0
"""The age at which a file that does not count is taken to be left over. With less, it may be one that is being written."""


@dataclass(frozen=True)
class PruneResult:
    """What was pruned of an archive.

    Attributes:
        runs: The runs that lost their payloads, or all.
        forgotten: Those of them of which the ledger has gone as well.
        bytes_freed: The bytes of the files that went, less those that took their place.
        problems: Why other runs still have what they were to lose, one for each.
    """

    runs: Sequence[str] = ()
    forgotten: Sequence[str] = ()
    bytes_freed: int = 0
    problems: Sequence[str] = ()


def prune_archive(  # noqa: PLR0913, PLR0917 - what it is to keep
    location: Location,
    now: datetime,
    keep_days: float,
    ledger_keep_days: float,
    server: str,
    number_of: Callable[[str], int],
) -> PruneResult:
    """Prune whole runs of a server, the oldest first. One that fails does not stop the others.

    Args:
        location: Where the archive is.
        now: The time against which ages are measured.
        keep_days: The age up to which payloads are kept; 0 is for ever.
        ledger_keep_days: The age up to which all else is kept, at least as long as the payloads; 0 is for ever.
        server: The address of the server. Others have their own limits.
        number_of: Returns the first free number of a part of a run.
    """
    _sweep(location, read_catalog(location), now)
    catalog = read_catalog(location)
    runs: defaultdict[str, list[PartManifest]] = defaultdict(list)
    for part in catalog.parts:
        # What is offloaded is nowhere else, however old it is.
        if part.server == server and not part.offloaded:
            runs[part.run_id].append(part)
    pruned: list[str] = []
    forgotten: list[str] = []
    problems: list[str] = []
    freed = 0
    for run_id, parts in sorted(runs.items(), key=lambda each: each[1][-1].written_at):
        age = now - parts[-1].written_at
        with_payload = any(part.has_payloads for part in parts)
        if with_payload and not _is_over(age, keep_days):
            continue
        try:
            if _is_over(age, ledger_keep_days):
                freed += _forget(catalog, run_id, parts)
                forgotten.append(run_id)
            elif with_payload:
                size = _keep_ledger(catalog, f"{run_id}-{number_of(run_id):05}", parts)
                freed += _remove(location, parts) - size
            else:
                continue
        except ArchiveError as error:
            problems.append(str(error))
        else:
            pruned.append(run_id)
    return PruneResult(tuple(pruned), tuple(forgotten), freed, tuple(problems))


def _is_over(age: timedelta, days: float) -> bool:
    return days > 0 and age > timedelta(days=days)


def _keep_ledger(catalog: Catalog, name: str, parts: Sequence[PartManifest]) -> int:
    """Write a part with the rows of others without their payloads, but for what was not deleted after all. Return its size."""
    location = catalog.location
    with stage_part(location, name, payloads=False) as staged:
        for part in parts:
            file = part_file(part.name)
            with location.doing(f"read {file}"), location.open(file, part.bytes) as source:
                rows = open_part(source).read(columns=[*LEDGER], use_threads=False)
            spared = pa.array(catalog.spared.get(part.name, ()), pa.string())
            rows = rows.filter(pc.invert(pc.is_in(rows["id"], spared)))
            empty = pa.nulls(len(rows), pa.string())
            columns = [empty if column in PAYLOAD else rows[column] for column in SCHEMA.names]
            staged.add_table(pa.Table.from_arrays(columns, schema=SCHEMA))
        if not staged.rows:
            return 0
        return staged.publish(replaces=[part.name for part in parts], written_at=parts[-1].written_at).bytes


def _forget(catalog: Catalog, run_id: str, parts: Sequence[PartManifest]) -> int:
    location = catalog.location
    said = manifests_of_run(location, run_id)
    # They stay, and would pass for left over, had the run said nothing of them, if their own manifests are lost.
    stays = [part.name for part in catalog.parts if part.run_id == run_id and part.offloaded]
    stays += [name for name, run in catalog.lost.items() if run.run_id == run_id]
    if stays and (last := [run for run in catalog.runs if run.run_id == run_id][-1:]):
        rest = {"parts": tuple(sorted(stays)), "unconfirmed": (), "versions": 0, "deleted": 0, "spared": ()}
        publish_run(location, last[0].model_copy(update=rest))
    # First, or a part whose manifest has gone would pass for lost.
    for file in said:
        location.remove(f"{MANIFESTS}/{file}")
    return _remove(location, parts)


def _remove(location: Location, parts: Sequence[PartManifest]) -> int:
    for part in parts:
        location.remove(manifest_file(part.name))
    for part in parts:
        location.remove(part_file(part.name))
    return sum(part.bytes for part in parts)


def _sweep(location: Location, catalog: Catalog, now: datetime) -> None:
    """Remove what killed runs left: parts whose place others have taken, and old ones that never counted."""
    _remove(location, [part for name, part in catalog.written.items() if name in catalog.replaced])
    uncounted = [f"{STAGING}/{file}" for file in location.names(STAGING)]
    data = location.names(DATA)
    for file in filter(is_part, data):
        if file.removesuffix(".parquet") in catalog.replaced:
            location.remove(f"{DATA}/{file}")
    unmarked = find_unmarked(catalog, data)
    # Perhaps the only copies of what was deleted: it is the manifests that have been lost.
    if not are_stripped(catalog, unmarked):
        uncounted += map(part_file, unmarked)
    for file in uncounted:
        if _is_over(now - location.modified(file), ABANDONED_DAYS):
            location.remove(file)
