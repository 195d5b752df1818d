"""What is archived is read back as it was, by this package and by those that others use."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import duckdb
import pandas as pd
import polars as pl
import pytest
from archives import JSON_TEXTS, NIGHT, SERVER, archived, by, columns, end, ledger_ids, plain, read, write
from chance import SEED
from prefect_artifact_retention.stores.archive.archive import Archive, open_archive
from prefect_artifact_retention.stores.archive.model import (
    ArchivedVersion,
    ArchiveError,
    CollectionRow,
    LedgerQuery,
    RunManifest,
)
from prefect_artifact_retention.stores.archive.reading import BATCH_BYTES

MEGABYTE = 1_000_000


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An archive with nothing in it."""
    made = open_archive(str(tmp_path / "archive"))
    made.check_writable()
    return made


@pytest.fixture
def odd() -> list[ArchivedVersion]:
    """Versions with everything that is odd: JSON texts, nulls, blanks, zones, sizes. They are in the order of a part."""
    texts = [archived(name.replace(" ", "-").replace(",", ""), data=text, metadata=text) for name, text in JSON_TEXTS.items()]
    versions = [
        *texts,
        archived(None, type=None, data=None, metadata=None, flow_run_id=None, policy=""),
        archived("", description="", data="", metadata=""),
        archived(
            "all",
            description="two\nlines, \x00 and 東京",
            task_run_id=UUID(int=2**128 - 1),
            was_latest=True,
            approved_by="Zoë",
            reasons=["one", "", "three"],
            rules=["keep_last", "expire_after_days"],
            created=datetime.fromisoformat("2026-10-25T02:30:00.000001+02:00"),
            updated=datetime.fromisoformat("9999-12-31T23:59:59.999999+00:00"),
            size=2**40,
        ),
        archived("none", reasons=[], rules=[]),
        archived("large", data=f'"{random.Random(SEED).randbytes(2_500_000).hex()}"'),
    ]
    return sorted(versions, key=lambda each: (each.key is None, each.key or ""))


def test_each_column_is_read_back_as_it_was(archive: Archive, odd: list[ArchivedVersion]) -> None:
    """Every kind of JSON text, null and empty, other zones, lists, and a payload of 5 MB."""
    manifest = write(archive, odd[:7], odd[7:])
    assert {each.id: each for each in read(archive)} == {each.id: plain(each) for each in odd}
    assert (manifest.rows, manifest.first_id, manifest.last_id) == (len(odd), odd[0].id, odd[-1].id)
    assert (manifest.first_key, manifest.last_key) == ("", "zero-character")
    assert [each.model_dump_json() for each in archive.manifests()] == [manifest.model_dump_json()]
    assert archive.problems() == []


def test_other_readers_see_the_same(archive: Archive, odd: list[ArchivedVersion], tmp_path: Path) -> None:
    """DuckDB, polars and pandas read texts as texts, times as times, and null as null."""
    write(archive, odd)
    files = f"{tmp_path}/archive/data/*.parquet"
    duck = duckdb.sql(f"SELECT id, data, metadata, created, rules FROM '{files}'").fetchall()
    assert [(row[0], row[1], row[2], row[3].timestamp(), row[4]) for row in duck] == [
        (str(each.id), each.data, each.metadata, each.created.timestamp(), [*each.rules]) for each in odd
    ]
    polars = pl.read_parquet(files)
    assert polars["data"].to_list() == [each.data for each in odd]
    assert polars["created"].to_list() == [each.created for each in odd]
    assert polars.schema["id"] == pl.String
    pandas = pd.read_parquet(tmp_path / "archive" / "data")
    assert [None if pd.isna(each) else each for each in pandas["metadata"]] == [each.metadata for each in odd]
    assert [*pandas["updated"][:3]] == [each.updated for each in odd[:3]]


def test_what_is_written_is_in_the_order_of_keys(archive: Archive, tmp_path: Path) -> None:
    """Whatever order a database gives it in: whoever looks for a key skips most of a part."""
    versions = [archived(key, number) for number, key in enumerate(["b", None, "a", "c", "b", None, "a"], 1)]
    write(archive, versions)
    # The file itself: who reads an archive by this package gets it in that order in any case.
    rows = pl.read_parquet(tmp_path / "archive" / "data" / "**" / "*.parquet").select("key", "id").rows()
    assert [(key, UUID(id_).int >> 64) for key, id_ in rows] == [
        *(("a", 3), ("a", 7), ("b", 1), ("b", 5), ("c", 4), (None, 2), (None, 6)),
    ]


