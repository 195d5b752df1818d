"""What policies mean: by what they are taken for the same, and how a change is described."""

import pytest
from builders import policy
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.policies.loading import OWN_POLICY
from prefect_artifact_retention.policies.meaning import describe_changes, digest, meaning

TWO = policy(name="two", match_keys=["a-*", "b"], keep_last=2)


@pytest.mark.parametrize(
    "same",
    [
        policy(name="two", match_keys=["b", "a-*"], keep_last=2),
        policy(name="two", match_keys=["b", "a-*", "b"], keep_last=2, keep_daily=0, timezone="UTC", exclude_keys=[]),
    ],
)
def test_policies_that_mean_the_same_have_the_same_digest(same: RetentionPolicy) -> None:
    """In whatever order their globs are, and with their defaults written or not."""
    assert digest([same]) == digest([TWO])


def test_a_release_changes_no_digest() -> None:
    """Neither a new field, which has its default, nor the policy of the package's own keys is in it."""
    assert meaning([OWN_POLICY, TWO]) == [{"name": "two", "match_keys": ["a-*", "b"], "keep_last": 2}]
    assert digest([OWN_POLICY, TWO]) == digest([TWO]) == "cda0a2b33e28"


def test_a_field_that_this_release_does_not_have_is_named() -> None:
    """A plan or a record may be of a newer one."""
    (line,) = describe_changes([{"name": "two", "keep_eternally": 1}], [{"name": "two"}])
    assert line == 'policy "two": keep_eternally, a field that this release does not have'


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ([TWO], [TWO], []),
        ([], [TWO], ['policy "two" is new']),
        ([TWO], [], ['policy "two" is gone']),
        (
            [TWO],
            [TWO.model_copy(update={"keep_last": 1, "match_keys": ["b"]})],
            ["policy \"two\": match_keys = ['b'], was ['a-*', 'b'], keep_last = 1, was 2"],
        ),
        (
            [TWO],
            [TWO.model_copy(update={"keep_last": 0, "keep_daily": 3})],
            ['policy "two": keep_last = 0, was 2, keep_daily = 3, was 0'],
        ),
        (
            [TWO, policy(name="x", keep_last=1)],
            [policy(name="x", keep_last=1), TWO],
            ["the order is x, two, and was two, x"],
        ),
    ],
)
def test_a_change_is_described_policy_by_policy(
    before: list[RetentionPolicy], after: list[RetentionPolicy], lines: list[str]
) -> None:
    """What is new, gone, and how the others differ."""
    assert list(describe_changes(meaning(before), meaning(after))) == lines
