"""An archive whose disk fails, whose files are damaged, or whose writer is killed: nothing half written counts."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from archives import SERVER, archived, by, columns, counted, end, fail, ledger_ids, plain, read, write
from prefect_artifact_retention.policies import ConfigurationError
from prefect_artifact_retention.stores.archive.archive import Archive, open_archive
from prefect_artifact_retention.stores.archive.location import Folder
from prefect_artifact_retention.stores.archive.model import SCHEMA_VERSION, ArchiveError, LedgerQuery, Problem, RunManifest
from prefect_artifact_retention.stores.archive.parquet import LEDGER, PAYLOAD

TESTS = Path(__file__).parents[1]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An archive with nothing in it."""
    return open_archive(str(tmp_path / "archive"))


def archive_all(archive: Archive) -> None:
    """What a run does: two parts, and its last word."""
    archive.check_writable()
    write(archive, VERSIONS[:2], VERSIONS[2:3])
    write(archive, VERSIONS[3:])
    end(archive, 1)


# Those of another process are the same.
VERSIONS = [archived(number=number) for number in range(1, 6)]


def check_whole(archive: Archive) -> None:
    """Check that whatever counts can be read, and that a rerun completes it."""
    counting = [each.id for part in archive.manifests() for each in read(archive) if part.rows]
    assert {*counting} == {*ledger_ids(archive)}
    assert {*counting} in [set(), {each.id for each in VERSIONS[:3]}, {each.id for each in VERSIONS}]
    archive_all(archive)
    assert [*read(archive)] == [plain(each) for each in VERSIONS]
    assert ledger_ids(archive) == [each.id for each in VERSIONS]


SOME = pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.thorough)])


@SOME
def test_a_disk_that_fails_at_any_call_leaves_nothing_half(memory: Path, step: int) -> None:
    """Whichever it is: the error is in words, what counts is whole, and the next attempt completes."""
    with counted(memory) as calls:
        archive_all(open_archive(str(memory / "undisturbed")))
    total, told = calls.seen, list[str]()
    for number in range(1, total + 1, step):
        archive = open_archive(str(memory / str(number)))
        with counted(memory, number, fail):
            try:
                archive_all(archive)
            except ArchiveError as error:
                told.append(str(error))  # a folder that cannot be made, and is there already, is no error
        archive.check_writable()
        check_whole(archive)
    assert len(told) > 20 / step
    assert [text for text in told if "Input/output error" not in text] == []


STAGED = "is being written, or left over"
UNMARKED = (
    "has no manifest, so it does not count: it is being written, or its run was killed, and deleted none of its versions"
)
KILLED = """
import os, signal, sys
from pathlib import Path
import test_archive_faults as faults
from prefect_artifact_retention.stores.archive.archive import open_archive
folder, total = Path(sys.argv[1]), int(sys.argv[2])
faults.archive_all(open_archive(str(folder / "warm")))
for number in range(1, total + 1, int(sys.argv[3])):
    if not (child := os.fork()):
        with faults.counted(folder, number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            faults.archive_all(open_archive(str(folder / str(number))))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, number
"""


