"""From configuration to policies: every mistake with its message, every counterpart that loads, and which key gets which."""

import re
import tomllib
from typing import Any

import pytest
from builders import policy
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, load_policies
from prefect_artifact_retention.policies.doubts import find_doubts
from prefect_artifact_retention.policies.loading import (
    OWN_KEYS,
    OWN_POLICY,
    PREVIEW_POLICY,
    check_policies,
    select_policy,
    stand_in,
)
from prefect_artifact_retention.policies.meaning import digest

SOURCE = "retention.toml"
NO_RULE = (
    "no keep rule: set one of keep_all, keep_last, keep_within_days, keep_hourly, keep_daily, keep_weekly, "
    "keep_monthly, keep_yearly"
)
COUNTS = ("keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly")
DAYS = ("keep_within_days", "grace_days", "expire_after_days", "drop_idle_keys_after_days")

Table = dict[str, Any]


def load(*tables: Table) -> tuple[RetentionPolicy, ...]:
    """Load tables as from retention.toml."""
    return load_policies(tables, source=SOURCE)


def problems(*tables: Table) -> list[str]:
    """The lines of the error that these tables give."""
    with pytest.raises(ConfigurationError) as caught:
        load(*tables)
    return str(caught.value).splitlines()


def reports(**fields: object) -> Table:
    """A policy called "reports" that keeps ten."""
    return {"name": "reports", "keep_last": 10} | fields


# --- errors of one policy: what is refused, and the counterpart that loads


