"""What is asked of the ledger of an archive, in the user's terms, and why the archive has nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.stores.archive.model import LedgerQuery

if TYPE_CHECKING:
    from prefect_artifact_retention.stores.archive.archive import Archive

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MAX_NAMED = 5
"""Values of one filter that a message names, at most. With more, nobody reads them."""


class _Filter(NamedTuple):
    """A filter of a query, in words and as its fields."""

    phrase: str
    fields: dict[str, Any]


def describe_query(query: LedgerQuery) -> str:
    """Describe what is asked for; empty if that is all."""
    return ", ".join(each.phrase for each in _filters(query))


def describe_nothing(archive: Archive, query: LedgerQuery, *, is_whole: bool = True) -> str:
    """Describe that an archive has nothing that is asked for, and which filter it is that leaves nothing.

    Args:
        archive: The archive.
        query: What is asked for.
        is_whole: Whether all of the archive can be read; otherwise nothing is said of what it has.

    Raises:
        ArchiveError: The archive cannot be read.
    """
    noun = "version with moved data" if query.offloaded else "deleted version"
    filters = list(_filters(query))
    nothing = f"the archive {archive.url} has nothing that is asked for"
    if filters:
        nothing += f": no {noun} {describe_query(query)}"
    reason = _reason(archive, filters, noun, offloaded=query.offloaded) if is_whole else ""
    return f"{nothing}; {reason}" if reason else nothing


def _reason(archive: Archive, filters: Sequence[_Filter], noun: str, *, offloaded: bool) -> str:
    """Say which filter leaves nothing: each of those that apply to no version at all, or the one at which none is left."""
    everything = LedgerQuery(offloaded=offloaded)
    if not any(part.offloaded == offloaded for part in archive.manifests()):
        return f"it has no {noun} at all"
    if alone := [each for each in filters if not _find(archive, replace(everything, **each.fields))]:
        facts = []
        if len(filters) > 1:
            facts.append(f"there is none at all {', and none '.join(each.phrase for each in alone)}")
        if any("policies" in each.fields for each in alone):
            names = archive.ledger(everything, {}, ("policy",))["policy"].unique().to_pylist()
            facts.append(f"its policies are {', '.join(_some([repr(printable(name)) for name in sorted(names)]))}")
        return "; ".join(facts)
    asked, left = everything, 0
    for number, each in enumerate(filters):
        asked = replace(asked, **each.fields)
        before, left = left, _find(archive, asked)
        if not left:
            there = f"there {'is' if before == 1 else 'are'} {count(before, 'version')}"
            return f"{there} {', '.join(some.phrase for some in filters[:number])}, but none {each.phrase}"
    return ""


def _filters(query: LedgerQuery) -> Iterator[_Filter]:
    if query.ids:
        yield _Filter(f"with id {_either([*map(str, query.ids)])}", {"ids": query.ids})
    if query.keys:
        yield _Filter(f"of key {_either(query.keys, quoted=True)}", {"keys": query.keys})
    if query.runs:
        yield _Filter(f"of run {_either(query.runs, quoted=True)}", {"runs": query.runs})
    if query.policies:
        yield _Filter(f"of policy {_either(query.policies, quoted=True)}", {"policies": query.policies})
    if query.rules:
        yield _Filter(f"by rule {_either(query.rules)}", {"rules": query.rules})
    # Before that, nothing was deleted: it is how all is asked for.
    if query.since is not None and query.since > EPOCH:
        yield _Filter(f"since {_moment(query.since, time())}", {"since": query.since})
    if query.until is not None:
        yield _Filter(f"until {_moment(query.until, time.max)}", {"until": query.until})


def _find(archive: Archive, query: LedgerQuery) -> int:
    """Return how many versions are asked for."""
    return len(archive.ledger(query, {}, ()))


def _either(values: Sequence[str], *, quoted: bool = False) -> str:
    return " or ".join(_some([repr(printable(each)) if quoted else each for each in values]))


def _some(values: Sequence[str]) -> list[str]:
    more = [f"{len(values) - MAX_NAMED:,} more"] if len(values) > MAX_NAMED else []
    return [*values[:MAX_NAMED], *more]


def _moment(moment: datetime, edge: time) -> str:
    """Format a time, or a day of which it is the edge."""
    if moment.time() == edge:
        return f"{moment:%Y-%m-%d} (UTC)"
    return f"{moment.replace(tzinfo=None).isoformat(' ', 'seconds')} UTC"