@pytest.mark.thorough
@SOME
def test_a_run_killed_between_any_two_calls_leaves_nothing_half(memory: Path, step: int) -> None:
    """What it left is named, does not count, and is in nobody's way."""
    with counted(memory) as calls:
        archive_all(open_archive(str(memory / "undisturbed")))
    total = calls.seen
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS / 'unit'}"}
    subprocess.run([sys.executable, "-c", KILLED, str(memory), str(total), str(step)], check=True, env=environment)
    left = set()
    for number in range(1, total + 1, step):
        archive = open_archive(str(memory / str(number)))
        archive.check_writable()
        left |= {problem.text.partition(" ")[2] for problem in archive.problems()}
        check_whole(archive)
    assert left == {STAGED, UNMARKED}


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit of a process for the size of its files stands for the disk."""
    code = """
    import resource, sys
    from archives import SERVER, archived, write
    from prefect_artifact_retention.stores.archive.archive import open_archive
    from prefect_artifact_retention.stores.archive.model import ArchiveError
    archive = open_archive(sys.argv[1])
    archive.check_writable()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    import random
    try:
        write(archive, [archived(data=random.Random(1).randbytes(500_000).hex())])
    except ArchiveError as error:
        print(error)
    """
    folder = str(tmp_path / "archive")
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), folder],
        env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.strip() == f"the archive {folder}: cannot write run-1-00001: OSError: [Errno 27] File too large"
    assert run.stderr == ""
    assert open_archive(folder).problems() == open_archive(folder).manifests() == []


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    """And above it, too, before anything is asked of the archive."""
    file = tmp_path / "archive"
    file.write_text("somebody's file")
    for folder in (file, file / "below", file / "below/more"):
        with pytest.raises(ConfigurationError, match=f"^an archive is in a folder, and {file} is a file$"):
            open_archive(str(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_told(tmp_path: Path) -> None:
    """As soon as the run asks."""
    tmp_path.chmod(0o500)
    with pytest.raises(ArchiveError, match="Permission denied"):
        open_archive(str(tmp_path / "archive")).check_writable()
    tmp_path.chmod(0o700)


def test_an_archive_that_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    """A misspelt folder would say that nothing was ever deleted."""
    archive = open_archive(str(tmp_path / "misspelt"))
    for look in (archive.manifests, archive.ledger, archive.runs):
        with pytest.raises(ArchiveError, match="there is no such folder"):
            look()
    assert (archive.is_new(), archive.problems()) == (True, [])
    assert not (tmp_path / "misspelt").exists()


def test_one_flipped_bit_is_noticed(archive: Archive, tmp_path: Path) -> None:
    """In any byte of the file: by the hash of the part, when a payload of it is read."""
    write(archive, VERSIONS)
    part = tmp_path / "archive/data/run-1-00001.parquet"
    content = part.read_bytes()
    for place in range(0, len(content), 97):
        part.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ArchiveError):
            [*read(archive, LedgerQuery(ids=[VERSIONS[0].id]))]
    part.write_bytes(content)
    assert len([*read(archive)]) == 5


def test_the_hash_of_a_part_is_that_of_its_manifest(archive: Archive, tmp_path: Path) -> None:
    """A part that somebody wrote anew is not what was archived, though it can be read."""
    write(archive, VERSIONS)
    other = open_archive(str(tmp_path / "other"))
    write(other, [version._replace(data='"forged"') for version in VERSIONS])
    (tmp_path / "other/data/run-1-00001.parquet").replace(tmp_path / "archive/data/run-1-00001.parquet")
    with pytest.raises(ArchiveError, match=r"data/run-1-00001.parquet is not as it was written: its SHA-256"):
        [*read(archive)]


def test_a_part_that_is_cut_or_gone_is_told(archive: Archive, tmp_path: Path) -> None:
    """With what to do; and the others are not taken for all there is."""
    write(archive, VERSIONS)
    write(archive, by(2, [archived()]))
    part = tmp_path / "archive/data/run-1-00001.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-10])
    [problem] = archive.problems()
    assert problem == Problem(
        f"data/run-1-00001.parquet has {len(content) - 10} bytes instead of {len(content)}: "
        "its 5 versions cannot be restored. Put it back, or remove it and manifests/run-1-00001.json to do without them",
        is_damage=True,
    )
    with pytest.raises(ArchiveError, match=r"cannot read data/run-1-00001.parquet"):
        archive.ledger()
    part.unlink()
    [problem] = archive.problems()
    assert problem == Problem(
        "data/run-1-00001.parquet is missing: its 5 versions cannot be read. "
        "Put it back, or remove manifests/run-1-00001.json to do without them",
        is_damage=True,
    )
    with pytest.raises(ArchiveError, match=r"cannot read data/run-1-00001.parquet"):
        archive.ledger()
    (tmp_path / "archive/manifests/run-1-00001.json").unlink()
    assert len(ledger_ids(archive)) == 1


def test_a_part_that_was_written_anew_with_other_types_is_read(archive: Archive, tmp_path: Path) -> None:
    """As other programs do; what cannot be meant is told like any damage, and is in no other part's way."""
    write(archive, VERSIONS)
    write(archive, by(2, [archived(number=9)]))
    part = tmp_path / "archive/data/run-1-00001.parquet"
    table = pq.read_table(part)
    texts = [pa.large_string() if field.type == pa.string() else field.type for field in table.schema]
    pq.write_table(table.cast(pa.schema(zip(table.column_names, texts, strict=True))), part)
    assert len(ledger_ids(archive)) == len(ledger_ids(archive, LedgerQuery(keys=["rep*"]))) == 6
    wrong = pa.array([{"a": 1}] * len(table))
    pq.write_table(table.set_column(table.column_names.index("policy"), "policy", wrong), part)
    unreadable: dict[str, str] = {}
    assert len(archive.ledger(LedgerQuery(), unreadable)) == 1
    assert [*unreadable] == ["run-1-00001"]


