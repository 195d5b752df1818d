"""An archive loses what is too old: payloads first, run by run, and whatever interrupts that, nothing else."""

import os
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from archives import NIGHT, SERVER, archived, by, columns, counted, end, fail, ledger_ids, plain, read, write
from prefect_artifact_retention.stores.archive.archive import Archive, open_archive
from prefect_artifact_retention.stores.archive.model import ArchivedVersion, ArchiveError, LedgerQuery
from prefect_artifact_retention.stores.archive.pruning import ABANDONED_DAYS

DAY = timedelta(days=1)
FIRST = [archived(data='"old"', description="old") for _ in range(5)]
SECOND = by(2, [archived() for _ in range(3)])


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An archive of two runs, one of which did not delete all that it archived."""
    made = open_archive(str(tmp_path / "archive"))
    fill(made)
    return made


def fill(archive: Archive) -> None:
    """Let two runs archive something."""
    write(archive, FIRST[:2], FIRST[2:3])
    write(archive, FIRST[3:])
    end(archive, 1, spared=[FIRST[4].id])
    write(archive, SECOND)
    end(archive, 2)


def written(archive: Archive, run: int) -> datetime:
    """When the last part of a run was written."""
    return max(part.written_at for part in archive.manifests() if part.run_id == f"run-{run}")


def bare(version: ArchivedVersion) -> ArchivedVersion:
    """What the ledger keeps of a version."""
    return plain(version)._replace(data=None, metadata=None, description=None)


def between(archive: Archive) -> datetime:
    """A time at which the first run is over 30 days old, and the second is not."""
    return written(archive, 2) + 30 * DAY


def test_payloads_go_by_whole_runs_and_the_ledger_stays(archive: Archive, tmp_path: Path) -> None:
    """The first run is a little older than 30 days, the second is exactly that; what was not deleted is not in the ledger."""
    before = archive.ledger()
    pruned = archive.prune(between(archive), 30, 0, SERVER)
    assert (pruned.runs, pruned.forgotten) == (("run-1",), ())
    assert [*read(archive)] == [*map(bare, FIRST[:4]), *map(plain, SECOND)]
    assert archive.ledger().drop_columns(["has_payload"]).equals(before.drop_columns(["has_payload"]))
    assert archive.ledger()["has_payload"].to_pylist() == [False] * 4 + [True] * 3
    assert [part.name for part in archive.manifests()] == ["run-1-00003", "run-2-00001"]
    assert sorted(path.name for path in (tmp_path / "archive/data").iterdir()) == [
        "run-1-00003.parquet",
        "run-2-00001.parquet",
    ]
    assert b"old" not in (tmp_path / "archive/data/run-1-00003.parquet").read_bytes()
    assert archive.problems() == []
    assert archive.prune(between(archive), 30, 0, SERVER).runs == ()


def test_the_ledger_goes_with_all_of_a_run(archive: Archive, tmp_path: Path) -> None:
    """Its age is that of the run, also after the payloads have gone."""
    now = between(archive)
    archive.prune(now, 30, 60, SERVER)
    assert len(ledger_ids(archive)) == 7
    pruned = archive.prune(now + 30 * DAY, 30, 60, SERVER)
    assert (pruned.runs, pruned.forgotten) == (("run-1", "run-2"), ("run-1",))
    assert ledger_ids(archive) == [each.id for each in SECOND]
    assert sorted(path.name for path in (tmp_path / "archive/manifests").iterdir()) == ["run-2-00002.json", "run-2.json"]
    assert pruned.bytes_freed > 0


@pytest.mark.parametrize(("keep_days", "ledger_keep_days"), [(0, 0), (0, 10), (100, 10), (100, 0)])
def test_what_is_kept_for_longer_stays(archive: Archive, keep_days: float, ledger_keep_days: float) -> None:
    """0 is for ever; and payloads are in the rows of the ledger, which therefore stay with them."""
    assert archive.prune(between(archive), keep_days, ledger_keep_days, SERVER).runs == ()
    assert [*read(archive)] == [*map(plain, FIRST[:4]), *map(plain, SECOND)]


def test_a_ledger_without_payloads_goes_by_its_own_limit(archive: Archive) -> None:
    """There is nothing else to wait for."""
    write(archive, by(3, [archived()]), payloads=False)
    now = written(archive, 3) + 11 * DAY
    assert archive.prune(now, 0, 10, SERVER).forgotten == ("run-3",)
    assert archive.prune(now, 0, 10, SERVER).runs == ()


def test_a_run_that_deleted_nothing_of_what_it_archived_leaves_no_ledger(archive: Archive) -> None:
    """There is no row to keep."""
    version = by(3, [archived()])
    write(archive, version)
    end(archive, 3, spared=[version[0].id])
    archive.prune(written(archive, 3) + 31 * DAY, 30, 0, SERVER)
    assert [part.run_id for part in archive.manifests()] == ["run-1", "run-2"]
    assert archive.problems() == []


def test_a_run_that_cannot_be_pruned_stops_no_other(archive: Archive, tmp_path: Path) -> None:
    """What is wrong with it is told, beside what was done."""
    (tmp_path / "archive/data/run-1-00001.parquet").unlink()
    pruned = archive.prune(written(archive, 2) + 31 * DAY, 30, 0, SERVER)
    assert (pruned.runs, pruned.forgotten) == (("run-2",), ())
    (problem,) = pruned.problems
    assert "cannot read data/run-1-00001.parquet" in problem
    assert [part.name for part in archive.manifests()] == ["run-1-00001", "run-1-00002", "run-2-00002"]


def test_a_server_prunes_its_own_runs_only(archive: Archive) -> None:
    """Others that share the archive have limits of their own."""
    theirs = by(3, [archived()], server="http://other.example/api")
    write(archive, theirs)
    now = written(archive, 3) + 99 * DAY
    assert archive.prune(now, 30, 60, SERVER).forgotten == ("run-1", "run-2")
    assert [*read(archive)] == [*map(plain, theirs)]
    assert archive.prune(now, 30, 0, "http://other.example/api").runs == ("run-3",)


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_pruning_that_fails_at_any_call_loses_nothing_of_the_ledger(memory: Path, step: int) -> None:
    """And no payload that is to stay; the next pruning completes it, and removes what the first left."""
    archive = open_archive(str(memory / "undisturbed"))
    fill(archive)
    with counted(memory) as calls:
        archive.prune(between(archive), 30, 0, SERVER)
    total = calls.seen
    assert total > 20
    for number in range(1, total + 1, step):
        archive = open_archive(str(memory / str(number)))
        fill(archive)
        now = between(archive)
        with counted(memory, number, fail):
            try:
                problems = [*archive.prune(now, 30, 0, SERVER).problems]
            except ArchiveError as error:
                problems = [str(error)]
        assert all("Input/output error" in problem for problem in problems)
        assert {*ledger_ids(archive)} == {each.id for each in (*FIRST[:4], *SECOND)}
        assert [*read(archive, LedgerQuery(runs=["run-2"]))] == [*map(plain, SECOND)]
        archive.prune(now, 30, 0, SERVER)
        assert [*read(archive)] == [*map(bare, FIRST[:4]), *map(plain, SECOND)]
        archive.prune(datetime.now(tz=NIGHT.tzinfo) + (ABANDONED_DAYS + 1) * DAY, 30, 0, SERVER)
        assert archive.problems() == []


def offload(archive: Archive) -> str:
    """Let the first run have moved data of versions that stay. Return the name of the part."""
    name = f"run-1-{archive.first_free_number('run-1'):05}"
    with archive.stage(name) as part:
        part.add(columns([archived()]))
        part.publish(offloaded=True)
    end(archive, 1)
    return name


def lose_manifest(folder: Path, part: str) -> None:
    """Remove the manifest of a part, and let it be old."""
    (folder / f"manifests/{part}.json").unlink()
    os.utime(folder / f"data/{part}.parquet", (0, 0))


def test_a_forgotten_run_vouches_for_what_it_moved_whenever_a_manifest_is_lost(tmp_path: Path) -> None:
    """Before or after its ledger goes: the only copy is damaged, and never left over."""
    for is_lost_before in (True, False):
        archive = open_archive(str(folder := tmp_path / f"lost before {is_lost_before}"))
        fill(archive)
        part = offload(archive)
        now = written(archive, 1) + 61 * DAY
        if is_lost_before:
            lose_manifest(folder, part)
        assert "run-1" in archive.prune(now, 30, 60, SERVER).forgotten
        if not is_lost_before:
            assert archive.problems() == []
            lose_manifest(folder, part)
        archive.prune(now + 60 * DAY, 30, 60, SERVER)
        (problem,) = archive.problems()
        assert (problem.is_damage, part in problem.text) == (True, True)
        # An attempt of the run that comes late is told apart.
        end(archive, 1)
        assert len(archive.runs()) == 2


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_run_that_is_forgotten_vouches_for_what_it_moved_whatever_fails_meanwhile(memory: Path, step: int) -> None:
    """And the next pruning completes it."""
    archive = open_archive(str(memory / "undisturbed"))
    fill(archive)
    now = written(archive, 1) + 61 * DAY
    offload(archive)
    with counted(memory) as calls:
        archive.prune(now, 30, 60, SERVER)
    total = calls.seen
    for number in range(1, total + 1, step):
        archive = open_archive(str(folder := memory / str(number)))
        fill(archive)
        part = offload(archive)
        with counted(memory, number, fail), suppress(ArchiveError):
            archive.prune(now, 30, 60, SERVER)
        archive.prune(now, 30, 60, SERVER)
        assert (ledger_ids(archive), archive.problems()) == ([], [])
        lose_manifest(folder, part)
        archive.prune(now + 60 * DAY, 30, 60, SERVER)
        assert [each.is_damage for each in archive.problems()] == [True]


def test_what_never_counted_is_removed_when_no_run_can_be_at_it_any_more(archive: Archive, tmp_path: Path) -> None:
    """A part without its manifest may be that of a run that is reading it back at the moment."""
    folder = tmp_path / "archive"
    unmarked, staged = folder / "data/run-3-00001.parquet", folder / "staging/run-3-00002.parquet.0a"
    foreign = folder / "data/somebody's.parquet"
    for file in (unmarked, staged, foreign):
        file.write_bytes(b"half")
    now = datetime.now(tz=NIGHT.tzinfo)
    archive.prune(now, 0, 0, SERVER)
    assert unmarked.exists()
    assert staged.exists()
    old = (now - (ABANDONED_DAYS + 1) * DAY).timestamp()
    for file in (unmarked, staged, foreign):
        os.utime(file, (old, old))
    archive.prune(now, 0, 0, SERVER)
    assert not unmarked.exists()
    assert not staged.exists()
    assert foreign.exists()
    assert [*read(archive)] == [*map(plain, FIRST[:4]), *map(plain, SECOND)]


def test_a_part_whose_manifest_is_lost_is_never_removed(archive: Archive, tmp_path: Path) -> None:
    """Its run has ended and lists it, so nobody else has what it has deleted."""
    part = tmp_path / "archive/data/run-1-00001.parquet"
    (tmp_path / "archive/manifests/run-1-00001.json").unlink()
    now = datetime.now(tz=NIGHT.tzinfo)
    old = (now - (ABANDONED_DAYS + 1) * DAY).timestamp()
    os.utime(part, (old, old))
    archive.prune(now, 0, 0, SERVER)
    assert part.exists()
    archive.prune(now + 400 * DAY, 30, 90, SERVER)
    assert part.exists()


def test_an_archive_that_has_lost_all_its_manifests_is_damaged_and_loses_no_part(archive: Archive, tmp_path: Path) -> None:
    """Also once a run has written to what looks like a new archive: nobody else has what was deleted."""
    now = datetime.now(tz=NIGHT.tzinfo)
    old = (NIGHT - DAY).timestamp()
    parts = [*(tmp_path / "archive/data").iterdir()]
    kept = {file: file.read_bytes() for file in (tmp_path / "archive/manifests").iterdir()}
    for file in (*parts, *kept):
        file.unlink() if file in kept else os.utime(file, (old, old))
    assert [problem.is_damage for problem in archive.problems()] == [True]
    write(archive, by(3, [archived()]))
    end(archive, 3)
    archive.prune(now, 30, 0, SERVER)
    [problem] = archive.problems()
    assert (problem.is_damage, "no manifest of 3 parts" in problem.text) == (True, True)
    for file, content in kept.items():
        file.write_bytes(content)
    assert archive.problems() == []
