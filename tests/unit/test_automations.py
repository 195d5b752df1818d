"""How an automation compares numbers: by patterns of labels."""

from fnmatch import fnmatchcase

from hypothesis import example, given
from hypothesis import strategies as st
from prefect_artifact_retention.flows.automations import MAX_NUMBER, more_than
from prefect_artifact_retention.flows.cleanup import number_label

NUMBERS = st.integers(0, MAX_NUMBER)


@given(NUMBERS, NUMBERS | st.integers(MAX_NUMBER))
@example(0, 0)
@example(999, 1000)
@example(MAX_NUMBER, 10**15)
def test_the_patterns_match_exactly_the_larger_numbers(limit: int, number: int) -> None:
    """As Prefect's server matches them; what is too large for a label is larger than all."""
    matches = any(fnmatchcase(number_label(number), pattern) for pattern in more_than(limit))
    assert matches == (number > limit)
