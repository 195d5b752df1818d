"""The words of a report: what it says, that no key can break it, and how keys are packed into prune tasks."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from builders import policy
from httpx import Response
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, StoreError
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.stores.connection import MAX_DETAIL_CHARS, _detail
from prefect_artifact_retention.tasks.grouping import group_label, pack
from prefect_artifact_retention.tasks.history import _row
from prefect_artifact_retention.tasks.rendering import (
    WORD_JOINER,
    escape,
    headline,
    label,
    markdown,
    outcome_message,
    scope_label,
    size,
)
from prefect_artifact_retention.tasks.report import CleanupReport, KeyReport, PolicyReport, RuleCount, scope_digest
from prefect_artifact_retention.tasks.run import KeyPlan

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)

HOSTILE = [
    pytest.param("a|b|c", id="pipes"),
    pytest.param("a\n\n# heading\n\n| x | y |", id="newlines"),
    pytest.param("a\r\n---\r\nb", id="carriage-returns"),
    pytest.param("`code` ``` ~~~", id="backticks"),
    pytest.param("<script>alert(1)</script> <!-- & &lt;", id="html"),
    pytest.param("x" * 3000, id="3000-characters"),
    pytest.param("a\x00b\x1b[31mred\x7f\u2028\u202e", id="control-characters"),
    pytest.param("[link](http://example.com) ![image](x) <http://example.com>", id="links"),
    pytest.param("**bold** _it_ \\| \\", id="emphasis-and-backslashes"),
    pytest.param("", id="empty"),
    pytest.param("\ud800", id="lone-surrogate"),
    pytest.param("abc\n", id="newline-at-the-end"),
    pytest.param("\x1b]0;title\x07\x1b[2J\u2066\u2069\u200b\ufeff", id="terminal-title-and-isolates"),
]


def report(**fields: object) -> CleanupReport:
    """A preview of 40 versions of two keys, 12 of them stale; `fields` differ."""
    defaults = {
        "mode": "preview",
        "now": NOW,
        "policy_source": "retention.toml",
        "policy_digest": "0123456789ab",
        "keys_seen": 2,
        "key_reports": [
            KeyReport(key="report-daily", policy="default", versions=30, kept=20, planned=10, bytes=1200),
            KeyReport(key="report-weekly", policy="default", versions=10, kept=8, planned=2, bytes=300),
        ],
    }
    return CleanupReport.model_validate(defaults | fields)


def deletion(**fields: object) -> CleanupReport:
    """A delete run that has deleted 9 of 12 stale versions."""
    key_reports = [
        KeyReport(
            key="report-daily", policy="default", versions=30, kept=20, planned=10, deleted=7, bytes=1200, bytes_freed=900
        ),
        KeyReport(
            key="report-weekly", policy="default", versions=10, kept=8, planned=2, deleted=2, bytes=300, bytes_freed=300
        ),
    ]
    return report(**({"mode": "delete", "key_reports": key_reports} | fields))


def failing(error: str = "the server went away") -> list[KeyReport]:
    """One key that failed."""
    return [KeyReport(key="report-daily", policy="default", versions=30, kept=20, planned=10, failed=1, error=error)]


# --- reading markdown as a user interface does


def parse(text: str) -> list[Token]:
    """The blocks of a document, as rich and both of Prefect's user interfaces see them."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def shown(inline: Token) -> str:
    """The text of a line as it is displayed; any markup in it is an error."""
    for child in inline.children or []:
        assert child.type in ("text", "text_special"), child
    return "".join(child.content for child in inline.children or []).replace(WORD_JOINER, "")


def headings(text: str) -> list[str]:
    """The displayed headings."""
    tokens = parse(text)
    return [shown(tokens[index + 1]) for index, token in enumerate(tokens) if token.type == "heading_open"]


def rows(text: str, heading: str) -> list[list[str]]:
    """The displayed cells of the table below a heading, without its header."""
    found: list[list[str]] = []
    below = False
    in_body = False
    tokens = parse(text)
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            below = shown(tokens[index + 1]) == heading
        elif token.type in ("tbody_open", "tbody_close"):
            in_body = below and token.type == "tbody_open"
        elif in_body and token.type == "tr_open":
            found.append([])
        elif in_body and token.type == "td_open":
            found[-1].append(shown(tokens[index + 1]).replace("\u00a0", " "))
    return found


