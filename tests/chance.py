"""Chance: the same in every run of the tests, and another with another seed in the environment, such as `TEST_SEED=7`.

It seeds hypothesis, the faults, crashes and races of the long suites, and whatever else draws by chance. A test that fails
shows its seed.
"""

import os
from collections.abc import Generator

import pytest

SEED = int(os.environ.get("TEST_SEED", "20261124"))


def pytest_report_header() -> str:
    """Show the seed of this session."""
    return f"TEST_SEED={SEED}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the seed beside each failure, also in the output of a process of its own."""
    report = yield
    if report.failed:
        report.sections.append(("seed", f"TEST_SEED={SEED}"))
    return report
