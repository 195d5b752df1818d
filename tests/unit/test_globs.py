"""Globs of keys: which of them can match a key of Prefect at all."""

import pytest
from prefect_artifact_retention.policies.globs import impossible


@pytest.mark.parametrize("glob", ["report", "report-*", "*", "?", "load-20??-*", "[a-f]*", "[!a]*", "[A-Za-z]x", "[]-]", "-"])
def test_a_glob_of_letters_digits_dashes_and_wildcards_fits(glob: str) -> None:
    """Also a class that holds other characters besides."""
    assert impossible(glob) is None


@pytest.mark.parametrize(
    "glob",
    ["", "Report-*", "report_*", "a,b", "{a,b}", "^report-.*$", " a", "a\n", "[A-Z]*", "[!a-z0-9-]", "report[", "é", "[^a]*"],
)
def test_a_glob_with_a_character_that_no_key_has_does_not_fit(glob: str) -> None:
    """The empty one neither: a key has at least one character."""
    assert impossible(glob)
