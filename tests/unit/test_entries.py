"""Entries of an artifact that is appended to: versions can be merged in any order, and nothing is lost or there twice."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.tasks.producers.artifacts import MAX_METADATA_CHARS
from prefect_artifact_retention.tasks.producers.entries import Format, Log, Rows, Text, entry_id, read_snapshot

IDS = [entry_id(1_800_000_000_000 + number, number) for number in range(12)]
TEXTS = {name: (f"text {number}\n\nof {number}",) for number, name in enumerate(IDS)} | {IDS[3]: (), IDS[8]: ()}
ROWS = {name: tuple({"row": f"{number}-{each}"} for each in range(number % 4)) for number, name in enumerate(IDS)}
STORES: list[tuple[Format, dict[str, Any]]] = [(Text("\n\n"), TEXTS), (Rows(), ROWS)]
EITHER = pytest.mark.parametrize(("store", "entries"), STORES, ids=["text", "rows"])

some = st.sets(st.sampled_from(IDS))


def version(data: object, metadata: dict[str, str] | None = None, kind: str = "markdown") -> dict[str, Any]:
    """A version as the server shows it."""
    created = datetime(2026, 5, 20, tzinfo=UTC).isoformat()
    fields = {"id": str(uuid4()), "key": "log", "type": kind, "created": created, "description": None}
    return fields | {"data": data, "metadata_": metadata}


def log(entries: dict[str, Any], names: set[str]) -> Log:
    """Some of the entries."""
    return Log({name: entries[name] for name in names})


@EITHER
@given(names=some)
def test_what_is_stored_is_read_again(store: Format, entries: dict[str, Any], names: set[str]) -> None:
    """Each entry with its id, also where the separator is in a text."""
    before = log(entries, names)
    data, metadata = before.dump(store, IDS[0])
    assert all(len(value) <= MAX_METADATA_CHARS for value in metadata.values())
    snapshot = read_snapshot(version(data, metadata), store)
    assert snapshot.log == before
    assert not snapshot.is_foreign
    assert snapshot.own == IDS[0]


@EITHER
@given(one=some, two=some, three=some, max_units=st.integers(1, 12))
def test_versions_are_merged_in_any_order(  # noqa: PLR0913, PLR0917 - what hypothesis draws
    store: Format, entries: dict[str, Any], one: set[str], two: set[str], three: set[str], max_units: int
) -> None:
    """Also those that were trimmed before: a union is the same whoever makes it, and made again changes nothing."""
    whole = [log(entries, names) for names in (one, two, three)]
    cut = [each.trim(store, max_units, 100) for each in whole]
    merged = cut[0].union(cut[1], cut[2])
    assert merged == cut[2].union(cut[0]).union(cut[1])
    assert merged == merged.union(cut[1])
    assert merged.trim(store, max_units, 100) == whole[0].union(whole[1], whole[2]).trim(store, max_units, 100)


@EITHER
@given(names=some, max_units=st.integers(1, 12))
def test_the_oldest_go_and_no_more_than_have_to(
    store: Format, entries: dict[str, Any], names: set[str], max_units: int
) -> None:
    """Rows one by one, texts as a whole."""
    units = [unit for name in sorted(names) for unit in entries[name]]
    left = log(entries, names).trim(store, max_units, 100).entries
    assert [unit for name in sorted(left) for unit in left[name]] == units[-max_units:]


@EITHER
def test_an_artifact_never_exceeds_its_size(store: Format, entries: dict[str, Any]) -> None:
    """Data and index together, but for the markers."""
    whole = log(entries, set(IDS))
    for kb in (0.1, 0.2, 0.3, 0.5):
        cut = whole.trim(store, 100, kb)
        data, metadata = cut.dump(store, IDS[-1])
        tokens = " ".join(value for name, value in metadata.items() if "entries-" in name).split()
        index = sum(len(token) + 1 for token in tokens if not token.endswith(":0"))
        assert len(json.dumps(data).encode()) + index <= kb * 1000
        assert len(cut.entries) < len(whole.entries)


def test_markers_take_no_room_of_entries() -> None:
    """Else an entry that fits by itself would go, once many versions were created at once."""
    markers = dict.fromkeys(IDS[1:], ())
    whole = Log({IDS[0]: ("x" * 900,), **markers})
    assert whole.trim(Text("\n"), 10, 1) == whole


def test_what_was_trimmed_does_not_come_back() -> None:
    """From an older version, which still has it."""
    whole = log(TEXTS, set(IDS))
    cut = whole.trim(Text("\n\n"), 3, 100)
    assert cut.union(whole) == cut


def test_a_version_that_something_else_wrote_is_one_entry() -> None:
    """The same for everybody who reads it, so that it is taken over once."""
    row = version("# By hand")
    one, two = read_snapshot(row, Text("\n")), read_snapshot(row, Text(", "))
    assert one == two
    assert one.is_foreign
    assert list(one.log.entries.values()) == [("# By hand",)]


@given(edited=st.text("ab\n", max_size=12), separator=st.sampled_from(["\n", "\n\n", ""]))
def test_a_version_that_was_edited_has_its_new_text_under_the_ids_that_it_had(edited: str, separator: str) -> None:
    """Its index says of which versions it was made. Where nothing is left of an entry, a gap may close."""
    store, before = Text(separator), Log({name: (text,) for name, text in zip(IDS, ("a", "b", "ab"), strict=False)})
    _, metadata = before.dump(store, IDS[2])
    snapshot = read_snapshot(version(edited, metadata), store)
    assert not snapshot.is_foreign
    assert list(snapshot.log.entries) == IDS[:3]
    assert store.dump(snapshot.log.units()).replace("\n", "") == edited.replace("\n", "")


@pytest.mark.parametrize(
    ("edited", "entries"),
    [
        ("one\n2\nthree", ["one", "2", "three"]),
        ("one\ntwo, and\nmore\nthree", ["one", "two, and\nmore", "three"]),
        ("one\nthree", ["one", "", "three"]),
        ("nothing", ["", "", "nothing"]),
    ],
)
def test_what_somebody_has_left_as_it_was_stays_an_entry_of_its_own(edited: str, entries: list[str]) -> None:
    """So the oldest can go one by one."""
    assert Text("\n").split_edited(edited, [3, 3, 5]) == [(each,) if each else () for each in entries]


@pytest.mark.parametrize(
    "metadata",
    [
        {"artifact-retention-entries-0": "x"},
        {"artifact-retention-entries-0": f"{IDS[0]}:-1"},
        {"artifact-retention-entries-0": f"{IDS[1]}:1 {IDS[0]}:1"},
        {"artifact-retention-entry": "?"},
        {"artifact-retention-separator-length": "x"},
    ],
    ids=str,
)
def test_an_index_that_is_none_is_no_error(metadata: dict[str, str]) -> None:
    """Whoever wrote that: the version is taken over as it is."""
    data, index = log(TEXTS, {IDS[0]}).dump(Text("\n"), IDS[0])
    assert read_snapshot(version(data, index | metadata), Text("\n")).is_foreign


@pytest.mark.parametrize(
    ("store", "data"),
    [(Text("\n"), None), (Text("\n"), {"a": 1}), (Rows(), '{"a": [1]}'), (Rows(), "no JSON"), (Rows(), 3)],
    ids=str,
)
def test_what_nothing_can_be_appended_to_is_an_error(store: Format, data: object) -> None:
    """Which names the version."""
    row = version(data)
    with pytest.raises(StoreError, match=f"^version {UUID(row['id'])} of log cannot be appended to: "):
        read_snapshot(row, store)


KNOWN = [("a\nb\nc", ""), ("b", ""), ("b\nc", ""), ("c", "")]
BEYOND = [("b\nc\nd", "d"), ("c\nd\ne", "d\ne"), ("b\nx", "b\nx"), ("bc", "bc"), ("x", "x")]


@pytest.mark.parametrize(("foreign", "beyond"), [*KNOWN, *BEYOND])
def test_what_a_copy_of_the_log_has_beyond_it_is_new(foreign: str, beyond: str) -> None:
    """It begins with some of the last entries, or is some of them; of texts and of rows."""
    text, rows = Text("\n"), Rows()
    assert text.without((foreign,), ["a", "b", "c"]) == ((beyond,) if beyond else ())
    assert rows.without(tuple(foreign.split("\n")), ["a", "b", "c"]) == tuple(filter(None, beyond.split("\n")))