@pytest.mark.parametrize("asked", [LEDGER, ("policy",)], ids=["all columns", "some columns"])
def test_of_a_version_nothing_is_read_but_its_row_group(archive: Archive, tmp_path: Path, asked: Sequence[str]) -> None:
    """Of the others, only the ids are: so damage in there is no obstacle, and a million rows are no work."""
    write(archive, VERSIONS[:2], VERSIONS[2:])
    part = tmp_path / "archive/data/run-1-00001.parquet"
    chunk = pq.read_metadata(part).row_group(0).column(LEDGER.index("policy") + len(PAYLOAD))
    assert chunk.path_in_schema == "policy"
    content = bytearray(part.read_bytes())
    content[chunk.dictionary_page_offset + 2 : chunk.dictionary_page_offset + chunk.total_compressed_size] = bytes(
        chunk.total_compressed_size - 2
    )
    part.write_bytes(content)
    for number, version in enumerate(VERSIONS):
        unreadable: dict[str, str] = {}
        found = archive.ledger(LedgerQuery(ids=[version.id]), unreadable, asked)
        assert (len(found), len(unreadable)) == ((1, 0) if number >= 2 else (0, 1))


def test_a_part_that_is_gone_is_in_nobodys_way_who_asks_for_something_else(archive: Archive, tmp_path: Path) -> None:
    """By its keys, its run, its server and its time; else it is named beside what the others have."""
    write(archive, [archived("audit"), archived("billing")])
    end(archive, 1)
    (report,) = by(3, [archived("report")])
    write(archive, [report])
    (tmp_path / "archive/data/run-1-00001.parquet").unlink()
    for query in (
        LedgerQuery(keys=["report"]),
        LedgerQuery(runs=["fox-3"]),
        LedgerQuery(servers=["http://other.example/api"]),
        LedgerQuery(since=datetime.now(UTC) + timedelta(days=2)),
    ):
        archive.ledger(query)
    unreadable: dict[str, str] = {}
    assert archive.ledger(LedgerQuery(runs=["run-1", "run-3"]), unreadable)["key"].to_pylist() == ["report"]
    assert [*unreadable] == ["run-1-00001"]
    assert "cannot read data/run-1-00001.parquet" in unreadable["run-1-00001"]
    advice = "its 2 versions cannot be read. Put it back, or remove manifests/run-1-00001.json to do without them"
    assert unreadable["run-1-00001"].endswith(advice)
    assert [*archive.versions(without=unreadable)] == [[plain(report)]]
    with pytest.raises(ArchiveError, match=r"data/run-1-00001.parquet"):
        [*read(archive)]


