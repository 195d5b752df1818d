"""What people read of a run, on a terminal and through a pipe: keys and ids are whole, whatever else gives way."""

import io
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from prefect_artifact_retention.flows import explanation, terminal
from prefect_artifact_retention.flows.explanation import ExplainedVersion, Explanation
from prefect_artifact_retention.tasks.rendering import label, markdown
from prefect_artifact_retention.tasks.report import CleanupReport, KeyReport, PolicyReport, RuleCount

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
KEYS = [f"{'model-churn-prediction-weekly-metrics-of-the-customers-in-' * 4}"[:58] + f"-{number}" for number in range(3)]
STYLE = re.compile("\x1b\\[[0-9;]*m")
POLICY = "everything else that nobody has thought of"


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What a function prints on a terminal of that width, or through a pipe (0)."""

    def call(function: Callable[..., object], *arguments: object, columns: int = 0) -> list[str]:
        output = Screen() if columns else io.StringIO()
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(columns or 80))
            patch.setenv("TERM", "xterm")
            patch.setattr(sys, "stdout", output)
            function(*arguments)
        return STYLE.sub("", output.getvalue()).splitlines() if columns else output.getvalue().splitlines()

    return call


def report() -> CleanupReport:
    """A delete run over keys of 60 characters, with everything that a report may have."""
    keys = [
        KeyReport(key=key, policy=POLICY, versions=1200, kept=1000, planned=200, deleted=200, bytes=1200, bytes_seen=12345)
        for key in KEYS
    ]
    rule = RuleCount(rule="older than the last 10", versions=200, example=f"{KEYS[0]}: not among the last 10; 12 days old")
    return CleanupReport(
        mode="delete",
        now=NOW,
        policy_source="retention.toml",
        policy_digest="0123456789ab",
        keys_seen=3,
        key_reports=keys,
        policies=[PolicyReport(name=POLICY, sentence="Every key: keep the last 10 and those within 30 days.", versions=3600)],
        condemned_by=[rule],
        unmanaged=KEYS,
        warnings=[f"{key}: nothing deleted, because its versions changed while they were read" for key in KEYS],
    )


def show(shown: CleanupReport) -> None:
    """Print a report, as the command line does."""
    terminal.show(terminal.Report(markdown(shown)))


@pytest.mark.parametrize("columns", [80, 100, 200, 0])
def test_a_report_has_every_key_and_policy_whole(printed: Callable[..., list[str]], columns: int) -> None:
    """On one line, so that two keys can be told apart and found."""
    assert {len(key) for key in KEYS} == {60}
    lines = printed(show, report(), columns=columns)
    for key in KEYS:
        # In the table of keys, in a warning, and in the list of unmanaged keys.
        assert sum(key in line for line in lines) >= 3, "\n".join(lines)
    assert not any("…" in line for line in lines)
    assert not columns or max(map(len, lines)) <= columns
    assert POLICY in " ".join(" ".join(lines).split())


def test_through_a_pipe_each_key_is_one_line_with_all_its_figures(printed: Callable[..., list[str]]) -> None:
    """For grep: nothing is wrapped or padded, however long."""
    lines = printed(show, report())
    for key in KEYS:
        (row,) = [line for line in lines if key in line and POLICY in line]
        assert " ".join(row.split()) == f"{key} {POLICY} 1,200 1,000 200 200 12.3 kB 1.2 kB 0 B"
        assert f"• {key}: nothing deleted, because its versions changed while they were read" in "\n".join(lines)
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in "".join(lines)


def test_a_table_that_fits_is_a_table(printed: Callable[..., list[str]]) -> None:
    """On a terminal that is wide enough, and with short keys on a narrow one."""
    wide = printed(show, report(), columns=160)
    assert any(line.split()[:2] == ["Key", "Policy"] for line in wide)
    short = report()
    for each, key in zip(short.key_reports, "abc", strict=True):
        each.key, each.policy = key, "default"
    assert any(line.split()[:2] == ["Key", "Policy"] for line in printed(show, short, columns=80))


def explained() -> tuple[Explanation, list[UUID]]:
    """Two versions of a key, with long reasons."""
    versions = [
        ExplainedVersion(
            id=uuid4(),
            created=NOW - timedelta(days=age),
            type="table",
            size=12345678,
            keep=age == 1,
            reasons=["not among the last 10", "not the newest of one of the last 12 months that have any"],
            rules=[],
        )
        for age in (1, 2)
    ]
    shown = Explanation(
        key=KEYS[0],
        server="http://localhost/api",
        now=NOW,
        policy=POLICY,
        sentence="Every key: keep the last 10.",
        policy_source="retention.toml",
        latest_id=versions[0].id,
        versions=versions,
        warnings=[],
    )
    return shown, [version.id for version in versions]


@pytest.mark.parametrize("columns", [40, 80, 120, 200, 0])
def test_an_explanation_has_every_id_whole(printed: Callable[..., list[str]], columns: int) -> None:
    """First on its line, to be copied and piped; through a pipe, the verdict and the reasons are on the same line."""
    shown, ids = explained()
    lines = printed(explanation.show, shown, columns=columns)
    for version_id, verdict in zip(ids, ("keep", "delete"), strict=True):
        (row,) = [line for line in lines if line.split()[:1] == [str(version_id)]]
        if not columns:
            assert row.split()[1] == verdict
            assert row.endswith("not among the last 10; not the newest of one of the last 12 months that have any")
    assert not columns or max(map(len, lines)) <= columns


def test_a_key_is_cut_only_where_it_is_absurdly_long() -> None:
    """Two keys of 200 characters that differ in the last one can be told apart."""
    assert label("x" * 199 + "a") == "x" * 199 + "a"
    assert len(label("x" * 3000)) < 300