def bullets(text: str, heading: str) -> list[str]:
    """The displayed list items below a heading."""
    found: list[str] = []
    below = False
    tokens = parse(text)
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            below = shown(tokens[index + 1]) == heading
        elif below and token.type == "list_item_open":
            found.append(shown(tokens[index + 2]))
    return found


# --- the headline


def test_the_headline_counts_the_keys_of_which_something_is_stale() -> None:
    """As the form for an approval and the sections below do; what has no key is no key."""
    clean = [*report().key_reports, KeyReport(key="clean", policy="p", versions=3, kept=3)]
    assert headline(report(key_reports=clean)) == "Would delete 12 versions (1.5 kB): 12 of 43 versions stale in 2 keys"
    unkeyed = [*clean, KeyReport(key=None, policy="p", versions=2, planned=1)]
    assert headline(report(key_reports=unkeyed)).endswith("13 of 45 versions stale in 2 keys and without a key")
    assert headline(report(key_reports=clean[-1:])) == "Would delete 0 versions (0 B): 0 of 3 versions stale"


def test_a_preview_says_what_a_deletion_would_delete() -> None:
    """Totals, in one line."""
    assert headline(report()) == "Would delete 12 versions (1.5 kB): 12 of 40 versions stale in 2 keys"


def test_a_plan_says_that_it_waits_only_if_somebody_is_asked() -> None:
    """Nobody is asked to approve nothing, or what could not be planned."""
    assert "Nothing goes until" in markdown(report(awaits="Nothing goes until"))
    assert "Nothing goes until" not in markdown(report(awaits="Nothing goes until", key_reports=[]))
    assert "Nothing goes until" not in markdown(report(awaits="Nothing goes until", outcome="failed"))


def test_a_preview_of_the_next_days_says_by_when() -> None:
    """Its report has the moment at which it was made beside it."""
    ahead = report(next_days=1.5)
    by = ahead.now + timedelta(days=1.5)
    assert headline(ahead) == f"Would delete 12 versions (1.5 kB) by {by:%Y-%m-%d %H:%M}: 12 of 40 versions stale in 2 keys"


def test_one_version_of_one_key_is_singular() -> None:
    """Grammar."""
    one = [KeyReport(key="a", policy="p", versions=1, planned=1, bytes=5)]
    assert headline(report(key_reports=one)) == "Would delete 1 version (5 B): 1 of 1 version stale in 1 key"


HEADLINES = [
    ("completed", {}, "Deleted 9 versions (1.2 kB): 12 of 40 versions stale in 2 keys"),
    ("unfinished", {}, "Deleted 9 versions (1.2 kB): 12 of 40 versions stale in 2 keys; unfinished, 3 remain"),
    (
        "failed",
        {"key_reports": failing(), "errors": ["the clock stopped"]},
        "Deleted 0 versions (0 B): 10 of 30 versions stale in 1 key; failed, 2 errors",
    ),
    ("failed", {"key_reports": failing()}, "Deleted 0 versions (0 B): 10 of 30 versions stale in 1 key; failed, 1 error"),
    ("skipped", {}, "Skipped, nothing deleted: another cleanup is deleting some of the same keys"),
    (
        "refused",
        {"refusals": ["too many"], "key_reports": failing("")},
        "Refused, nothing deleted: 10 of 30 versions stale in 1 key",
    ),
    (
        "refused",
        {"refusals": ["too many"]},
        "Refused in part. Deleted 9 versions (1.2 kB): 12 of 40 versions stale in 2 keys",
    ),
]


UNPLANNED = [
    ("skipped", "delete", "Skipped, nothing deleted: another cleanup is deleting some of the same keys"),
    ("failed", "delete", "Deleted nothing, because no version was evaluated; failed, 1 error"),
    ("unfinished", "delete", "Deleted nothing, because no version was evaluated; unfinished"),
    ("failed", "preview", "Deleted nothing, because no version was evaluated; failed, 1 error"),
]


@pytest.mark.parametrize(("outcome", "mode", "line"), UNPLANNED)
def test_a_run_that_ended_before_it_evaluated_anything_says_nothing_of_versions(outcome: str, mode: str, line: str) -> None:
    """That nothing is stale, or that none was kept, would be untrue; the cause is there once."""
    cause = {"refusals": ["the other run"]} if outcome == "skipped" else {"errors": ["no answer"]}
    fields = {"outcome": outcome, "mode": mode, "key_reports": [], "warnings": ["a clock"], **cause}
    early = report(**fields)
    assert headline(early) == line
    text = markdown(early)
    assert headings(text) == [line, "Skipped" if outcome == "skipped" else "Failures", "Warnings"]
    assert "stale" not in text.partition("\n")[2]
    assert text.count("the other run") + text.count("no answer") == 1


