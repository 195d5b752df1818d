"""Which keys look alike."""

import pytest
from prefect_artifact_retention.policies.likeness import look_alikes


@pytest.mark.parametrize(
    "keys",
    [
        ["daily-report", "daily_report-2"],
        ["daily-report", "daily--report", "dailyreport"],
        ["Daily-Report", "daily-report"],
        ["report", "report-copy"],
        ["report", "report-v2"],
    ],
)
def test_a_spelling_or_a_copy_splits_a_key(keys: list[str]) -> None:
    """Each of these is one history."""
    assert look_alikes(keys) == [sorted(keys)]


@pytest.mark.parametrize(
    "keys",
    [
        ["report-2", "report-3"],
        ["region-1-12", "region-11-2"],
        ["report", "report-1", "report-2024", "reports"],
        ["report", *(f"report-{number}" for number in range(2, 6))],
        ["отчет", "данные"],
    ],
)
def test_series_and_other_words_are_no_look_alikes(keys: list[str]) -> None:
    """Nobody has mistyped these."""
    assert look_alikes(keys) == []
