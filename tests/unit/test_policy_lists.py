"""The list of policies on the server, apart from any server: as TOML, as a form, and what its log makes of edits."""

import tomllib
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, load_policies
from prefect_artifact_retention.policies.globs import impossible
from prefect_artifact_retention.policies.meaning import digest
from prefect_artifact_retention.policies.pushes import Push, find_list, history, is_edited, list_digest, read_list, read_push
from prefect_artifact_retention.policies.writing import as_tables, as_toml
from prefect_artifact_retention.stores.policy_lists import form

MORNING = datetime(2026, 11, 28, 9, tzinfo=UTC)
TEXTS = st.text(min_size=1, max_size=100).filter(lambda text: text.isprintable() and text.strip() != "")
GLOBS = st.text("ab-*?[]!09", min_size=1, max_size=8).filter(lambda glob: not impossible(glob))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": TEXTS,
    "array": st.lists(GLOBS, min_size=1, max_size=3),
    "boolean": st.booleans(),
    "integer": st.integers(0, 1_000_000),
    "number": st.one_of(st.integers(0, 36_525), st.floats(0, 36_525)),
}
FORM = form()["definitions"]["RetentionPolicy"]["properties"]
FIELDS = {name: VALUES[field["type"]] for name, field in FORM.items()}
TABLES = st.fixed_dictionaries({"name": TEXTS}, optional={name: FIELDS[name] for name in FIELDS.keys() - {"name"}})
"""Any fields: also those that contradict each other, for it is the writing that is at stake."""


@given(st.lists(TABLES, min_size=1, max_size=4))
def test_toml_reads_as_the_policies_that_were_written(tables: list[dict[str, Any]]) -> None:
    """All fields, whatever a name is made of; and so do the tables of the block, which its form takes."""
    policies = [RetentionPolicy.model_construct(**table) for table in tables]
    read = tomllib.loads(as_toml(policies))["policies"]
    assert read == as_tables(policies)
    assert [RetentionPolicy.model_construct(**table) for table in read] == policies
    jsonschema.validate({"policies": read}, form())


def test_the_toml_of_valid_policies_has_their_digest() -> None:
    """What is pulled can be pushed again."""
    policies = [RetentionPolicy(name='a "b" \\x41', match_keys=["b-*", "a"], keep_last=3, keep_within_days=0.5)]
    read = load_policies(tomllib.loads(as_toml(policies))["policies"], source="pulled")
    assert digest(read) == digest(policies)


def test_the_form_has_every_field_with_its_title_and_description() -> None:
    """So that nobody has to look them up."""
    assert list(FORM) == list(RetentionPolicy.model_fields)
    assert all(field["title"] and field["description"] for field in FORM.values())
    assert form()["properties"]["policies"]["items"] == {"$ref": "#/definitions/RetentionPolicy"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "is no table"),
        ({"policies": "[{}]"}, "policies is no list"),
        ({}, "policies is no list"),
        ({"policies": []}, "has no policies"),
        ({"policies": [{"name": "a", "keep_last": 1}], "polices": []}, "unknown field polices"),
        ({"policies": ["a"]}, "policy number 1: "),
        ({"policies": [{"name": "a", "keep_lst": 1}]}, 'policy "a": unknown field keep_lst = 1'),
        ({"policies": [{"name": "a", "keep_last": None}]}, 'policy "a": keep_last = None: '),
        ({"policies": [{"keep_last": 3}]}, "policy number 1: name is missing"),
        ({"policies": [{"name": "a", "keep_last": 3}, {"name": "a", "keep_last": 3}]}, 'two policies have name = "a"'),
        ({"policies": [{"name": "a", "keep_all": True, "keep_last": 3}]}, "no meaning beside keep_all"),
    ],
)
def test_what_cannot_be_meant_is_named_with_the_block(data: object, message: str) -> None:
    """In the words that a file has for it."""
    with pytest.raises(ConfigurationError, match="block artifact-retention/policies of the server: ") as caught:
        read_list(data)
    assert message in str(caught.value)


def listed(*numbers: object) -> dict[str, Any]:
    """What the block has, with one policy for each number."""
    return {"policies": [{"name": f"p{at}", "match_keys": [f"k{at}"], "keep_last": n} for at, n in enumerate(numbers)]}


def hour(number: float) -> datetime:
    """A time of that day."""
    return MORNING + timedelta(hours=number)