def test_a_run_that_failed_while_it_planned_does_not_say_that_nothing_is_stale() -> None:
    """It shows what it has evaluated until then."""
    keys = [KeyReport(key="a", policy="p", versions=9, kept=9)]
    text = markdown(deletion(outcome="failed", errors=["no answer"], key_reports=keys))
    assert "Nothing is stale" not in text
    assert "Versions evaluated" in text


@pytest.mark.parametrize(("outcome", "fields", "line"), HEADLINES)
def test_a_deletion_says_how_it_ended(outcome: str, fields: dict[str, object], line: str) -> None:
    """Each outcome in its own words."""
    assert headline(deletion(outcome=outcome, **fields)) == line


def test_what_is_already_gone_or_kept_on_recheck_does_not_remain() -> None:
    """What failed does: the next run tries it again."""
    keys = [KeyReport(key="a", policy="p", versions=9, planned=8, deleted=1, already_gone=2, spared=1, failed=1)]
    assert headline(deletion(outcome="unfinished", key_reports=keys)).endswith("; unfinished, 4 remain")


def test_the_message_of_an_outcome_names_at_most_three_causes() -> None:
    """And says how many there are besides."""
    message = outcome_message(deletion(outcome="refused", refusals=[f"cause {number}" for number in range(5)]))
    assert message == f"{headline(deletion(outcome='refused'))}. cause 0. cause 1. cause 2. and 2 more"


def test_the_message_of_a_success_is_its_headline() -> None:
    """There is no cause to name."""
    assert outcome_message(deletion()) == headline(deletion())


# --- sizes and labels


SIZES = [
    (0, "0 B"),
    (999, "999 B"),
    (1000, "1.0 kB"),
    (1549, "1.5 kB"),
    (999_900, "999.9 kB"),
    (1_000_000, "1.0 MB"),
    (2_500_000_000, "2.5 GB"),
    (3 * 10**12, "3.0 TB"),
    (3 * 10**15, "3000.0 TB"),
]


@pytest.mark.parametrize(("count", "words"), SIZES)
def test_a_size_is_in_si_units(count: int, words: str) -> None:
    """One decimal above a kilobyte; terabytes are the largest unit."""
    assert size(count) == words


LABELS = [
    (None, "(without a key)"),
    ("daily-report", "daily-report"),
    ("", "''"),
    ("a\nb", "'a\\nb'"),
    ("\x1b[31m", "'\\x1b[31m'"),
    ("ä|ß", "ä|ß"),
    ("x" * 250, "x" * 250),
    ("x" * 251, "x" * 250 + "… (251 characters)"),
]


@pytest.mark.parametrize(("key", "text"), LABELS)
def test_a_label_is_one_short_printable_line(key: str | None, text: str) -> None:
    """Whatever the key is."""
    assert label(key) == text


@given(st.text())
def test_any_label_is_short_and_printable(key: str) -> None:
    """No key can run over a line or move the cursor of a terminal."""
    assert label(key).isprintable()
    assert 0 < len(label(key)) < 300


@given(st.text(min_size=1))
def test_escaped_text_means_itself(text: str) -> None:
    """Displayed in a line, it is what was given, with what cannot be printed as spaces."""
    (_, inline, _) = parse(f"x{escape(text)}x")
    printable = "".join(char if char.isprintable() else " " for char in text)
    assert shown(inline) == f"x{printable}x"


# --- the document


def test_the_totals_are_in_the_first_line() -> None:
    """Whoever reads no further has what matters."""
    first = markdown(report()).splitlines()[0]
    assert headings(first) == [headline(report())]


def test_a_preview_counts_what_it_saw() -> None:
    """And claims no deletion."""
    text = markdown(report())
    assert rows(text, headline(report())) == [
        ["Keys seen", "2"],
        ["Versions evaluated", "40"],
        ["Kept", "28"],
        ["Stale", "12 (1.5 kB)"],
    ]
    assert "Preview" not in headings(text)
    assert "Completed · mode preview · as of 2026-11-24 12:00:00 UTC · 0 s" in text