def test_a_manifest_that_is_lost_of_a_run_that_ended_is_told(archive: Archive, tmp_path: Path) -> None:
    """The run's last word lists the part, so its versions were deleted; unless somebody does without it."""
    write(archive, [archived("audit")])
    end(archive, 1)
    write(archive, by(3, [archived("report")]))
    (tmp_path / "archive/manifests/run-1-00001.json").unlink()
    advice = "its versions cannot be read. Put it back, or remove data/run-1-00001.parquet to do without them"
    for query, is_asked in (
        (LedgerQuery(), True),
        (LedgerQuery(runs=["run-1"]), True),
        (LedgerQuery(runs=["fox-3"]), False),
        (LedgerQuery(servers=["http://other.example/api"]), False),
        (LedgerQuery(since=datetime.now(UTC) + timedelta(days=2)), False),
    ):
        unreadable: dict[str, str] = {}
        archive.ledger(query, unreadable)
        assert [text.endswith(advice) for text in unreadable.values()] == [True] * is_asked
    with pytest.raises(ArchiveError, match=r"manifests/run-1-00001.json is missing, by which data/run-1-00001.parquet counts"):
        archive.ledger()
    assert [(problem.text.endswith(advice), problem.is_damage) for problem in archive.problems()] == [(True, True)]
    (tmp_path / "archive/data/run-1-00001.parquet").unlink()
    assert len(archive.ledger()) == 1


def test_a_part_that_its_run_could_not_publish_is_not_lost(archive: Archive, tmp_path: Path) -> None:
    """The run has deleted nothing on it, so it is removed in the end as one that never counted."""
    write(archive, VERSIONS)
    (tmp_path / "archive/manifests/run-1-00001.json").unlink()
    part = ["run-1-00001"]
    archive.publish_run(
        RunManifest(
            run_id="run-1", run_name="fox-1", server=SERVER, ended_at=datetime.now(UTC), outcome="failed",
            parts=part, unconfirmed=part, versions=0, deleted=0,
        )
    )  # fmt: skip
    assert ledger_ids(archive) == []
    [problem] = archive.problems()
    assert ("it does not count" in problem.text, problem.is_damage) == (True, False)
    archive.prune(datetime.now(UTC) + timedelta(days=30), 0, 0, SERVER)
    assert archive.problems() == []


def test_a_half_written_part_does_not_count_though_it_can_be_read(archive: Archive, tmp_path: Path) -> None:
    """Parquet may have its end, and be a part of what was meant: only the manifest says that it is whole."""
    write(archive, VERSIONS)
    (tmp_path / "archive/manifests/run-1-00001.json").unlink()
    assert ledger_ids(archive) == [*read(archive)] == archive.manifests() == []
    assert archive.first_free_number("run-1") == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"schema_version": SCHEMA_VERSION + 1},
            "is of version 2 of the format, and this package knows 1: a newer one is needed",
        ),
        ({"schema_version": "new"}, "is of version 'new' of the format"),
        ({"format": "other"}, "is not of an archive of this package"),
        ({"name": "run-1-00007"}, "says that it is of run-1-00007"),
        ({"rows": "many"}, "cannot be read as meant: rows"),
        ([], "is not of an archive of this package"),
        ("", "is no JSON"),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_told(archive: Archive, tmp_path: Path, content: object, words: str) -> None:
    """And neither written beside, nor passed over: what it says may be more than is known here."""
    write(archive, VERSIONS)
    file = tmp_path / "archive/manifests/run-1-00001.json"
    changed = {**json.loads(file.read_bytes()), **content} if isinstance(content, dict) else content
    file.write_text(json.dumps(changed) if changed != "" else "")
    for look in (archive.manifests, archive.ledger, archive.check_writable, archive.problems, archive.runs):
        with pytest.raises(ArchiveError, match=f"manifests/run-1-00001.json {words}"):
            look()