def test_an_archive_without_parts_has_an_empty_ledger(archive: Archive) -> None:
    """With its columns, so that whoever reads it needs no exception for it."""
    assert archive.ledger().num_rows == 0
    assert archive.ledger().schema.names == [
        *(name for name in ArchivedVersion._fields if name not in {"data", "metadata", "description"}),
        "has_payload",
    ]
    assert [*archive.versions()] == []
    assert archive.manifests() == archive.runs() == archive.problems() == []
    assert archive.collections(["report"]) == {}
    assert archive.first_free_number("run-1") == 1


def test_a_ledger_alone_has_no_payload(archive: Archive) -> None:
    """Neither the data, nor what a person may have written into the description or metadata; and it says so."""
    version = archived(description="secret", data='"secret"', metadata='{"a": "secret"}')
    manifest = write(archive, [version], payloads=False)
    assert not manifest.has_payloads
    assert [*read(archive)] == [plain(version._replace(description=None, data=None, metadata=None))]
    assert archive.ledger()["has_payload"].to_pylist() == [False]


def test_the_last_part_that_has_a_version_is_right_about_it(archive: Archive) -> None:
    """A run that was killed before it deleted, and the one that deleted then, are one deletion."""
    first, second = archived(), archived()
    write(archive, [first, second])
    write(archive, by(2, [second]))
    assert {each.id: each.run_id for each in read(archive)} == {first.id: "run-1", second.id: "run-2"}
    assert ledger_ids(archive, LedgerQuery(runs=["run-1"])) == [first.id]
    assert ledger_ids(archive, LedgerQuery(until=NIGHT)) == [first.id]
    assert ledger_ids(archive, LedgerQuery(since=NIGHT + timedelta(seconds=1))) == [second.id]


def test_what_was_deleted_again_is_a_deletion_of_both_runs(archive: Archive) -> None:
    """It was restored between them. The last run has kept the ledger only, and the payload is still that of the first."""
    version = archived()
    write(archive, [version])
    end(archive, 1)
    write(archive, by(2, [version]), payloads=False)
    end(archive, 2)
    for run, query in enumerate((LedgerQuery(runs=["run-1"]), LedgerQuery(runs=["run-2"])), 1):
        (row,) = archive.ledger(query).to_pylist()
        assert (row["run_id"], row["has_payload"]) == (f"run-{run}", True)
        assert [*read(archive, query)] == [plain(version)]
    assert ledger_ids(archive, LedgerQuery(until=NIGHT)) == ledger_ids(archive) == [version.id]


def test_the_part_that_was_written_last_is_right_also_if_its_run_began_earlier(archive: Archive) -> None:
    """A run that began later archived the version, and was killed; then it was changed, archived anew and deleted."""
    version = archived()
    write(archive, by(2, [version._replace(data='"as it was"')]))
    write(archive, [version])
    end(archive, 1)
    assert [*read(archive)] == [plain(version)]
    assert archive.ledger().column("run_id").to_pylist() == ["run-1"]


def test_the_copy_of_another_server_is_never_that_of_the_one_asked_for(archive: Archive) -> None:
    """A clone of a server has versions with the same ids."""
    version = archived()
    write(archive, [version])
    end(archive, 1)
    write(archive, by(2, [version._replace(data='"of the clone"')], server="http://clone.example/api"))
    assert [*read(archive, LedgerQuery(servers=[version.server]))] == [plain(version)]


def test_what_a_run_did_not_delete_after_all_is_not_in_its_ledger(archive: Archive) -> None:
    """It is in that of the run that did, later or earlier."""
    kept, twice, gone = archived(), archived(), archived()
    write(archive, [kept, twice, gone])
    end(archive, 1, spared=[kept.id, twice.id])
    write(archive, by(2, [twice]))
    assert {each.id: each.run_id for each in read(archive)} == {gone.id: "run-1", twice.id: "run-2"}
    assert {*ledger_ids(archive)} == {gone.id, twice.id}