def test_a_deletion_counts_what_it_did() -> None:
    """Every version that was planned is accounted for."""
    assert rows(markdown(deletion()), headline(deletion()))[4:] == [
        ["Deleted", "9 (1.2 kB)"],
        ["Already gone", "0"],
        ["Kept on re-check", "0"],
        ["Failed", "0"],
    ]


def test_the_keys_with_stale_versions_come_with_the_most_first() -> None:
    """Keys without any are left out."""
    keys = [
        KeyReport(key="few", policy="p", versions=5, kept=3, planned=2, bytes_seen=50, bytes=20),
        KeyReport(key="none", policy="p", versions=5, kept=5),
        KeyReport(key="many", policy="p", versions=9, kept=1, planned=8, deleted=8, bytes_seen=9000, bytes=8000),
    ]
    assert rows(markdown(report(key_reports=keys)), "Keys") == [
        ["many", "p", "9", "1", "8", "9.0 kB", "8.0 kB"],
        ["few", "p", "5", "3", "2", "50 B", "20 B"],
    ]


def test_a_deletion_says_how_many_versions_of_each_key_went() -> None:
    """Beside how many there were."""
    assert rows(markdown(deletion()), "Keys")[0] == [
        "report-daily",
        "default",
        "30",
        "20",
        "10",
        "7",
        "0 B",
        "1.2 kB",
        "900 B",
    ]


def test_only_the_top_twenty_keys_are_listed() -> None:
    """And the report says so."""
    keys = [KeyReport(key=f"key-{number}", policy="p", versions=100, planned=number) for number in range(1, 31)]
    text = markdown(report(key_reports=keys))
    assert [row[0] for row in rows(text, "Keys")] == [f"key-{number}" for number in range(30, 10, -1)]
    assert "30 keys with stale versions; the 20 with the most:" in text


def test_without_stale_versions_there_is_no_table_of_keys() -> None:
    """A sentence instead."""
    text = markdown(report(key_reports=[]))
    assert "Nothing is stale." in text
    assert rows(text, "Keys") == []


def test_policies_and_rules_are_listed_with_their_descriptions() -> None:
    """The sentence of each policy, and an example of each rule."""
    text = markdown(
        report(
            policies=[
                PolicyReport(name="default", sentence="Every key: keep the last 10.", keys_seen=2, versions=40, planned=12)
            ],
            condemned_by=[RuleCount(rule="unclaimed", versions=12, example="superseded 41 days ago, outside every keep rule")],
            kept_by=[RuleCount(rule="keep_last", versions=28, example="last 1 of 10")],
        )
    )
    assert rows(text, "Policies") == [["default", "Every key: keep the last 10.", "2", "40", "12"]]
    assert "From retention.toml, digest 0123456789ab." in text
    assert rows(text, "Stale, and why") == [["unclaimed", "12", "superseded 41 days ago, outside every keep rule"]]
    assert rows(text, "Kept, and why") == [["keep_last", "28", "last 1 of 10"]]


def test_a_plain_report_has_no_empty_sections() -> None:
    """Sections about trouble are there only if there is any."""
    assert headings(markdown(report())) == [headline(report()), "Keys", "Policies"]


def test_trouble_has_a_section_of_each_kind_before_the_totals() -> None:
    """Refusals, failures, repairs and warnings, in this order."""
    trouble = deletion(
        outcome="failed",
        refusals=["60 % of the versions would go"],
        errors=["the clock stopped"],
        key_reports=failing("the server went away"),
        repaired=["report-weekly"],
        warnings=["a run older than a week"],
        stopped_at="report-daily",
    )
    text = markdown(trouble)
    assert headings(text)[1:] == ["Refused", "Failures", "Repaired", "Warnings", "Keys", "Policies"]
    assert bullets(text, "Refused") == ["60 % of the versions would go"]
    assert bullets(text, "Failures") == ["the clock stopped", "report-daily: the server went away"]
    assert bullets(text, "Repaired") == ["report-weekly: its latest version had vanished and was posted again"]
    assert bullets(text, "Warnings") == ["a run older than a week"]
    assert "The next delete run begins with report\\-daily." in text


def test_unmanaged_keys_are_listed_up_to_twenty() -> None:
    """Then counted, as artifacts without a key are."""
    text = markdown(report(unmanaged=[f"key-{number}" for number in range(23)], unmanaged_unkeyed=4))
    listed = bullets(text, "Unmanaged")
    assert listed == [*(f"key-{number}" for number in range(20)), "and 3 keys more", "4 artifacts without a key"]


