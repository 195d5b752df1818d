"""The manifests of an archive: which parts count, and what is wrong with the others."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.stores.archive.location import DATA, MANIFESTS, STAGING, Location, write_synced
from prefect_artifact_retention.stores.archive.model import (
    FORMAT,
    SCHEMA_VERSION,
    ArchiveError,
    PartManifest,
    Problem,
    RunManifest,
)
from pydantic import ValidationError

PART_NAME = re.compile(r"(?P<run_id>[A-Za-z0-9][A-Za-z0-9._-]*)-(?P<number>\d{5,9})")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_T = TypeVar("_T")
_R = TypeVar("_R")


def part_file(name: str) -> str:
    """Where the data of a part are."""
    return f"{DATA}/{name}.parquet"


def manifest_file(name: str) -> str:
    """Where a manifest is."""
    return f"{MANIFESTS}/{name}.json"


def is_run_name(text: str) -> bool:
    """Whether a text can be the id of a run: as a name of a file, and not to be taken for one of a part."""
    return bool(RUN_NAME.fullmatch(text)) and not PART_NAME.fullmatch(text)


def is_part(file: str) -> bool:
    """Whether a file of the data is called as a part is."""
    return file.endswith(".parquet") and bool(PART_NAME.fullmatch(file.removesuffix(".parquet")))


def manifests_of_run(location: Location, run_id: str) -> dict[str, int]:
    """Return what the attempts of a run said in the end: the files of the manifests, each with its number."""
    found = (re.fullmatch(rf"{re.escape(run_id)}(?:\.(\d+))?\.json", file) for file in location.names(MANIFESTS))
    return {match[0]: int(match[1] or 1) for match in found if match}


def publish_run(location: Location, manifest: RunManifest) -> None:
    """Write what an attempt of a run says in the end, and see that it is there."""
    last = max(manifests_of_run(location, manifest.run_id).values(), default=0)
    publish_manifest(location, f"{manifest.run_id}.{last + 1}" if last else manifest.run_id, manifest)


def at_once(location: Location, function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """Call a function that waits for a file system, for several items at once."""
    with ThreadPoolExecutor(location.readers, "archive") as pool:
        return list(pool.map(function, items))


def publish_manifest(location: Location, name: str, manifest: PartManifest | RunManifest) -> None:
    """Write a manifest, and see that it is there."""
    content = manifest.model_dump_json(indent=1).encode()
    with location.staged(f"{name}.json") as staged:
        with location.doing(f"write {manifest_file(name)}"):
            write_synced(staged, content)
        location.publish(staged, manifest_file(name))
    if location.read(manifest_file(name)) != content:
        raise ArchiveError(f"the archive {location.url}: {manifest_file(name)} is not read back as it was written")


@dataclass(frozen=True)
class Catalog:
    """What an archive says that it has, at one moment.

    Attributes:
        location: Where it is.
        written: The manifests of parts, by their names; also of those that do not count any more.
        runs: The manifests of runs, the oldest first.
    """

    location: Location
    written: Mapping[str, PartManifest]
    runs: tuple[RunManifest, ...]

    @cached_property
    def replaced(self) -> frozenset[str]:
        """The names of the parts whose place others have taken."""
        return frozenset(name for part in self.written.values() for name in part.replaces)

    @cached_property
    def parts(self) -> list[PartManifest]:
        """Those that count, the oldest first."""
        counting = [part for name, part in self.written.items() if name not in self.replaced]
        return sorted(counting, key=lambda part: (part.written_at, part.name))

    @cached_property
    def spared(self) -> dict[str, frozenset[str]]:
        """The ids of what was archived in each part, and then not deleted; what is offloaded is not to be deleted.

        What an attempt of a run says applies to its own parts, and to those of earlier attempts that were killed.
        """
        found: defaultdict[str, set[str]] = defaultdict(set)
        for run in self.runs:
            last = max(map(_number, run.parts), default=0)
            killed = [part.name for part in self._unlisted if part.run_id == run.run_id and _number(part.name) < last]
            for name in (*run.parts, *killed) if run.spared else ():
                if name in self.written and not self.written[name].offloaded:
                    found[name].update(map(str, run.spared))
        return {name: frozenset(ids) for name, ids in found.items()}

    @cached_property
    def lost(self) -> dict[str, RunManifest]:
        """The parts that a run has published and of which the manifest is missing, with that run: it deleted on them."""
        known = self.replaced.union(self.written)
        return {name: run for run in self.runs for name in run.parts if name not in known.union(run.unconfirmed)}

    @cached_property
    def unended(self) -> frozenset[str]:
        """The ids of the runs of which a part that counts is in no manifest of a run: they were killed, or are at work."""
        return frozenset(part.run_id for part in self._unlisted)

    @cached_property
    def _unlisted(self) -> list[PartManifest]:
        listed = {name for run in self.runs for name in run.parts}
        # A part that was pruned is not listed itself.
        return [part for part in self.parts if not listed.issuperset(part.replaces or [part.name])]


def read_catalog(location: Location) -> Catalog:
    """Read the manifests.

    Raises:
        ArchiveError: One cannot be read, is of a newer version of the format, or is no manifest.
    """
    names = _manifest_names(location)
    found = dict(zip(names, at_once(location, lambda name: _read(location, name), names), strict=True))
    return Catalog(
        location,
        {name: each for name, each in found.items() if isinstance(each, PartManifest)},
        tuple(sorted((each for each in found.values() if isinstance(each, RunManifest)), key=lambda run: run.ended_at)),
    )


def check_place(location: Location) -> bool:
    """Check that there is an archive that this version can write to, or nothing yet, and make its folders.

    Returns:
        Whether there is nothing yet.

    Raises:
        ArchiveError: There is something else, or an archive of a newer version of the format.
    """
    if not location.others():
        location.prepare()
    catalog = read_catalog(location)
    check_is_archive(catalog)
    return not catalog.written and not catalog.runs


def check_is_archive(catalog: Catalog) -> None:
    """Check that there is an archive, or nothing yet.

    Raises:
        ArchiveError: There is something else.
    """
    if catalog.written or catalog.runs:
        return
    location = catalog.location
    if foreign := [*location.others(), *(f"{DATA}/{name}" for name in _foreign(location.names(DATA)))]:
        raise ArchiveError(
            f"the archive {location.url}: there is something else ({_some(foreign)}), and no archive; "
            "an archive needs a folder of its own"
        )


def is_new(location: Location) -> bool:
    """Whether there is nothing yet, not even a folder perhaps. Unlike `check_place`, it makes none, and reads no manifest.

    Raises:
        ArchiveError: There is something else, or it cannot be listed.
    """
    if not location.exists():
        return True
    if _manifest_names(location):
        return False
    check_is_archive(Catalog(location, {}, ()))
    return True


def find_problems(location: Location) -> list[Problem]:
    """Compare the names and sizes of what is there with the manifests. No part is read.

    Raises:
        ArchiveError: A manifest cannot be read, is of a newer version of the format, or is no manifest.
    """
    catalog = read_catalog(location)
    data = location.names(DATA)
    parts = {name.removesuffix(".parquet"): size for name, size in data.items() if name.endswith(".parquet")}
    damaged: list[str] = []
    for part in catalog.parts:
        if part.name not in parts:
            damaged.append(
                f"{part_file(part.name)} is missing: its {count(part.rows, 'version')} cannot be read. "
                f"Put it back, or remove {manifest_file(part.name)} to do without them"
            )
        elif parts[part.name] != part.bytes:
            damaged.append(
                f"{part_file(part.name)} has {parts[part.name]} bytes instead of {part.bytes}: "
                f"its {count(part.rows, 'version')} cannot be restored. "
                f"Put it back, or remove it and {manifest_file(part.name)} to do without them"
            )
    damaged += [without_manifest(name) for name in sorted(parts) if name in catalog.lost and name not in catalog.replaced]
    unmarked = find_unmarked(catalog, data)
    stripped = are_stripped(catalog, unmarked)
    if stripped:
        damaged.append(
            f"{MANIFESTS}/ has no manifest of {count(len(unmarked), 'part')} in {DATA}/ that are older than any manifest: "
            "their versions cannot be read. Put the manifests back, or remove the parts if their runs were killed"
        )
    left = [f"{name} is no part of the archive" for name in location.others()]
    left += [f"{DATA}/{name} is no part of the archive" for name in _foreign(data)]
    for name in sorted(parts):
        if name in catalog.replaced:
            left.append(f"{part_file(name)} has been replaced, and the next pruning of the archive removes it")
        elif not stripped and name in unmarked:
            left.append(
                f"{part_file(name)} has no manifest, so it does not count: it is being written, or its run was killed, "
                "and deleted none of its versions"
            )
    left += [f"{STAGING}/{name} is being written, or left over" for name in sorted(location.names(STAGING))]
    return [*(Problem(text, is_damage=True) for text in damaged), *(Problem(text, is_damage=False) for text in left)]


def find_unmarked(catalog: Catalog, data: Iterable[str]) -> list[str]:
    """Return the names of the parts that have no manifest, and are in that of no run either."""
    known = {*catalog.written, *catalog.lost, *catalog.replaced}
    names = (file.removesuffix(".parquet") for file in sorted(data) if is_part(file))
    return [name for name in names if name not in known]


def are_stripped(catalog: Catalog, unmarked: Sequence[str]) -> bool:
    """Whether parts without a manifest probably had one: they are of several runs, and all of them older than any manifest.

    Runs that are killed leave such parts, too, but between runs that are not.
    """
    if len({name.rpartition("-")[0] for name in unmarked}) <= 1:
        return False
    times = [*(part.written_at for part in catalog.written.values()), *(run.ended_at for run in catalog.runs)]
    return not times or all(catalog.location.modified(part_file(name)) < min(times) for name in unmarked)


def without_manifest(name: str) -> str:
    """Describe that the manifest of a part is missing that counts, and what to do."""
    return (
        f"{manifest_file(name)} is missing, by which {part_file(name)} counts: its versions cannot be read. "
        f"Put it back, or remove {part_file(name)} to do without them"
    )


def _manifest_names(location: Location) -> list[str]:
    return [name.removesuffix(".json") for name in sorted(location.names(MANIFESTS)) if name.endswith(".json")]


def _read(location: Location, name: str) -> PartManifest | RunManifest:
    where = f"the archive {location.url}: {manifest_file(name)}"
    try:
        document = json.loads(location.read(manifest_file(name)))
    except ValueError:
        raise ArchiveError(f"{where} is no JSON; it may be damaged, or not of an archive") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ArchiveError(f"{where} is not of an archive of this package")
    version = document.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ArchiveError(
            f"{where} is of version {version!r} of the format, and this package knows {SCHEMA_VERSION}: a newer one is needed"
        )
    kind = PartManifest if "sha256" in document else RunManifest
    try:
        manifest = kind.model_validate(document)
    except ValidationError as error:
        fields = ", ".join(sorted({str(each["loc"][0]) for each in error.errors() if each["loc"]}))
        raise ArchiveError(f"{where} cannot be read as meant: {fields}") from None
    named = manifest.name if isinstance(manifest, PartManifest) else manifest.run_id
    if named != name and (isinstance(manifest, PartManifest) or not name.startswith(f"{named}.")):
        raise ArchiveError(f"{where} says that it is of {named}")
    return manifest


def _number(part: str) -> int:
    return int(part.rpartition("-")[2])


def _foreign(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not is_part(name))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004 - three are enough