def test_an_attempt_of_a_run_that_deletes_what_an_earlier_one_left_is_believed(archive: Archive) -> None:
    """Both have the same id: what the first did not delete is said of its own parts only."""
    version = archived()
    write(archive, [version])
    end(archive, 1, spared=[version.id])
    assert ledger_ids(archive) == []
    assert archive.first_free_number("run-1") == 2
    last = write(archive, [version])
    changes = {"parts": (last.name,), "spared": (), "outcome": "unfinished", "ended_at": NIGHT + timedelta(hours=1)}
    archive.publish_run(archive.runs()[0].model_copy(update=changes))
    assert ledger_ids(archive) == [version.id]
    assert [run.outcome for run in archive.runs()] == ["completed", "unfinished"]


def test_an_attempt_of_a_run_speaks_for_an_earlier_one_that_was_killed(archive: Archive) -> None:
    """What it finds there and does not delete was not deleted before; of a later attempt, it knows nothing."""
    kept, gone = archived(), archived()
    write(archive, [kept, gone])
    assert archive.unended_runs() == {"run-1"}
    last = write(archive, [kept])
    ended = RunManifest(
        run_id="run-1",
        run_name="fox-1",
        server=SERVER,
        ended_at=NIGHT,
        outcome="completed",
        parts=[last.name],
        versions=1,
        deleted=0,
        spared=[kept.id],
    )
    archive.publish_run(ended)
    assert archive.runs() == [ended]
    assert ledger_ids(archive) == [gone.id]
    write(archive, [kept])
    assert {*ledger_ids(archive)} == {kept.id, gone.id}


def test_a_run_has_ended_when_all_of_its_parts_are_spoken_for(archive: Archive) -> None:
    """Also once it is pruned: its manifest lists the parts that were replaced."""
    write(archive, [archived()])
    write(archive, by(2, [archived()]))
    end(archive, 1)
    assert archive.unended_runs() == {"run-2"}
    archive.prune(datetime(2100, 1, 1, tzinfo=UTC), 30, 0, SERVER)
    assert archive.unended_runs() == {"run-2"}


def some(chance: random.Random, number: int) -> ArchivedVersion:
    """A version by chance."""
    return by(
        chance.randrange(1, 5),
        [archived(chance.choice(["a", "ab", "b-1", "b-2", "c", None]), size=number)],
        rules=chance.sample(["keep_last", "grace_days", "expire_after_days"], chance.randrange(3)),
        server=chance.choice(["http://one/api", "http://two/api"]),
        policy=chance.choice(["short", "long"]),
    )[0]


QUERIES: list[tuple[LedgerQuery, Callable[[ArchivedVersion], bool]]] = [
    (LedgerQuery(keys=["a"]), lambda v: v.key == "a"),
    (LedgerQuery(keys=["b-*"]), lambda v: v.key in {"b-1", "b-2"}),
    (LedgerQuery(keys=["a?", "[!ab]"]), lambda v: v.key in {"ab", "c"}),
    (LedgerQuery(keys=["nothing", "zz*"]), lambda _: False),
    (LedgerQuery(runs=["run-2", "fox-3"]), lambda v: v.run_id in {"run-2", "run-3"}),
    (LedgerQuery(rules=["grace_days"]), lambda v: "grace_days" in v.rules),
    (LedgerQuery(policies=["long", "none"]), lambda v: v.policy == "long"),
    (LedgerQuery(servers=["http://two/api"]), lambda v: v.server == "http://two/api"),
    (LedgerQuery(since=NIGHT + timedelta(days=1)), lambda v: v.run_id != "run-1"),
    (LedgerQuery(until=NIGHT + timedelta(days=1)), lambda v: v.run_id in {"run-1", "run-2"}),
    (
        LedgerQuery(keys=["b*"], rules=["keep_last"], runs=["fox-1"]),
        lambda v: v.key in {"b-1", "b-2"} and "keep_last" in v.rules and v.run_id == "run-1",
    ),
    (LedgerQuery(), lambda _: True),
]  # fmt: skip


