"""The wrong policy ran last night: from the alarm to everything back, by the commands of docs/archive.md."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from platforms import POLICIES, ROOT, TIMEOUT_SECONDS, Platform, end

KEYS = [f"key-{number}" for number in range(4)]
BLOCK = "prefect-database"
WRONG = '[[policies]]\nname = "hardly meant"\nkeep_last = 1\n'
TABLES = ("artifact", "artifact_collection")


def drill() -> list[str]:
    """The commands of the page, for this day."""
    page = (ROOT / "docs" / "archive.md").read_text(encoding="utf-8")
    block = page.split("\n## The wrong policy ran last night\n")[1].split("```sh\n")[1].split("```\n")[0]
    return block.replace("2026-11-27", f"{datetime.now(UTC):%Y-%m-%d}").splitlines()


def rows(deployed: Platform) -> dict[str, list[object]]:
    """All that the server has of other keys than those of this package, in every column."""
    others = "key NOT LIKE 'artifact-retention-%' ORDER BY id"
    return {table: deployed.sql(f"SELECT * FROM {table} WHERE {others}") for table in TABLES}


@contextmanager
def configured(deployed: Platform, archive: Path) -> Iterator[None]:
    """The nightly deployment, with an archive and a policy that is hardly meant, through the database."""
    file = deployed.folder / "retention.toml"
    settings = f'archive_url = "{archive}"\ndatabase_block = "{BLOCK}"\n\n'
    kinds = deployed.ask("GET", "/block_types/slug/secret")
    (schema, *_) = deployed.ask("POST", "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kinds["id"]]}}})
    block = deployed.ask(
        "POST",
        "/block_documents/",
        {
            "name": BLOCK,
            "block_type_id": kinds["id"],
            "block_schema_id": schema["id"],
            "data": {"value": deployed.database.url},
        },
    )
    file.write_text(settings + WRONG, encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(POLICIES, encoding="utf-8")
        deployed.ask("DELETE", f"/block_documents/{block['id']}")


@pytest.mark.long
def test_all_that_a_wrong_policy_deleted_is_back_after_the_commands_of_the_page(deployed: Platform, tmp_path: Path) -> None:
    """Field by field, as it was the day before; and the next night leaves it alone, for it is on hold."""
    deployed.fill(KEYS)
    before = rows(deployed)
    with configured(deployed, tmp_path / "archive"):
        run = deployed.run("nightly", ignore_guard=True)
        assert run["state"]["message"].startswith("Deleted 36 versions"), run["state"]["message"]
        assert len(rows(deployed)["artifact"]) == 4
        shell = deployed.shell(drill())
        try:
            assert shell.wait(TIMEOUT_SECONDS) == 0, deployed.log()
        finally:
            end(shell, signal.SIGKILL) if shell.poll() is None else None
        assert rows(deployed) == before
        deployed.prefect("work-pool", "resume", "artifact-retention")
        night = deployed.run("nightly", ignore_guard=True)
        assert night["state"]["message"].startswith("Deleted 0 versions")
        assert rows(deployed) == before