def test_the_scope_is_named() -> None:
    """So that nobody takes a report on some keys for one on all."""
    assert " · only report\\-\\*, x" in markdown(report(scope=["report-*", "x"]))


def test_the_server_is_named() -> None:
    """So that nobody takes a report on one server for one on another; its address becomes no link."""
    text = markdown(report(server="http://127.0.0.1:4200/api"))
    assert " · server http" in text
    assert "127.0.0.1:4200/api" in text
    assert "http://127" not in text


def test_links_and_pictures_come_right_below_the_headline() -> None:
    """The pages that belong to the report, then its outcome, then its pictures with words for those who cannot see them."""
    text = markdown(
        report(),
        links={"This run": "http://server/run", "History": "http://server/history"},
        pictures=[("Bars [of] x", "data:x")],
    )
    lines = [line for line in text.splitlines() if line]
    assert lines[1] == "[This run](http://server/run) · [History](http://server/history)"
    assert lines[3] == "![Bars \\[of\\] x](data:x)"


def test_what_the_server_deletes_by_itself_is_noted_below_the_policies() -> None:
    """Whatever they say."""
    text = markdown(report(notes=["The server's db_vacuum deletes more."]))
    assert bullets(text, "Policies") == ["The server's db_vacuum deletes more."]


# --- hostile text


@pytest.mark.parametrize("key", HOSTILE)
def test_a_hostile_key_breaks_neither_table_nor_heading(key: str) -> None:
    """It stands in its own cell as its label, and every section is where it belongs."""
    keys = [
        KeyReport(key=key, policy="p", versions=5, kept=3, planned=2, bytes_seen=50, bytes=20),
        KeyReport(key="tame", policy="p", versions=5, kept=4, planned=1, bytes_seen=50, bytes=10),
    ]
    hostile = report(key_reports=keys, unmanaged=[key])
    text = markdown(hostile)
    assert headings(text) == [headline(hostile), "Keys", "Policies", "Unmanaged"]
    assert rows(text, "Keys") == [
        [label(key), "p", "5", "3", "2", "50 B", "20 B"],
        ["tame", "p", "5", "4", "1", "50 B", "10 B"],
    ]
    assert bullets(text, "Unmanaged") == [label(key)]


@given(st.text(min_size=1, max_size=200))
@example("|" * 200)
def test_any_key_stays_in_its_cell(key: str) -> None:
    """The same for whatever else a producer may call it; spaces around it cannot be seen in a table."""
    text = markdown(
        report(key_reports=[KeyReport(key=key, policy="p", versions=5, kept=3, planned=2, bytes_seen=50, bytes=20)])
    )
    assert rows(text, "Keys") == [[label(key).strip(" "), "p", "5", "3", "2", "50 B", "20 B"]]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_errors_names_and_sources_break_nothing(text: str) -> None:
    """Errors quote what servers answer; policies are called what users call them."""
    hostile = deletion(
        outcome="failed",
        errors=[f"the server says {text}"],
        warnings=[f"hold {text}"],
        stopped_at="x" + text,
        scope=["x" + text],
        policy_source=f"file {text}",
        policies=[PolicyReport(name=f"x{text}x", sentence=f"Keys {text}: keep the last 1.")],
        condemned_by=[RuleCount(rule="unclaimed", versions=1, example=f"because of {text}!")],
    )
    rendered = markdown(hostile)
    assert headings(rendered) == [headline(hostile), "Failures", "Warnings", "Keys", "Policies", "Stale, and why"]
    assert [len(row) for row in rows(rendered, "Policies")] == [5]
    assert [len(row) for row in rows(rendered, "Stale, and why")] == [3]
    assert (len(bullets(rendered, "Failures")), len(bullets(rendered, "Warnings"))) == (1, 1)