@pytest.mark.parametrize(("query", "applies"), QUERIES)
def test_a_query_finds_what_it_asks_for(
    archive: Archive, query: LedgerQuery, applies: Callable[[ArchivedVersion], bool]
) -> None:
    """In the ledger, in its order; and the same versions with their payloads, each key's together."""
    chance = random.Random(SEED)
    known: dict[UUID, ArchivedVersion] = {}
    versions = [some(chance, number) for number in range(300)]
    for run in range(1, 5):
        # Some that an earlier run archived and did not delete are archived again.
        again = by(run, chance.sample([*known.values()], min(len(known), 20)))
        mine = [*again, *(each for each in versions if each.run_id == f"run-{run}")]
        chance.shuffle(mine)
        known |= {each.id: each for each in mine}
        write(archive, mine[:30], mine[30:])
    found = sorted(filter(applies, known.values()), key=lambda v: (v.decided_at, v.key is None, v.key or "", v.created, v.id))
    assert ledger_ids(archive, query) == [each.id for each in found]
    assert [*read(archive, query)] == sorted(map(plain, found), key=lambda v: (v.key is None, v.key or "", v.created, v.id))


def test_versions_are_found_by_their_ids(archive: Archive) -> None:
    """With others of their key left out, and an id that is not there passed over."""
    versions = [archived() for _ in range(10)]
    write(archive, versions[:5], versions[5:])
    ids = [versions[7].id, versions[2].id, UUID(int=1)]
    assert [each.id for each in read(archive, LedgerQuery(ids=ids))] == [versions[2].id, versions[7].id]
    assert [*read(archive, LedgerQuery(ids=ids, keys=["other"]))] == []


def test_payloads_come_a_few_megabytes_at_a_time(archive: Archive) -> None:
    """Though the versions of a key are spread over all parts, and none is read in its turn."""
    large = [archived(f"k{number % 3}", data=f'"{number:0>1000000}"') for number in range(27)]
    for start in range(0, 27, 9):
        write(archive, large[start : start + 4], large[start + 4 : start + 9])
    batches = [*archive.versions()]
    assert all(sum(len(each.data or "") for each in batch) <= BATCH_BYTES + MEGABYTE for batch in batches)
    assert len(batches) == 4
    assert [each for batch in batches for each in batch] == [
        plain(each) for each in sorted(large, key=lambda version: (version.key or "", version.created))
    ]


def test_the_rows_of_a_collection_are_read_with_the_last_one_at_the_end(archive: Archive) -> None:
    """A key that goes as a whole, is written again, and goes again."""
    rows = [CollectionRow(key="report", id=UUID(int=n), created=NIGHT, updated=NIGHT, latest_id=UUID(int=n)) for n in (1, 2)]
    for number, row in enumerate(rows, 1):
        with archive.stage(f"run-{number}-00001") as part:
            part.add(columns(by(number, [archived()])))
            part.publish([row])
    assert archive.collections(["report", "other"]) == {"report": rows}


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (archived(created=datetime(2026, 1, 1)), "without a zone as created"),  # noqa: DTZ001 - the point
        (archived(data='"\ud800"'), "surrogates not allowed"),
    ],
)
def test_what_cannot_be_kept_as_it_is_is_not_archived(archive: Archive, version: ArchivedVersion, words: str) -> None:
    """A time of which nobody knows the zone, a text that is no Unicode; and nothing else of its part."""
    with pytest.raises(ArchiveError, match=words):
        write(archive, [archived()], [version])
    assert archive.manifests() == archive.problems() == []


def test_a_part_that_is_not_published_leaves_nothing(archive: Archive) -> None:
    """Neither when its run fails, nor when it has nothing to say."""
    with archive.stage("run-1-00001") as part:
        part.add(columns([archived()]))
        part.add(columns([]))
    with archive.stage("run-1-00001") as part, pytest.raises(ValueError, match="needs a version"):
        part.publish()
    assert archive.problems() == []
    assert archive.first_free_number("run-1") == 1


@pytest.mark.parametrize("name", ["run", "run-1", "run-1-1", "../run-00001", "a/b-00001", "-00001"])
def test_a_part_is_called_by_its_run_and_a_number(archive: Archive, name: str) -> None:
    """Whatever else could be taken for another file is refused."""
    with pytest.raises(ValueError, match="a part is called"), archive.stage(name):
        pass
