"""What the helpers for flow authors refuse, they refuse before a request: no server is there to be asked."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import prefect_artifact_retention as retention
import pytest
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.tasks import producers

HELPERS = [
    ("publish_markdown", {"markdown": "x"}),
    ("publish_table", {"table": [{"a": 1}]}),
    ("publish_link", {"link": "https://example.org"}),
    ("publish_image", {"image_url": "https://example.org/x.png"}),
    ("publish_progress", {"progress": 50}),
    ("append_markdown", {"text": "x"}),
    ("append_rows", {"rows": [{"a": 1}]}),
]
YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"ttl_days": 0}, "^ttl_days = 0 is no number of days"),
    ({"ttl_days": True}, "^ttl_days = True is no number of days"),
    ({"ttl_days": -1}, "^ttl_days = -1 is no number of days"),
    ({"hold": YESTERDAY}, r"^hold = .* is in the past"),
    ({"hold": "soon"}, "^hold = 'soon' is neither true, false nor a date"),
    ({"key": "Report"}, "^key = 'Report' is no key"),
    ({"key": ""}, "^key = '' is no key"),
    ({"key": "report\n"}, r"^key = 'report\\n' is no key"),
    ({"metadata": {"note": "x" * 501}}, r"^metadata\['note'\] has 501 characters, and Prefect keeps 500"),
    ({"metadata": {"note": 3}}, r"^metadata\['note'\] = 3 is no text"),
    ({"metadata": {"retention_hold": "true"}}, r"^metadata\['retention_hold'\] is for this package to write"),
    ({"metadata": {"artifact-retention-entry": "x"}}, r"^metadata\['artifact-retention-entry'\] is for this package"),
    ({"metadata": {"note": "\udcff"}}, r"^metadata\['note'\] has the character '\\udcff', which no server stores"),
    ({"metadata": {"no\0te": "x"}}, "^metadata.* has the character .*, which no server stores"),
    ({"metadata": [("note", "x")]}, r"^metadata = \[\('note', 'x'\)\] is no mapping"),
    ({"description": 3}, "^description cannot be serialized"),
    ({"on_error": "ignore"}, "^on_error = 'ignore' is neither 'raise' nor 'log'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize(("helper", "content"), HELPERS, ids=[name for name, _ in HELPERS])
async def test_what_cannot_be_meant_is_refused_before_a_request(
    helper: str, content: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    """By each helper, in sync and in async code, with the argument and its value."""
    given = {"key": "report", **content, **options}
    with pytest.raises(ValueError, match=message):
        getattr(retention, helper)(**given)
    with pytest.raises(ValueError, match=message):
        await getattr(retention, f"a{helper}")(**given)


@pytest.mark.parametrize(
    ("helper", "content", "message"),
    [
        ("append_markdown", {"text": ""}, "^text = '' is no text to append"),
        ("append_markdown", {"text": "x", "max_entries": 0}, "^max_entries = 0 is no number above 0"),
        ("append_markdown", {"text": "x", "max_entries": 1.5}, "^max_entries = 1.5 is no number above 0"),
        ("append_markdown", {"text": "x", "separator": 3}, "^separator = 3 is no text"),
        ("append_markdown", {"text": "x" * 1000, "max_kb": 1}, "^what is to be appended is larger"),
        ("append_rows", {"rows": []}, "^there are no rows to append"),
        ("append_rows", {"rows": [{"a": object()}]}, "^rows cannot be serialized as JSON"),
        (
            "append_rows",
            {"rows": [{"a": 1}] * 3, "max_rows": 2},
            "^what is to be appended is larger",
        ),
        ("append_rows", {"rows": [{"a": 1}], "max_kb": 0}, "^max_kb = 0 is no number above 0"),
        ("append_rows", {"rows": [{"a": 1}], "max_kb": float("inf")}, "^max_kb = inf is no number above 0"),
        ("append_rows", {"rows": [[("a", 1)]]}, "^rows cannot be serialized as JSON: each row must be a mapping"),
        ("publish_table", {"table": [{"a": datetime.now(UTC)}]}, "^data cannot be serialized as JSON"),
        ("publish_table", {"table": 3}, "^data cannot be serialized as JSON"),
        ("publish_markdown", {"markdown": "\udcff"}, "^data cannot be serialized as JSON"),
    ],
)
def test_content_that_cannot_be_stored_is_refused_before_a_request(helper: str, content: dict[str, Any], message: str) -> None:
    """With what is wrong with it."""
    with pytest.raises(ValueError, match=message):
        getattr(retention, helper)(key="report", **content)


def test_all_helpers_can_be_imported_from_the_package_itself() -> None:
    """By the same names; nothing else is there."""
    assert {name: getattr(retention, name) for name in producers.__all__} == {
        name: getattr(producers, name) for name in producers.__all__
    }
    assert dir(retention) == sorted(producers.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'publish_nothing'"):
        _ = retention.publish_nothing
    everything: dict[str, Any] = {}
    exec("from prefect_artifact_retention import *", everything)  # noqa: S102 - as their users write it
    assert everything.keys() - {"__builtins__"} == {*producers.__all__}


def test_the_error_of_the_helpers_can_be_imported_beside_them() -> None:
    """It is the one that everything here raises."""
    assert retention.StoreError is StoreError


def test_an_import_of_the_policies_does_not_import_prefect() -> None:
    """It takes a second."""
    code = "import sys; from prefect_artifact_retention import policies; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