@given(st.text())
def test_printable_text_is_one_line_without_any_control_and_loses_nothing(text: str) -> None:
    """What can be shown stays as it is; once is enough."""
    shown_text = printable(text)
    assert shown_text.isprintable()
    assert printable(shown_text) == shown_text
    assert [char for char in text if char.isprintable() and not char.isascii()] == [
        char for char in shown_text if not char.isascii()
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_error_steers_a_terminal(text: str) -> None:
    """What the server says stays on one line; a configuration has a line for each of its mistakes."""
    assert str(StoreError(f"answers {printable(text)}")).isprintable()
    lines = str(ConfigurationError(f"one: {text!r}\ntwo: {text}")).split("\n")
    assert lines[0].startswith("one: ")
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_server_says_about_an_error_is_one_short_line(text: str) -> None:
    """Whatever it quotes."""
    detail = _detail(Response(500, content=json.dumps({"detail": text})))
    assert detail.isprintable()
    assert len(detail) < 10 * MAX_DETAIL_CHARS


@pytest.mark.parametrize("text", HOSTILE)
def test_a_policys_sentence_and_the_name_of_a_run_are_printable(text: str) -> None:
    """Globs and types may be anything; so may the name that somebody gives a flow run, or writes into a history."""
    fields = {"match_keys": ["x" + text], "exclude_keys": [text], "match_types": [text]}
    hostile = RetentionPolicy.model_construct(None, name="unchecked", keep_last=1, **fields)
    assert hostile.describe().isprintable()
    assert scope_label([text, "x" + text]).isprintable()
    row = _row(report(scope=[text]), text, {"This run": "http://server"})
    assert all(str(cell).isprintable() for cell in row.model_dump().values())


# --- packing keys into prune tasks


def plan(number: int, stale: int) -> KeyPlan:
    """A key with so many stale versions."""
    ids = [UUID(int=index) for index in range(stale)]
    return KeyPlan(f"key-{number}", policy(keep_last=1), ids, KeyReport(key=f"key-{number}", policy="test"))


def names(group: list[KeyPlan]) -> list[str | None]:
    """The keys of a group."""
    return [member.key for member in group]


def test_few_keys_get_a_group_each() -> None:
    """So that each has a task run named by it."""
    plans = [plan(number, 3) for number in range(4)]
    assert [names(group) for group in pack(plans, 4)] == [["key-0"], ["key-1"], ["key-2"], ["key-3"]]


def test_many_keys_are_packed_by_their_deletions() -> None:
    """One key with as much work as five others has a group of its own."""
    plans = [plan(0, 500), *(plan(number, 100) for number in range(1, 6))]
    assert [names(group) for group in pack(plans, 2)] == [["key-0"], [f"key-{number}" for number in range(1, 6)]]


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 12))
def test_groups_are_complete_balanced_and_at_most_as_many_as_allowed(stale: list[int], most: int) -> None:
    """No two groups differ by more than the largest key, and each key is in exactly one of them."""
    plans = [plan(number, count) for number, count in enumerate(stale)]
    groups = pack(plans, most)
    assert len(groups) <= most
    assert all(groups)
    assert sorted(str(member.key) for group in groups for member in group) == sorted(str(member.key) for member in plans)
    weights = [sum(len(member.stale) for member in group) for group in groups]
    if len(plans) > most:
        assert max(weights) - min(weights) <= max(stale)


def test_a_group_is_named_by_its_key_or_by_how_many_it_has() -> None:
    """The name of its task run."""
    assert group_label([plan(0, 1)]) == "key-0"
    assert group_label([plan(0, 1), plan(1, 1)]) == "2 keys from key-0"


def test_every_number_of_a_report_has_one_format() -> None:
    """Whether it is in a sentence or in a table."""
    many = KeyReport(key="often", policy="default", versions=12_345, kept=10_000, planned=2345, bytes=1200)
    text = markdown(report(versions_seen=12_345, key_reports=[many]))
    assert "2,345 of 12,345 versions stale" in text
    assert "| often | default | 12,345 | 10,000 | 2,345 |" in text


def test_sizes_are_aligned_like_numbers_and_stay_on_one_line() -> None:
    """A narrow page does not part a number from its unit."""
    table = markdown(deletion()).split("## Keys")[1].split("## ")[0]
    assert table.count("---:") == 7
    assert "2\u00a0kB |" in table


def test_a_scope_has_one_label_and_one_digest_in_any_order() -> None:
    """By the label, the trend finds the runs of a scope; by the digest, the alarm and the next run do."""
    orders = [["b*", "a*"], ["a*", "b*"], ["a*", "b*", "a*"]]
    assert {scope_label(keys) for keys in orders} == {"a*, b*"}
    assert len({scope_digest(keys) for keys in orders}) == 1
    assert scope_digest(["a*"]) != scope_digest(["a*", "b*"]) != scope_digest([])