def push(number: int, before: object, *numbers: object, before_at: float = 1.1, is_finished: bool = True) -> Push:
    """The record of a push, one an hour."""
    made = listed(*numbers)["policies"]
    saved = None if before is None else hour(before_at)
    times = {"at": hour(number), "before_at": saved}
    return Push(number=number, by="ada", before=before, policies=made, is_finished=is_finished, **times)


FIRST, SECOND = push(1, None, 3), push(2, listed(3), 4)


def happened(pushes: list[Push], data: object, saved: float = 9) -> list[tuple[str, int | None, list[str]]]:
    """The log, newest first."""
    return [(each.what, each.push, each.changes) for each in history(pushes, data, hour(saved))]


def test_the_log_has_pushes_and_what_was_changed_in_the_ui_between_and_after_them() -> None:
    """What was changed last with its time; and neither is it taken for a push, nor a push for an edit."""
    assert happened([SECOND, FIRST], listed(4)) == [
        ("pushed", 2, ['policy "p0": keep_last = 4, was 3']),
        ("pushed", 1, ['policy "p0" is new']),
    ]
    edited = [FIRST, push(2, listed(5), 4, before_at=1.5)]
    assert happened(edited, listed(4, 2)) == [
        ("changed in the UI", None, ['policy "p1" is new']),
        ("pushed", 2, ['policy "p0": keep_last = 4, was 5']),
        ("changed in the UI", None, ['policy "p0": keep_last = 5, was 3']),
        ("pushed", 1, ['policy "p0" is new']),
    ]
    assert [each.at for each in history(edited, listed(4, 2), hour(9))] == [hour(9), hour(2), hour(1.5), hour(1)]
    assert happened([FIRST, SECOND], None)[0] == ("deleted", None, ["there is no list"])
    assert happened([], listed(3)) == [("changed in the UI", None, ['policy "p0" is new'])]
    assert happened([], None) == []


def test_a_push_that_was_interrupted_is_no_edit_and_can_be_repeated() -> None:
    """The record says that it was not finished; whoever goes back to the list before in the UI has saved it since."""
    second = push(2, listed(3), 4, is_finished=False)
    assert [each[0] for each in happened([FIRST, second], listed(3), saved=1.1)] == ["not finished", "pushed"]
    again = push(3, listed(3), 4, before_at=1.1)
    assert [each[0] for each in happened([FIRST, second, again], listed(4))] == ["pushed", "not finished", "pushed"]
    assert happened([FIRST, second], listed(5))[:2] == [
        ("changed in the UI", None, ['policy "p0": keep_last = 5, was 3']),
        ("not finished", 2, ['policy "p0": keep_last = 4, was 3']),
    ]
    # The list was written, and only that was not noted.
    assert [each[0] for each in happened([FIRST, second], listed(4))] == ["pushed", "pushed"]
    assert [each[0] for each in happened([FIRST, SECOND], listed(3))] == ["changed in the UI", "pushed", "pushed"]
    assert [each[0] for each in happened([FIRST], None)] == ["deleted", "pushed"]
    assert not is_edited([FIRST, second], listed(3), hour(1.1))
    assert is_edited([FIRST, second], listed(3), hour(2.1))
    assert not is_edited([FIRST, second], listed(4), hour(2.1))
    assert is_edited([FIRST, second], listed(5), hour(2.1))
    assert is_edited([FIRST, SECOND], listed(3), hour(1.1))
    assert is_edited([], listed(5), hour(0))
    assert not is_edited([FIRST], None, None)


def test_a_list_that_cannot_be_meant_is_in_the_log_with_what_is_wrong() -> None:
    """And the push that replaces it has it on record."""
    broken = listed(-1)
    (first, *_rest) = happened([FIRST], broken)
    assert first[0] == "changed in the UI"
    assert "keep_last = -1" in first[2][0]
    assert happened([FIRST, push(2, broken, 4)], listed(4))[0][2][0] == "the list before could not be meant"
    assert list_digest(broken) not in {list_digest(listed(-2)), list_digest(listed(3)), ""}


def test_each_list_is_found_by_its_digest() -> None:
    """Those that were pushed, and those that a push has replaced."""
    pushes = [FIRST, push(2, listed(5), 4)]
    for data in (listed(3), listed(4), listed(5)):
        assert find_list(list_digest(data), pushes) == data
    assert find_list(list_digest(listed(6)), pushes) is None


def test_what_is_no_record_of_a_push_is_none() -> None:
    """Somebody may have written anything."""
    record = FIRST.model_dump(mode="json", exclude={"number"})
    assert read_push(1, record) == FIRST
    assert [read_push(1, data) for data in (None, {}, record | {"at": "x"}, record | {"policies": None})] == [None] * 4
