"""`policies diff`: what a change of the policies would newly delete and newly keep, on one reading of the versions."""

import json
from pathlib import Path
from typing import Any

import pytest
from database import series
from fake import FakeServer
from prefect_artifact_retention.flows.cleanup import preview
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.flows.comparison import Comparison, Side, compare, live_policies, show
from prefect_artifact_retention.flows.settings import RetentionSettings, read_policies
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy
from servers import BY_FAKE, FAKE, POSTGRESQL_DATABASE, SQLITE_API, Server, on, thorough

THREE = RetentionPolicy(name="three", keep_last=3)
TWO = RetentionPolicy(name="two", match_keys=["a-*"], keep_last=2)
LOOSE = RetentionPolicy(name="loose", unkeyed=True, keep_within_days=30)


async def difference(
    server: Server | FakeServer, old: list[RetentionPolicy], new: list[RetentionPolicy], *keys: str
) -> Comparison:
    """Compare two lists of policies."""
    with server.active():
        return await compare(RetentionSettings(), Side(old, "old.toml"), Side(new, "new.toml"), keys)


@on(FAKE, thorough(POSTGRESQL_DATABASE), thorough(SQLITE_API))
async def test_each_version_that_would_newly_go_or_stay_is_named_with_its_reason(
    server: Server | FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """By key and policy; also of a key that has no policy any more, and of artifacts without a key."""
    a = await server.database.insert(series("a-1", [1, 1.52, 3, 4, 5]))
    b = await server.database.insert(series("b-1", [1, 2, 3, 4, 5]))
    loose = await server.database.insert(series(None, [10, 31]))
    found = await difference(server, [THREE], [TWO, LOOSE])
    assert {
        each.key: (each.policy_before, each.policy, each.newly_deleted, each.newly_kept) for each in found.key_differences
    } == {
        "a-1": ("three", "two", [a[2].id], []),
        "b-1": ("three", "", [], [b[3].id, b[4].id]),
        None: ("", "loose", [loose[1].id], []),
    }
    by_key = {each.key: each for each in found.key_differences}
    assert [(each.rule, each.versions, each.example) for each in by_key["a-1"].deleted_by] == [
        ("unclaimed", 1, "superseded 36 hours ago, outside every keep rule")
    ]
    assert by_key["b-1"].kept_by[0].rule == "unmanaged"
    assert found.changes == ['policy "two" is new', 'policy "loose" is new', 'policy "three" is gone']
    assert found.versions_seen == 12
    show(found)
    shown = capsys.readouterr().out
    assert "Newly deleted: 2 versions, newly kept: 2 versions" in shown
    assert "b-1" in shown
    assert "2 keys and the artifacts without a key differ:" in shown


@on(*BY_FAKE)
async def test_lists_that_mean_the_same_differ_in_nothing(server: Server | FakeServer) -> None:
    """Whatever the policies are called."""
    await server.database.insert(series("a-1", [1, 2, 3, 4, 5]))
    found = await difference(server, [THREE], [THREE.model_copy(update={"name": "other"})])
    assert not found.differs


@on(FAKE)
async def test_the_two_lists_cost_one_listing(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more requests than a preview, which reads the versions once."""
    await server.database.insert([row for number in range(40) for row in series(f"a-{number}", range(1, 21))])
    paths: list[str] = []
    answer = server.answer

    async def count(request: Any) -> Any:  # noqa: ANN401 - httpx
        paths.append(request.url.path)
        return await answer(request)

    monkeypatch.setattr(server, "answer", count)
    with server.active():
        await preview(RetentionSettings(), [THREE])
    previewed = len(paths)
    assert (await difference(server, [THREE], [TWO])).key_differences
    assert len(paths) - previewed <= previewed


@on(FAKE)
async def test_live_is_what_a_delete_run_has_applied_last(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run over all keys, by the configured policies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retention.toml").write_text('[[policies]]\nname = "three"\nkeep_last = 3\n', encoding="utf-8")
    await server.database.insert(series("a-1", [1, 2, 3, 4, 5]))
    with server.active(), pytest.raises(ConfigurationError, match="no delete run has left a record"):
        await live_policies()
    await server.cleanup(mode="delete")
    await server.cleanup([TWO], mode="delete", keys=["a-1"])
    with server.active():
        live = await live_policies()
    assert live.policies == (THREE,)
    assert "applied or accepted on" in live.source


def test_a_file_is_compared_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says of policies."""
    monkeypatch.setenv("ARTIFACT_RETENTION_POLICIES", json.dumps([{"name": "env", "keep_last": 1}]))
    file = tmp_path / "old.toml"
    file.write_text('[[policies]]\nname = "three"\nkeep_last = 3\n', encoding="utf-8")
    assert read_policies(file) == (THREE,)
    file.write_text("max_deletions = 3\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"old\.toml: has no \[\[policies\]\] table"):
        read_policies(file)


@pytest.mark.parametrize("arguments", [[], ["a.toml", "b.toml", "--live"], ["none.toml"]])
def test_what_is_to_be_compared_must_be_named(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two files, one and the configuration, or the live ones."""
    monkeypatch.chdir(tmp_path)
    assert main(["policies", "diff", *arguments]) == 2
    assert "command line: name OLD" in (said := capsys.readouterr().err) or "none.toml: cannot be read" in said