REFUSED = [
    # fields, what the message says after `retention.toml: policy "reports": `
    pytest.param({"keep_last": 0}, NO_RULE, id="no-rule"),
    pytest.param({"keep_last": 0, "grace_days": 7}, NO_RULE, id="grace-alone-is-no-rule"),
    pytest.param({"keep_last": 0, "keep_oldest": True}, NO_RULE, id="oldest-alone-is-no-rule"),
    pytest.param({"keep_last": 0, "expire_after_days": 7}, NO_RULE, id="a-limit-alone-is-no-rule"),
    pytest.param({"keep_lst": 3}, "unknown field keep_lst = 3", id="unknown-field"),
    pytest.param({"keep_last": -1}, "keep_last = -1: input should be greater than or equal to 0", id="negative"),
    pytest.param({"keep_last": 1_000_001}, "keep_last = 1000001: input should be less than or equal to 1000000", id="absurd"),
    pytest.param({"keep_last": True}, "keep_last = True: must be a number, not true or false", id="true-for-a-number"),
    pytest.param({"keep_last": "10"}, "keep_last = '10': input should be a valid integer", id="text-for-a-number"),
    pytest.param({"keep_last": 1.5}, "keep_last = 1.5: input should be a valid integer", id="half-a-version"),
    pytest.param({"keep_all": "perhaps"}, "keep_all = 'perhaps': input should be a valid boolean", id="no-boolean"),
    pytest.param(
        {"timezone": "Europe/Bern"},
        "timezone = 'Europe/Bern': is no IANA time zone (such as UTC or Europe/Zurich)",
        id="unknown-zone",
    ),
    pytest.param({"timezone": ""}, "timezone = '': is no IANA time zone", id="empty-zone"),
    pytest.param({"timezone": "../UTC"}, "timezone = '../UTC': is no IANA time zone", id="zone-outside-the-database"),
    pytest.param({"match_keys": [""]}, "match_keys = ['']: '' matches no key; * is for all keys", id="empty-glob"),
    pytest.param({"match_keys": []}, "match_keys = []: list should have at least 1 item", id="matches-nothing"),
    *(
        pytest.param({field: ["a", glob]}, f"{field} = ['a', {glob!r}]: {glob!r} matches no key, because keys {why}", id=glob)
        for field in ("match_keys", "exclude_keys")
        for glob, why in {
            "Audit-*": "have only a-z, 0-9 and -, and no 'A'; did you mean 'audit-*'?",
            "audit_*": "have only a-z, 0-9 and -, and no '_'; did you mean 'audit-*'?",
            "AUDIT[A-Z]": "have only a-z, 0-9 and -, and no 'A'; did you mean 'audit[a-z]'?",
            "a.b": "have only a-z, 0-9 and -, and no '.'; did you mean 'a-b'?",
            " audit-*": "have only a-z, 0-9 and -, and no ' '; did you mean 'audit-*'?",
            "audit-*\n": "have only a-z, 0-9 and -, and no '\\n'; did you mean 'audit-*'?",
            "audit-{a,b}": "have only a-z, 0-9 and -, and no '{'; each glob is an entry of its own in the list",
            "audit,b": "have only a-z, 0-9 and -, and no ','; each glob is an entry of its own in the list",
            "^audit-.*$": "have only a-z, 0-9 and -, and no '^'",
            "audit-%": "have only a-z, 0-9 and -, and no '%'",
            "a[*]": "have only a-z, 0-9 and -, and no '[*]'",
            "a[A-Z_]": "have only a-z, 0-9 and -, and no '[A-Z_]'; did you mean 'a[a-z-]'?",
            "a[!a-z0-9-]": "have only a-z, 0-9 and -, and no '[!a-z0-9-]'",
            "audit-[12": "have only a-z, 0-9 and -, and no '['",
        }.items()
    ),
    pytest.param(
        {"match_keys": ["[^a]*"]},
        "match_keys = ['[^a]*']: '[^a]*' has ^ in a set of characters; all but these is written [!a]",
        id="negation-of-regular-expressions",
    ),
    *(
        pytest.param(
            {"match_types": [kind]}, f"match_types = [{kind!r}]: no artifact is of type {kind!r}; did you mean 'table'?"
        )
        for kind in ("Table", "TABLE", " table")
    ),
    pytest.param({"match_keys": "daily-*"}, "match_keys = 'daily-*': input should be a valid list", id="glob-for-a-list"),
    pytest.param({"exclude_keys": ["*"]}, "exclude_keys = ['*'] excludes all of match_keys = ['*']", id="excludes-everything"),
    pytest.param(
        {"match_keys": ["a-*", "b"], "exclude_keys": ["b", "a-*"]},
        "exclude_keys = ['b', 'a-*'] excludes all of match_keys = ['a-*', 'b']",
        id="excludes-every-pattern",
    ),
    pytest.param(
        {"match_keys": ["a-1", "a-2"], "exclude_keys": ["a-?"]},
        "exclude_keys = ['a-?'] excludes all of match_keys = ['a-1', 'a-2']",
        id="excludes-every-plain-key",
    ),
    pytest.param(
        {"keep_within_days": 31, "expire_after_days": 30},
        "keep_within_days = 31 is longer than expire_after_days = 30",
        id="within-beyond-the-limit",
    ),
    pytest.param(
        {"keep_within_days": 31, "drop_idle_keys_after_days": 30},
        "drop_idle_keys_after_days = 30 is shorter than keep_within_days = 31",
        id="idle-before-within",
    ),
    pytest.param(
        {"keep_oldest": True, "expire_after_days": 30},
        "keep_oldest = true contradicts expire_after_days = 30",
        id="oldest-beyond-the-limit",
    ),
    pytest.param(
        {"unkeyed": True, "keep_within_days": 7}, "keep_last = 10 has no meaning beside unkeyed = true", id="unkeyed-last"
    ),
    pytest.param({"keep_all": True}, "keep_last = 10 has no meaning beside keep_all = true", id="all-and-last"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_a_mistake_names_source_policy_field_and_value(fields: Table, message: str) -> None:
    """One line, and nothing loads."""
    (problem,) = problems(reports(**fields))
    assert problem.startswith(f'{SOURCE}: policy "reports": {message}')


ACCEPTED = [
    {"keep_last": 0, "keep_all": True},
    {"keep_last": 0, "keep_within_days": 1},
    *({"keep_last": 0, rule: 1} for rule in COUNTS),
    {"keep_last": 1_000_000},
    {"timezone": "Europe/Zurich"},
    {"match_keys": ["daily-*"]},
    {"match_keys": ["*", "a"], "exclude_keys": ["a"]},
    {"match_keys": ["a-*"], "exclude_keys": ["a-b"]},
    {"match_keys": ["a-1", "b-1"], "exclude_keys": ["a-?"]},
    {"match_keys": ["**", "a?[b-d]*", "[!_]", "[]a-]", "-1"], "exclude_keys": ["[0-9]*"]},
    {"match_types": ["table", "Chart", "my own"]},
    {"keep_within_days": 30, "expire_after_days": 30},
    {"keep_within_days": 30, "drop_idle_keys_after_days": 30},
    {"keep_within_days": 0.5, "grace_days": 0.25},
    {"keep_oldest": True, "expire_after_days": 0},
    {"unkeyed": True, "keep_last": 0, "keep_within_days": 7, "expire_after_days": 30},
    {"keep_all": True, "keep_last": 0, "match_keys": ["a*"], "exclude_keys": ["ab"], "match_types": ["table"]},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
def test_what_can_be_meant_loads_as_it_is_written(fields: Table) -> None:
    """The counterparts, boundaries included."""
    (loaded,) = load(reports(**fields))
    written = reports(**fields)
    assert {name: getattr(loaded, name) for name in written} == written


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize("value", [-1, 1_000_001, 2.5, "3", True, None])
def test_no_count_is_negative_absurd_or_no_whole_number(field: str, value: object) -> None:
    """For each rule that counts."""
    (problem,) = problems(reports(**{field: value}))
    assert problem.startswith(f'{SOURCE}: policy "reports": {field} = {value!r}: ')


@pytest.mark.parametrize("field", DAYS)
@pytest.mark.parametrize("value", [-0.1, 36_526, float("nan"), float("inf"), "3", True, None])
def test_no_number_of_days_is_negative_absurd_or_no_number(field: str, value: object) -> None:
    """A century at most, and no infinity."""
    (problem,) = problems(reports(**{field: value}))
    assert problem.startswith(f'{SOURCE}: policy "reports": {field} = {value!r}: ')


@pytest.mark.parametrize("field", [*COUNTS, *DAYS])
def test_zero_switches_a_number_off(field: str) -> None:
    """It is the default of each."""
    assert load({"name": "a", "keep_all": True, field: 0}) == load({"name": "a", "keep_all": True})


OFF_SWITCH: dict[str, object] = {
    **dict.fromkeys(COUNTS, 1),
    **dict.fromkeys(DAYS, 1),
    "keep_oldest": True,
    "offload_larger_than_kb": 100,
    "timezone": "Europe/Zurich",
}


@pytest.mark.parametrize("field", OFF_SWITCH)
def test_nothing_stands_beside_keep_all(field: str) -> None:
    """A rule there is a misunderstanding of one of the two."""
    (problem,) = problems({"name": "safe", "keep_all": True, field: OFF_SWITCH[field]})
    shown = re.escape(repr(OFF_SWITCH[field]))  # a number of days has become a float
    assert re.fullmatch(rf'{SOURCE}: policy "safe": {field} = {shown}(\.0)? has no meaning beside keep_all = true', problem)


@pytest.mark.parametrize("field", [f for f in OFF_SWITCH if f not in ("keep_within_days", "expire_after_days")])
def test_only_age_rules_stand_beside_unkeyed(field: str) -> None:
    """Artifacts without a key have no order to count in, no latest and no calendar of their own."""
    (problem,) = problems({"name": "loose", "unkeyed": True, "keep_within_days": 0.5, field: OFF_SWITCH[field]})
    assert re.fullmatch(
        rf'{SOURCE}: policy "loose": {field} = \S+ has no meaning beside unkeyed = true',
        problem,
    )


@pytest.mark.parametrize(("field", "value"), [("match_keys", ["a*"]), ("exclude_keys", ["a*"]), ("match_types", ["table"])])
def test_no_selector_stands_beside_unkeyed(field: str, value: list[str]) -> None:
    """There is no key to match, and no latest version whose type would count."""
    (problem,) = problems({"name": "loose", "unkeyed": True, "keep_within_days": 7, field: value})
    assert problem == f'{SOURCE}: policy "loose": {field} = {value!r} has no meaning beside unkeyed = true'


@pytest.mark.parametrize("name", ["", " ", "two\nlines", "bell\a", "x" * 101])
def test_a_name_is_one_short_visible_line(name: str) -> None:
    """It stands in reports and messages."""
    assert any(f"name = {name!r}"[:60] in problem.replace("\n", " ") for problem in problems(reports(name=name)))


def test_a_policy_without_a_name_is_named_by_its_number() -> None:
    """The first is number 1."""
    assert problems(reports(), {"keep_last": 1}) == [f"{SOURCE}: policy number 2: name is missing"]


def test_every_policy_with_a_mistake_is_reported_at_once() -> None:
    """One line to a problem, in the order of the file."""
    assert problems(
        reports(keep_last=-1, timezone="Mars"),
        {"name": "fine", "keep_last": 1},
        {"name": "typo", "keep_lst": 1, "keep_last": 1},
    ) == [
        f'{SOURCE}: policy "reports": keep_last = -1: input should be greater than or equal to 0',
        f"{SOURCE}: policy \"reports\": timezone = 'Mars': is no IANA time zone (such as UTC or Europe/Zurich)",
        f'{SOURCE}: policy "typo": unknown field keep_lst = 1',
    ]


def test_every_contradiction_of_a_policy_is_reported_at_once() -> None:
    """load_policies says that it lists every problem."""
    assert problems(reports(keep_within_days=31, expire_after_days=30, drop_idle_keys_after_days=20)) == [
        f'{SOURCE}: policy "reports": keep_within_days = 31 is longer than expire_after_days = 30',
        f'{SOURCE}: policy "reports": drop_idle_keys_after_days = 20 is shorter than keep_within_days = 31',
    ]


def test_a_message_is_one_line_whatever_the_name() -> None:
    """Two problems, two lines."""
    assert len(problems(reports(name="two\nlines", keep_last=-1))) == 2


@pytest.mark.parametrize("table", ["reports", None, 3, ["keep_last"]])
def test_a_policy_that_is_no_table_is_refused(table: object) -> None:
    """As JSON in an environment variable may give it."""
    with pytest.raises(ConfigurationError, match=r"^retention\.toml: policy number 1: "):
        load_policies([table], source=SOURCE)  # type: ignore[list-item]


def test_excluding_a_wider_glob_than_every_pattern_is_refused() -> None:
    """A policy that can match nothing: tmp-* lies within tmp*."""
    problems(reports(match_keys=["tmp-*"], exclude_keys=["tmp*"]))


# --- errors of policies together


def test_two_policies_of_one_name_are_refused() -> None:
    """Reports could not tell them apart."""
    assert problems(reports(match_keys=["a"]), reports(match_keys=["b"])) == [f'{SOURCE}: two policies have name = "reports"']


SHADOWED = [
    pytest.param({}, {"match_keys": ["a"]}, id="star-takes-all"),
    pytest.param({}, {}, id="two-stars"),
    pytest.param({"match_keys": ["a-*"]}, {"match_keys": ["a-*"]}, id="identical-pattern"),
    pytest.param({"match_keys": ["a", "b"]}, {"match_keys": ["b"]}, id="one-of-its-patterns"),
    pytest.param({"match_keys": ["a", "*"]}, {"match_keys": ["b", "c"]}, id="star-among-others"),
    pytest.param({"match_keys": ["a"]}, {"match_keys": ["a"], "match_types": ["table"]}, id="types-make-no-difference"),
    pytest.param({"match_keys": ["a*"]}, {"match_keys": ["a*"], "exclude_keys": ["ab"]}, id="nor-do-excludes"),
    pytest.param({"keep_last": 0, "keep_all": True}, {"match_keys": ["a"]}, id="keep-all-shadows-too"),
    pytest.param({"match_keys": ["report-*"]}, {"match_keys": ["report-audit"]}, id="a-key-of-a-prefix"),
    pytest.param({"match_keys": ["report-*"]}, {"match_keys": ["report-a-*", "report-?"]}, id="globs-of-a-prefix"),
    pytest.param({"match_keys": ["*-a"]}, {"match_keys": ["report-a"]}, id="a-key-of-a-suffix"),
    pytest.param({"match_keys": ["**"]}, {"match_keys": ["*"]}, id="two-stars-are-one"),
    pytest.param({"match_keys": ["a-**"]}, {"match_keys": ["a-*"]}, id="also-behind-a-prefix"),
    pytest.param(
        {"match_types": ["table", "image"]}, {"match_keys": ["a"], "match_types": ["table"]}, id="types-among-its-types"
    ),
    pytest.param({"exclude_keys": ["b-*"]}, {"match_keys": ["a"], "exclude_keys": ["b-*"]}, id="the-same-excludes"),
]


@pytest.mark.parametrize(("first", "second"), SHADOWED)
def test_a_policy_that_can_never_apply_is_refused(first: Table, second: Table) -> None:
    """The message names both culprits."""
    keys = second.get("match_keys", ["*"])
    assert problems(reports(name="wide", **first), reports(name="narrow", **second)) == [
        f'{SOURCE}: policy "narrow": match_keys = {keys} can never apply: policy "wide" before it takes them all'
    ]


NOT_SHADOWED = [
    pytest.param({"match_keys": ["a"]}, {}, id="narrow-before-wide"),
    pytest.param({"exclude_keys": ["a"]}, {"match_keys": ["a"]}, id="excluded-goes-on"),
    pytest.param({"match_types": ["table"]}, {"match_keys": ["a"]}, id="other-types-go-on"),
    pytest.param({"match_keys": ["a"]}, {"match_keys": ["a", "b"]}, id="one-pattern-left"),
    pytest.param({"keep_last": 0, "keep_within_days": 7, "unkeyed": True}, {}, id="unkeyed-before-keyed"),
    pytest.param({}, {"keep_last": 0, "keep_within_days": 7, "unkeyed": True}, id="keyed-before-unkeyed"),
    pytest.param({"match_keys": ["report-audit"]}, {"match_keys": ["report-*"]}, id="a-key-before-its-prefix"),
    pytest.param({"match_keys": ["report-?"]}, {"match_keys": ["report-*"]}, id="a-question-mark-before-a-star"),
    pytest.param({"match_types": ["table"]}, {"match_types": ["table", "image"]}, id="one-type-left"),
    pytest.param({"exclude_keys": ["b"]}, {"match_keys": ["a", "b"], "exclude_keys": ["c"]}, id="other-excludes"),
]


@pytest.mark.parametrize(("first", "second"), NOT_SHADOWED)
def test_a_policy_that_can_apply_loads_behind_another(first: Table, second: Table) -> None:
    """The counterparts."""
    assert len(load(reports(name="first", **first), reports(name="second", **second))) == 2


def test_a_policy_whose_keys_several_others_take_is_refused() -> None:
    """The message names those that take something."""
    tables = [
        reports(name="reports", match_keys=["report-*"]),
        reports(name="models", match_keys=["model-*"]),
        reports(name="loads", match_keys=["load-a", "load-b"]),
        {"name": "audit", "match_keys": ["report-audit", "load-b", "report-x"], "keep_all": True},
    ]
    assert problems(*tables) == [
        (
            f"{SOURCE}: policy \"audit\": match_keys = ['report-audit', 'load-b', 'report-x'] can never apply: "
            'policies "reports" and "loads" before it take them all'
        )
    ]
    tables[2]["match_types"] = ["table"]
    assert len(load(*tables)) == 4


@pytest.mark.parametrize("glob", ["artifact-retention-*", "artifact-retention-report", "artifact-retention-h*"])
def test_no_policy_is_for_the_keys_of_this_package(glob: str) -> None:
    """Whatever it says, theirs is built in; accepted, it would protect nothing."""
    shield = {"name": "shield", "match_keys": ["audit-*", glob], "keep_all": True}
    assert problems(shield) == [
        (
            f"{SOURCE}: policy \"shield\": match_keys = ['{glob}'] can never apply: "
            'policy "artifact-retention (built in)" is for these keys'
        )
    ]


@pytest.mark.parametrize("glob", ["artifact-retention-dashboard", "artifact-*", "*"])
def test_keys_that_only_look_like_those_of_this_package_may_have_a_policy(glob: str) -> None:
    """The counterpart."""
    assert len(load({"name": "shield", "match_keys": [glob], "keep_all": True})) == 1


def test_a_second_policy_for_unkeyed_artifacts_is_refused() -> None:
    """The first takes them all."""
    fields = {"unkeyed": True, "keep_within_days": 7}
    assert problems({"name": "loose", **fields}, {"name": "looser", **fields}) == [
        f'{SOURCE}: policy "looser": unkeyed = true can never apply: policy "loose" before it takes them all'
    ]


def test_check_policies_refuses_the_same_conflicts() -> None:
    """For policies that come as objects, as flow parameters do."""
    with pytest.raises(ConfigurationError, match=r'^parameter: two policies have name = "test"$'):
        check_policies([policy(keep_last=1, match_keys=["a"]), policy(keep_last=2)], source="parameter")
    check_policies([policy(keep_last=1)], source="parameter")


def test_policies_load_from_toml_in_their_order() -> None:
    """As they stand in retention.toml."""
    tables = tomllib.loads("""
        [[policies]]
        name = "reports"
        match_keys = ["report-*"]
        keep_daily = 14
        keep_within_days = 1.5
        timezone = "Europe/Zurich"

        [[policies]]
        name = "rest"
        keep_last = 10
    """)["policies"]
    assert load(*tables) == (
        RetentionPolicy(
            name="reports", match_keys=["report-*"], keep_daily=14, keep_within_days=1.5, timezone="Europe/Zurich"
        ),
        RetentionPolicy(name="rest", keep_last=10),
    )


def test_no_policies_load_as_none() -> None:
    """What that means is for the run to say."""
    assert load() == ()


def test_the_built_in_policies_are_those_of_the_design() -> None:
    """The preview keeps the last ten and thirty days; our own three keys do not accumulate."""
    assert (PREVIEW_POLICY.keep_last, PREVIEW_POLICY.keep_within_days) == (10, 30)
    assert all(OWN_POLICY.matches(key, "markdown") for key in OWN_KEYS)
    assert not OWN_POLICY.matches("artifact-retention-reports", "markdown")
    check_policies([OWN_POLICY, PREVIEW_POLICY], source="built in")


# --- which policy a key gets


def chosen(policies: tuple[RetentionPolicy, ...], key: str | None, latest_type: str | None = "markdown") -> str | None:
    """The name of the policy of a key."""
    found = select_policy(policies, key, latest_type)
    return found.name if found else None


def test_the_first_policy_that_matches_is_the_one() -> None:
    """The order of the file decides, not how narrow a glob is."""
    policies = load(
        reports(name="daily", match_keys=["daily-*"]), reports(name="sales", match_keys=["*-sales"]), reports(name="rest")
    )
    assert chosen(policies, "daily-sales") == "daily"
    assert chosen(policies, "weekly-sales") == "sales"
    assert chosen(policies, "weekly") == "rest"


def test_an_excluded_key_goes_on_to_the_next_policy() -> None:
    """It is not left alone."""
    policies = load(
        reports(name="most", exclude_keys=["audit-*"]), reports(name="audit", match_keys=["audit-*"], keep_last=99)
    )
    assert chosen(policies, "audit-2026") == "audit"
    assert chosen(policies, "other") == "most"


def test_a_key_whose_latest_is_of_another_type_goes_on_to_the_next_policy() -> None:
    """An unknown type is no match for a list of types."""
    policies = load(reports(name="tables", match_types=["table", "progress"]), reports(name="rest"))
    assert [chosen(policies, "a", kind) for kind in ("table", "progress", "markdown", None)] == [
        "tables",
        "tables",
        "rest",
        "rest",
    ]


def test_a_key_without_a_policy_is_unmanaged() -> None:
    """None means: leave it alone."""
    policies = load(reports(match_keys=["a*"], exclude_keys=["ab"]))
    assert chosen(policies, "ac") == "reports"
    assert chosen(policies, "ab") is None
    assert chosen(policies, "b") is None
    assert chosen((), "a") is None


def test_unkeyed_artifacts_and_keys_have_policies_of_their_own() -> None:
    """A star is for keys, also for the empty one; unkeyed is for None alone."""
    loose = {"name": "loose", "unkeyed": True, "keep_within_days": 7}
    policies = load(loose, reports())
    assert chosen(policies, None, None) == "loose"
    assert chosen(policies, "", None) == "reports"
    assert chosen(policies, "a", None) == "reports"
    assert chosen(load(reports()), None, None) is None
    assert chosen(load(loose), "a", None) is None


def unchecked(**fields: object) -> RetentionPolicy:
    """A policy with globs that are refused: Prefect makes no such keys, but whoever writes into its database does."""
    return RetentionPolicy.model_construct(None, **reports(**fields))


LONG = "k" * 3000
STAR = "star-takes-the-empty-key"
EXACT = [
    # glob, keys that it takes, keys that it leaves
    pytest.param("report", ["report"], ["reports", "a-report", "Report", "REPORT", "report\n", " report", ""], id="plain"),
    pytest.param(
        "report-*", ["report-", "report-1", "report-1\n"], ["report", "Report-1", "a-report-1", "\nreport-1"], id="star"
    ),
    pytest.param("a_b", ["a_b"], ["a-b", "axb", "a__b", "A_B"], id="underscore-is-no-wildcard"),
    pytest.param("a%", ["a%"], ["a", "ab", "a%b"], id="percent-is-no-wildcard"),
    pytest.param("a.b", ["a.b"], ["a-b", "axb"], id="a-dot-is-a-dot"),
    pytest.param("a+", ["a+"], ["a", "aa"], id="a-plus-is-a-plus"),
    pytest.param("a|b", ["a|b"], ["a", "b"], id="a-bar-is-a-bar"),
    pytest.param("(a)$", ["(a)$"], ["a", "(a)"], id="no-regular-expression"),
    pytest.param("a-?", ["a-1", "a-\n"], ["a-", "a-12", "A-1"], id="question-mark-is-one-character"),
    pytest.param("a-[12]", ["a-1", "a-2"], ["a-3", "a-12", "a-[12]"], id="set"),
    pytest.param("a-[!1]", ["a-2"], ["a-1", "a-"], id="set-of-others"),
    pytest.param("a[*]", ["a*"], ["ab", "a"], id="escaped-star"),
    pytest.param("", [""], ["a", "\n", " "], id="empty-glob-takes-the-empty-key"),
    pytest.param("*", ["", "a", "\n", "a\nb", LONG], [], id=STAR),
    pytest.param("?*", ["a", "\n"], [""], id="something"),
    pytest.param("abc\n", ["abc\n"], ["abc", "abc\n\n", "abcn"], id="trailing-newline"),
    pytest.param(LONG, [LONG], [LONG[:-1], LONG + "k", LONG + "\n"], id="3000-characters"),
    pytest.param("k*", [LONG], ["x" + LONG], id="star-over-3000-characters"),
    pytest.param("ß", ["ß"], ["ss", "SS", "ẞ"], id="no-case-folding"),
]


@pytest.mark.parametrize(("glob", "taken", "left"), EXACT)
def test_a_glob_takes_whole_keys_exactly_and_is_never_widened(glob: str, taken: list[str], left: list[str]) -> None:
    """Case counts, and so does every character that is special elsewhere (in SQL's LIKE, in regular expressions)."""
    policies = (unchecked(match_keys=[glob]),)
    assert [key for key in taken if chosen(policies, key) is None] == []
    assert [key for key in left if chosen(policies, key) is not None] == []


@pytest.mark.parametrize(("glob", "taken", "left"), [case for case in EXACT if case.id != STAR])
def test_an_exclude_is_as_exact_as_a_match(glob: str, taken: list[str], left: list[str]) -> None:
    """What it takes is excluded, what it leaves is not (an exclude of everything is refused)."""
    policies = (unchecked(exclude_keys=[glob]),)
    assert [key for key in taken if chosen(policies, key) is not None] == []
    assert [key for key in left if chosen(policies, key) is None] == []


# --- stand_in: --keep-last and --keep-within-days for one call

COMMAND_LINE = RetentionPolicy(name="command line", keep_last=1)


def test_the_override_takes_the_place_of_the_rules_and_leaves_the_selectors() -> None:
    """A key is still matched by its own policy, and judged by the override's rules alone."""
    configured = load(reports(match_keys=["a*"], exclude_keys=["ab"], match_types=["table"], keep_oldest=True, grace_days=7))
    first, second = stand_in(configured, COMMAND_LINE)
    assert first == RetentionPolicy(
        name="reports, by command line", match_keys=["a*"], exclude_keys=["ab"], match_types=["table"], keep_last=1
    )
    assert second == COMMAND_LINE


def test_keep_all_is_never_overridden() -> None:
    """A shielded key stays shielded, in its place in the order."""
    policies = stand_in(
        load(
            reports(name="reports", match_keys=["a*"], exclude_keys=["audit"]),
            {"name": "shield", "match_keys": ["audit", "legal-*"], "keep_all": True},
            reports(name="rest", keep_last=50),
        ),
        COMMAND_LINE,
    )
    for key in ("audit", "legal-1"):
        shield = select_policy(policies, key, "markdown")
        assert shield is not None
        assert shield.keep_all
        assert shield.name == "shield"
    assert chosen(policies, "a1") == "reports, by command line"
    assert chosen(policies, "zzz") == "rest, by command line"


def test_a_shield_for_everything_leaves_the_override_nothing() -> None:
    """And that is no error: the result can be checked and used."""
    shield = load({"name": "shield", "keep_all": True})
    assert stand_in(shield, COMMAND_LINE) == shield


def test_a_shield_by_type_goes_on_shielding_its_type_only() -> None:
    """The other types get the override."""
    policies = stand_in(load({"name": "shield", "keep_all": True, "match_types": ["table"]}), COMMAND_LINE)
    assert chosen(policies, "a", "table") == "shield"
    assert chosen(policies, "a", "markdown") == "command line"


def test_keys_without_a_policy_get_the_override() -> None:
    """It was asked for by key."""
    policies = stand_in(load(reports(match_keys=["a*"])), COMMAND_LINE)
    assert chosen(policies, "b") == "command line"
    assert stand_in((), COMMAND_LINE) == (COMMAND_LINE,)


def test_an_override_is_only_for_the_keys_that_no_policy_takes() -> None:
    """The others have their policy, under its name; nothing about it is doubtful."""
    override = policy(match_keys=["a-1", "b", "artifact-x"], keep_last=1)
    policies = stand_in(load(reports(match_keys=["a*"], exclude_keys=[]), reports(name="b", match_keys=["b-*"])), override)
    assert [each.match_keys for each in policies] == [["a*"], ["b-*"], ["b"]]
    assert find_doubts(policies) == []


def test_unkeyed_artifacts_are_no_business_of_an_override() -> None:
    """It needs a key, so they are left alone."""
    policies = stand_in(load({"name": "loose", "unkeyed": True, "keep_within_days": 7}, reports()), COMMAND_LINE)
    assert chosen(policies, None, None) is None


@pytest.mark.parametrize(
    "tables",
    [
        [],
        [reports()],
        [reports(match_keys=["a"]), reports(name="rest")],
        [reports(name="x" * 100, match_keys=["a"]), reports(name="x" * 99, match_keys=["b"])],
        [{"name": "shield", "match_keys": ["a"], "keep_all": True}, reports()],
        [{"name": "loose", "unkeyed": True, "keep_within_days": 7}],
    ],
    ids=["none", "one", "two", "long-names", "shield", "unkeyed"],
)
def test_what_stands_in_passes_the_check_of_policies(tables: list[Table]) -> None:
    """An override makes no policy that would be refused."""
    check_policies(stand_in(load(*tables), COMMAND_LINE), source="command line")


# --- digest


def test_a_digest_is_twelve_hexadecimal_digits_that_stay_the_same() -> None:
    """The same policies have the same digest in every process."""
    policies = load(reports())
    assert re.fullmatch("[0-9a-f]{12}", digest(policies))
    assert digest(policies) == digest(load(reports()))


OTHER: Table = {
    "name": "other",
    "match_keys": ["a*"],
    "exclude_keys": ["ab"],
    "match_types": ["table"],
    "keep_last": 11,
    "keep_oldest": True,
    "offload_larger_than_kb": 100,
    "timezone": "Europe/Zurich",
    **{name: 3 for name in COUNTS if name != "keep_last"},
    **dict.fromkeys(DAYS, 1.5),
}


@pytest.mark.parametrize("field", OTHER)
def test_a_digest_changes_with_every_field(field: str) -> None:
    """A plan made under other policies must not be carried out."""
    assert digest(load(reports(**{field: OTHER[field]}))) != digest(load(reports()))


def test_a_digest_changes_with_the_switches() -> None:
    """keep_all and unkeyed are fields too."""
    alike = {"name": "reports", "keep_within_days": 7}
    assert (
        len({digest(load(table)) for table in (alike, alike | {"unkeyed": True}, {"name": "reports", "keep_all": True})}) == 3
    )


def test_every_field_of_a_policy_is_covered_by_the_digest_tests() -> None:
    """A new field needs its line in them."""
    assert set(RetentionPolicy.model_fields) == {*OTHER, "keep_all", "unkeyed"}


def test_a_digest_changes_with_the_order_and_the_number_of_policies() -> None:
    """The order decides which policy a key gets."""
    one, two = policy(keep_last=1, match_keys=["a"]), RetentionPolicy(name="two", keep_last=2, match_keys=["b"])
    assert len({digest(policies) for policies in ([], [one], [two], [one, two], [two, one])}) == 5


# --- describe


DESCRIBED = [
    ({"keep_last": 10}, "Every key: keep the last 10."),
    ({"keep_all": True, "match_keys": ["audit-*"]}, "Keys audit-*: keep everything."),
    (
        {"unkeyed": True, "keep_within_days": 7},
        "Artifacts without a key: keep all of the last 7 days.",
    ),
    (
        {"keep_within_days": 1.5, "keep_hourly": 24, "keep_daily": 14, "timezone": "Europe/Zurich"},
        (
            "Every key: keep all of the last 1.5 days, the newest of each of the last 24 hours that have any, "
            "the newest of each of the last 14 days that have any (Europe/Zurich)."
        ),
    ),
    (
        {"match_keys": ["a-*", "b"], "exclude_keys": ["a-x"], "match_types": ["table", "markdown"], "keep_weekly": 8},
        (
            "Keys a-*, b except a-x whose latest version is of type table or markdown: "
            "keep the newest of each of the last 8 weeks that have any (UTC)."
        ),
    ),
    (
        {"keep_last": 3, "keep_monthly": 12, "keep_yearly": 5, "keep_oldest": True, "grace_days": 2},
        (
            "Every key: keep the last 3, the newest of each of the last 12 months that have any, "
            "the newest of each of the last 5 years that have any (UTC), the oldest, each for 2 days after it was superseded."
        ),
    ),
    (
        {"keep_last": 3, "expire_after_days": 365, "drop_idle_keys_after_days": 90},
        "Every key: keep the last 3; nothing but the latest beyond 365 days; drop a key that is idle for more than 90 days.",
    ),
]


@pytest.mark.parametrize(("fields", "sentence"), DESCRIBED)
def test_a_policy_describes_itself_in_one_sentence(fields: Table, sentence: str) -> None:
    """The sentence of the log, the report and `policies check`."""
    assert policy(**fields).describe() == sentence


def test_a_limit_for_unkeyed_artifacts_promises_no_latest() -> None:
    """Unkeyed artifacts all go beyond the limit."""
    assert "latest" not in policy(unkeyed=True, keep_within_days=7, expire_after_days=30).describe()


def test_a_policy_of_one_day_describes_itself_in_the_singular() -> None:
    """Not `the last 1 days`."""
    assert not re.search(r"\b1 \w+s\b", policy(keep_within_days=1, keep_daily=1, grace_days=1).describe())


@pytest.mark.parametrize(
    ("fields", "beyond"),
    [
        ({"keep_all": True}, True),
        ({"keep_last": 1}, True),
        ({"keep_monthly": 1}, True),
        ({"keep_within_days": 31}, True),
        ({"keep_within_days": 30}, False),
        ({"keep_within_days": 1, "grace_days": 1}, True),
        ({"keep_within_days": 1, "keep_oldest": True}, True),
        ({"keep_last": 1, "expire_after_days": 30}, False),
        ({"keep_last": 1, "expire_after_days": 31}, True),
    ],
    ids=str,
)
def test_a_policy_says_whether_it_keeps_versions_longer_than_a_server_does(fields: dict[str, Any], *, beyond: bool) -> None:
    """Which the report warns of, where the server deletes by itself after 30 days."""
    assert RetentionPolicy(name="p", **fields).keeps_beyond(30) == beyond