@pytest.mark.parametrize("name", ["report.csv", "data/2026.parquet", "other/file"])
def test_a_folder_of_something_else_is_left_alone(archive: Archive, tmp_path: Path, name: str) -> None:
    """Nothing is written there, not even a file that would be removed again."""
    file = tmp_path / "archive" / name
    file.parent.mkdir(parents=True)
    file.write_text("somebody's")
    with pytest.raises(ArchiveError, match=f"there is something else .{name.removesuffix('/file')}., and no archive"):
        archive.check_writable()
    assert [path for path in (tmp_path / "archive").rglob("*") if path.is_file()] == [file]


def test_foreign_files_in_an_archive_are_named(archive: Archive, tmp_path: Path) -> None:
    """They are no reason not to archive."""
    write(archive, VERSIONS)
    (tmp_path / "archive/notes.txt").write_text("somebody's")
    (tmp_path / "archive/data/copy of run.parquet").write_text("somebody's")
    archive.check_writable()
    names = ("notes.txt", "data/copy of run.parquet")
    assert archive.problems() == [Problem(f"{name} is no part of the archive", is_damage=False) for name in names]


def test_a_part_is_never_replaced(archive: Archive) -> None:
    """Two that are written under one name, by two processes that take each other for dead: the second is told."""
    with archive.stage("run-1-00001") as first, archive.stage("run-1-00001") as second:
        first.add(columns(VERSIONS[:2]))
        second.add(columns(VERSIONS[2:]))
        first.publish()
        with pytest.raises(ArchiveError, match=r"there is another data/run-1-00001.parquet already"):
            second.publish()
    assert [*read(archive)] == [plain(each) for each in VERSIONS[:2]]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://AKIA123:hunter2@bucket/x", "credentials belong into a block"),
        ("s3://hunter2@bucket/x", "credentials belong into a block"),
        ("s3://bucket/x?secret=hunter2", "credentials belong into a block"),
        ("az://container/x?sig=hunter2", "credentials belong into a block"),
        ("ftp://user:hunter2@host/x", "an archive is in a folder, or in an object store"),
        ("simplecache::s3://hunter2", "an archive is in a folder, or in an object store"),
        ("s3:///x", "has no name"),
        ("s3:/hunter2/x", "must be absolute"),
        ("file://localhost/hunter2", "must be absolute"),
        ("user:hunter2@host", "must be absolute"),
        ("~hunter2/x", "must be absolute"),
        (" \n", "must be absolute"),
        ("gs://bucket/x", r"pip install 'prefect-artifact-retention\[archive-gcs\]'"),
    ],
)
def test_a_url_that_cannot_be_an_archive_is_refused(url: str, words: str) -> None:
    """Before anything is asked of it; and a password in it is not shown."""
    with pytest.raises(ConfigurationError, match=words) as refused:
        open_archive(url)
    assert "hunter2" not in str(refused.value)


def test_an_extra_that_is_not_installed_is_named() -> None:
    """The package itself works without it."""
    code = """
    import sys
    sys.modules["pyarrow"] = None
    from prefect_artifact_retention.policies import ConfigurationError
    from prefect_artifact_retention.stores.archive.model import ArchivedVersion
    try:
        from prefect_artifact_retention.stores.archive.archive import open_archive
    except ConfigurationError as error:
        print(error)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "pip install 'prefect-artifact-retention[archive]'" in run.stdout


def test_a_folder_is_the_same_wherever_the_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is relative is refused; `~` is the home, `file://` may be before it, and blanks around it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    urls = ("~/archive", f"file://{tmp_path}/archive", f" {tmp_path}/archive\n")
    assert {open_archive(url).url for url in urls} == {f"{tmp_path}/archive"}


def test_what_may_not_be_removed_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever archives needs no right to remove; only pruning does."""

    def remove(folder: Folder, name: str) -> None:
        with folder.doing(f"remove {name}"):
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Folder, "remove", remove)
    archive = open_archive(str(tmp_path / "archive"))
    archive.check_writable()
    write(archive, VERSIONS[:2])
    assert [*read(archive)] == [plain(each) for each in VERSIONS[:2]]
