"""The planner against the brute-force oracle, and what must hold whatever the policy and the history."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from builders import NOW, days_old, history, kept, policy, version
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import kept_ids
from prefect_artifact_retention.policies import RetentionPolicy, Verdict, Version, evaluate
from prefect_artifact_retention.policies.evaluation import CONDEMNATIONS, judge
from prefect_artifact_retention.policies.model import Versions

MOMENTS = (
    NOW,
    datetime(2026, 3, 29, 2, tzinfo=UTC),  # Zurich went from 02:00 to 03:00 an hour ago
    datetime(2026, 10, 25, 3, 30, tzinfo=UTC),  # Zurich has had 02:00 to 03:00 twice
    datetime(2026, 4, 5, 0, tzinfo=UTC),  # Lord Howe, half an hour of DST, ended in its night
    datetime(2027, 1, 4, 0, 30, tzinfo=UTC),  # the Monday after ISO week 2026-W53
)
ZONES = ("UTC", "Europe/Zurich", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu")
METADATA: tuple[dict[str, str], ...] = (
    {"retention-ttl-days": "1"},
    {"retention-ttl-days": "0.5"},
    {"retention-ttl-days": "30"},
    {"retention-ttl-days": "soon"},
    {"retention-hold": "true"},
    {"retention-hold": "false"},
    {"retention-hold": "2026-11-24"},
    {"retention-hold": "2025-01-01"},
    {"retention-hold": "yess"},
    {"retention-hold": "2026-02-30", "retention-ttl-days": "2"},
    {"retention_hold": "false"},
    {"Retention-Hold": "2025-01-01", "retention-ttl-days": "2"},
    {"artifact-retention-phase": "deleting", "hold": "true"},
)
COUNTS = ("keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly")
DAYS = (0.25, 0.5, 1, 2, 7, 30, 90)

FEW = settings(max_examples=60)
"""For what a handful of histories would show."""


class Case(NamedTuple):
    """Everything that a call of evaluate needs."""

    versions: list[Version]
    policy: RetentionPolicy
    now: datetime
    latest_id: UUID | None
    running: frozenset[UUID]

    def verdicts(self) -> tuple[Verdict, ...]:
        """What the planner says."""
        return evaluate(self.versions, self.policy, now=self.now, latest_id=self.latest_id, running=self.running)

    def kept(self) -> set[UUID]:
        """The ids that the planner keeps."""
        return kept(self.verdicts())

    def by_id(self) -> dict[UUID, Verdict]:
        """The planner's verdict on each version."""
        return {verdict.version.id: verdict for verdict in self.verdicts()}


AGES = st.one_of(
    st.integers(-1, 12).map(lambda hours: timedelta(hours=hours)),
    st.integers(0, 400).map(lambda days: timedelta(days=days)),
    st.integers(0, 40 * 48).map(lambda half_hours: timedelta(minutes=30 * half_hours)),
    st.sampled_from(DAYS).map(lambda days: timedelta(days=days, microseconds=1)),
)
SPECIAL = st.sampled_from((*([{}] * 2 * len(METADATA)), *METADATA))
UPDATED_AFTER = st.sampled_from((*([0] * 4), 0.5, 2, 30, 400))
"""The days after which a version was updated in place; most never were."""

LISTINGS = st.lists(st.tuples(AGES, SPECIAL, UPDATED_AFTER), min_size=1, max_size=10)


@st.composite
def version_lists(draw: st.DrawFn, now: datetime, *, key: str | None) -> list[Version]:
    """Up to ten versions of one key, in any order; a third are held or have a TTL, each is of a run of its own."""
    return [
        version(
            now - age,
            number=number,
            key=key,
            metadata=metadata,
            flow_run_id=UUID(int=1000 + number) if number % 2 else None,
            task_run_id=None if number % 2 else UUID(int=1000 + number),
            updated=now - age + timedelta(days=after),
        )
        for number, (age, metadata, after) in enumerate(draw(LISTINGS), start=1)
    ]


@st.composite
def policies(draw: st.DrawFn, *, idle: bool, expire: bool = True) -> RetentionPolicy:
    """A valid policy for keys with any mixture of rules."""
    some = st.sampled_from((0, 0, 0, 1, 2, 3, 4))
    fields: dict[str, Any] = {name: draw(some) for name in COUNTS}
    limits = st.sampled_from((0, 0, 0, *DAYS))
    fields["keep_within_days"] = draw(limits)
    fields["grace_days"] = draw(limits)
    fields["timezone"] = draw(st.sampled_from(ZONES))
    if idle:
        fields["drop_idle_keys_after_days"] = draw(st.sampled_from([d for d in DAYS if d >= fields["keep_within_days"]]))
    if expire and draw(st.booleans()):
        fields["expire_after_days"] = draw(st.sampled_from([d for d in DAYS if d >= fields["keep_within_days"]]))
    else:
        fields["keep_oldest"] = draw(st.booleans())
    if not any(fields[name] for name in (*COUNTS, "keep_within_days")):
        fields["keep_last"] = 1
    return policy(**fields)


@st.composite
def cases(draw: st.DrawFn, *, idle: bool = False, expire: bool = True, known_latest: bool = False) -> Case:
    """A collection with its policy; the latest is mostly, but not always, the newest."""
    now = draw(st.sampled_from(MOMENTS))
    versions = draw(version_lists(now, key="report"))
    newest = max(versions, key=lambda v: (v.created, v.id)).id
    choices = [newest, draw(st.sampled_from(versions)).id, *([] if known_latest else [None])]
    latest_id = draw(st.sampled_from(choices))
    runs = [run for v in versions if (run := v.flow_run_id or v.task_run_id)]
    running = draw(st.one_of(st.just(frozenset[UUID]()), st.frozensets(st.sampled_from(runs), max_size=2)))
    return Case(versions, draw(policies(idle=idle, expire=expire)), now, latest_id, running)


def with_and_without_idle(*, known_latest: bool = False) -> st.SearchStrategy[Case]:
    """Cases of both kinds of policy."""
    return st.one_of(cases(known_latest=known_latest), cases(idle=True, known_latest=known_latest))


# --- against the oracle


def agrees_with_oracle(case: Case) -> bool:
    """Whether planner and oracle keep the same."""
    expected = kept_ids(case.versions, case.policy, now=case.now, latest_id=case.latest_id, running=case.running)
    return case.kept() == expected


@settings(max_examples=200)
@given(cases())
def test_planner_keeps_what_the_oracle_keeps(case: Case) -> None:
    """Any policy without idle keys, any history."""
    assert agrees_with_oracle(case)


@settings(max_examples=200)
@given(cases(idle=True))
def test_planner_drops_idle_keys_like_the_oracle(case: Case) -> None:
    """Any policy that drops idle keys, any history."""
    assert agrees_with_oracle(case)


@FEW
@given(st.data())
def test_planner_keeps_the_unkeyed_artifacts_that_the_oracle_keeps(data: st.DataObject) -> None:
    """Artifacts without a key have no latest and no ranking, only ages."""
    versions = data.draw(version_lists(NOW, key=None))
    within = data.draw(st.sampled_from(DAYS))
    expire = data.draw(st.sampled_from([0, *(days for days in DAYS if days >= within)]))
    rules = policy(unkeyed=True, keep_within_days=within, expire_after_days=expire)
    assert kept(evaluate(versions, rules, now=NOW)) == kept_ids(versions, rules, now=NOW)


CLOCK_CHANGES = [
    pytest.param(zone, now, id=f"{zone}-{now:%Y-%m-%d}")
    for zone, now in [
        ("Europe/Zurich", datetime(2026, 3, 30, 12, tzinfo=UTC)),
        ("Europe/Zurich", datetime(2026, 10, 26, 12, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 3, 9, 12, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 11, 2, 12, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2026, 4, 5, 12, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2026, 10, 4, 12, tzinfo=UTC)),
    ]
]


@pytest.mark.parametrize(("zone", "now"), CLOCK_CHANGES)
@pytest.mark.parametrize("rule", ["keep_hourly", "keep_daily", "keep_weekly"])
def test_planner_agrees_with_the_oracle_on_every_count_across_a_clock_change(zone: str, now: datetime, rule: str) -> None:
    """A version every half hour for two days, and every number of slots that can matter."""
    versions = [version(now - timedelta(minutes=30 * n)) for n in range(96)]
    for count in (1, 2, 3, 12, 13, 36, 48, 49):
        assert agrees_with_oracle(Case(versions, policy(timezone=zone, **{rule: count}), now, None, frozenset()))


@pytest.mark.parametrize("zone", ["UTC", "Europe/Zurich", "America/New_York"])
@pytest.mark.parametrize("rule", ["keep_daily", "keep_weekly", "keep_monthly", "keep_yearly"])
def test_planner_agrees_with_the_oracle_on_every_count_across_week_53(zone: str, rule: str) -> None:
    """Three versions a day from 20 December 2026 to 11 January 2027."""
    now = datetime(2027, 1, 11, 22, 30, tzinfo=UTC)
    versions = [version(now - timedelta(hours=8 * n)) for n in range(66)]
    for count in (1, 2, 3, 4, 5, 22, 23):
        assert agrees_with_oracle(Case(versions, policy(timezone=zone, **{rule: count}), now, None, frozenset()))


# --- verdicts


@given(with_and_without_idle())
def test_what_is_counted_is_what_each_verdict_says(case: Case) -> None:
    """A plan counts verdicts, and names what goes, without looking at each."""
    judgement = judge(case.versions, case.policy, now=case.now, latest_id=case.latest_id, running=case.running)
    verdicts = case.verdicts()
    assert tuple(judgement) == tuple(judgement[:]) == verdicts
    stale = [verdict.version for verdict in verdicts if not verdict.keep]
    assert [judgement.versions[place] for place in judgement.stale] == stale
    for keep in (True, False):
        told = Counter(chain.from_iterable(verdict.rules for verdict in verdicts if verdict.keep == keep))
        assert judgement.rules(keep=keep) == told
    flow_runs, task_runs = judgement.stale_runs()
    assert flow_runs == {version.flow_run_id for version in stale} - {None}
    assert task_runs == {version.task_run_id for version in stale} - {None}


def test_versions_by_columns_are_the_versions_they_are_made_of() -> None:
    """Each once, the newest first; of two of one moment, the one with the higher id."""
    older, lower = days_old(2, metadata={"retention-hold": "true"}), version(NOW, number=1, flow_run_id=UUID(int=7))
    higher = version(NOW, number=2, task_run_id=UUID(int=8))
    versions = Versions.of([lower, older, higher, older])
    assert list(versions) == [higher, lower, older]
    assert versions[-1] == older
    assert versions[1:] == [lower, older]
    assert list(Versions.of([])) == []


@FEW
@given(with_and_without_idle())
def test_every_version_gets_exactly_one_verdict(case: Case) -> None:
    """Nothing is lost, nothing is judged twice."""
    judged = [verdict.version.id for verdict in case.verdicts()]
    assert sorted(judged) == sorted(v.id for v in case.versions)


@FEW
@given(with_and_without_idle())
def test_every_verdict_has_reasons_each_with_its_rule(case: Case) -> None:
    """No version stays or goes without a word."""
    for verdict in case.verdicts():
        assert verdict.reasons
        assert all(verdict.reasons)
        assert len(verdict.reasons) == len(verdict.rules)
        # By others, nobody can ask what was deleted.
        assert verdict.keep or {*verdict.rules} <= {*CONDEMNATIONS}


@given(with_and_without_idle(), st.randoms(use_true_random=False))
def test_order_of_the_input_does_not_matter(case: Case, random: Any) -> None:  # noqa: ANN401 - hypothesis' own Random
    """Verdicts and their order follow from the versions alone."""
    shuffled = list(case.versions)
    random.shuffle(shuffled)
    assert case._replace(versions=shuffled).verdicts() == case.verdicts()


@FEW
@given(with_and_without_idle())
def test_verdicts_come_latest_first_then_newest_first(case: Case) -> None:
    """The order that reports show and that pruning reverses."""
    judged = [verdict.version for verdict in case.verdicts()]
    newest_first = sorted(case.versions, key=lambda v: (v.created, v.id), reverse=True)
    assert judged[0].id == (case.latest_id or newest_first[0].id)
    assert judged[1:] == [v for v in newest_first if v.id != judged[0].id]


@given(with_and_without_idle())
def test_a_key_goes_whole_or_keeps_its_latest(case: Case) -> None:
    """A collection is never left without the version that its latest_id names, unless it is left without any."""
    newest = max(case.versions, key=lambda v: (v.created, v.id)).id
    survivors = case.kept()
    assert (case.latest_id or newest) in survivors or not survivors


@given(cases())
def test_the_latest_always_stays_where_idle_keys_do(case: Case) -> None:
    """Also past its TTL, past the hard limit, and outside every rule."""
    newest = max(case.versions, key=lambda v: (v.created, v.id)).id
    assert (case.latest_id or newest) in case.kept()


@FEW
@given(cases())
def test_latest_id_of_none_means_the_newest(case: Case) -> None:
    """The same verdicts as for the id of the newest version."""
    newest = max(case.versions, key=lambda v: (v.created, v.id)).id
    assert case._replace(latest_id=None).verdicts() == case._replace(latest_id=newest).verdicts()


@FEW
@given(with_and_without_idle())
def test_a_dangling_latest_id_keeps_everything(case: Case) -> None:
    """A latest that was not read may be a version that nobody knows yet."""
    verdicts = case._replace(latest_id=UUID(int=999_999)).verdicts()
    assert all(verdict.keep for verdict in verdicts)
    assert {verdict.rules for verdict in verdicts} == {("dangling",)}


@FEW
@given(with_and_without_idle())
def test_keep_all_keeps_everything(case: Case) -> None:
    """Whatever the versions say of themselves."""
    assert case._replace(policy=policy(keep_all=True)).kept() == {v.id for v in case.versions}


# --- stronger policies keep more


@given(with_and_without_idle(), st.data())
def test_a_stronger_keep_rule_never_deletes_more(case: Case, data: st.DataObject) -> None:
    """Adding a rule or raising its number only adds to what is kept."""
    fields = case.policy.model_dump()
    for name in COUNTS:
        fields[name] += data.draw(st.integers(0, 3), label=name)
    fields["grace_days"] += data.draw(st.sampled_from((0, 0.5, 10)), label="grace_days")
    ceiling = min(fields[name] or 1000 for name in ("expire_after_days", "drop_idle_keys_after_days"))
    fields["keep_within_days"] = min(ceiling, fields["keep_within_days"] + data.draw(st.sampled_from((0, 0.5, 10))))
    if not fields["expire_after_days"]:
        fields["keep_oldest"] |= data.draw(st.booleans(), label="keep_oldest")
    assert case.kept() <= case._replace(policy=RetentionPolicy.model_validate(fields)).kept()


@given(with_and_without_idle(), st.integers(1, 10), st.sampled_from(COUNTS))
def test_one_more_slot_keeps_all_that_was_kept(case: Case, count: int, rule: str) -> None:
    """For each rule that counts, n+1 keeps all that n keeps."""
    fewer, more = policy(**{rule: count}), policy(**{rule: count + 1})
    assert case._replace(policy=fewer).kept() <= case._replace(policy=more).kept()


@FEW
@given(cases(), st.integers(1, 10))
def test_each_rule_keeps_at_most_its_number(case: Case, count: int) -> None:
    """A rule that counts never claims more versions than it has slots."""
    rules = dict.fromkeys(COUNTS, count)
    claims = list(chain.from_iterable(verdict.rules for verdict in case._replace(policy=policy(**rules)).verdicts()))
    assert all(claims.count(rule) <= count for rule in COUNTS)


@given(cases(expire=False))
def test_a_hard_limit_never_keeps_more(case: Case) -> None:
    """A limit only takes away; what it leaves, the rules had kept."""
    fields = case.policy.model_dump() | {"keep_oldest": False}
    before = case._replace(policy=RetentionPolicy.model_validate(fields))
    after = case._replace(policy=RetentionPolicy.model_validate(fields | {"expire_after_days": 100}))
    assert after.kept() <= before.kept()


# --- one version's control is no other version's business


@given(cases(known_latest=True), st.data())
def test_a_hold_changes_no_other_verdict(case: Case, data: st.DataObject) -> None:
    """Protections change no slot: the others keep verdict and reasons to the word."""
    chosen = data.draw(st.sampled_from(case.versions))
    held = chosen._replace(metadata={**chosen.metadata, "retention-hold": "true"})
    changed = case._replace(versions=[held if v is chosen else v for v in case.versions]).by_id()
    assert changed.pop(chosen.id).keep
    before = case.by_id()
    del before[chosen.id]
    assert changed == before


@given(cases(known_latest=True), st.data())
def test_a_running_run_changes_no_other_verdict(case: Case, data: st.DataObject) -> None:
    """Protections change no slot: the others keep verdict and reasons to the word."""
    chosen = data.draw(st.sampled_from(case.versions))
    run = chosen.flow_run_id or chosen.task_run_id
    assert run is not None
    changed = case._replace(running=case.running | {run}).by_id()
    assert changed.pop(chosen.id).keep
    before = case.by_id()
    del before[chosen.id]
    assert changed == before


@given(cases(known_latest=True), st.sampled_from(["1", "30", "0.5", "soon"]), AGES)
def test_a_version_with_a_ttl_decides_over_no_other(case: Case, ttl: str, age: timedelta) -> None:
    """It takes no slot; without grace nothing else hangs on it."""
    rules = RetentionPolicy.model_validate(case.policy.model_dump() | {"grace_days": 0})
    before = case._replace(policy=rules)
    extra = version(case.now - age, number=500, metadata={"retention-ttl-days": ttl})
    after = before._replace(versions=[*before.versions, extra])
    assert after.kept() - {extra.id} == before.kept()


@given(cases(known_latest=True))
def test_a_future_version_decides_over_no_other(case: Case) -> None:
    """It is outside every ranking and supersedes nothing: the others keep verdict and reasons to the word."""
    extra = version(case.now + timedelta(minutes=1), number=500)
    after = case._replace(versions=[*case.versions, extra]).by_id()
    assert after.pop(extra.id).keep
    assert after == case.by_id()


# --- what is missing, and what was deleted


@given(cases(known_latest=True), st.data())
def test_a_version_missing_from_the_listing_makes_no_other_stale(case: Case, data: st.DataObject) -> None:
    """A listing that loses a version may keep too much, never delete what it should keep."""
    others = [v for v in case.versions if v.id != case.latest_id]
    assume(others)
    lost = data.draw(st.sampled_from(others))
    incomplete = case._replace(versions=[v for v in case.versions if v is not lost])
    assert case.kept() - {lost.id} <= incomplete.kept()


@given(cases())
def test_planning_again_after_the_deletions_finds_nothing_more(case: Case) -> None:
    """One run at one moment is enough."""
    survivors = case.kept()
    again = case._replace(versions=[v for v in case.versions if v.id in survivors])
    assert again.kept() == survivors


@given(cases(idle=True, expire=False))
def test_planning_again_drops_no_further_key_while_its_newest_is_its_latest(case: Case) -> None:
    """With idle keys too, as long as the newest version stays because it is the latest."""
    newest = max(case.versions, key=lambda v: (v.created, v.id)).id
    first = case._replace(latest_id=newest)
    survivors = first.kept()
    again = first._replace(versions=[v for v in first.versions if v.id in survivors])
    assert again.kept() == survivors


@given(cases(idle=True))
def test_planning_ends_after_two_rounds_even_where_a_key_becomes_idle(case: Case) -> None:
    """Deleting can make a key idle (what is left of it is older), and then nothing is left to delete."""
    rounds = [case]
    for _ in range(2):
        survivors = rounds[-1].kept()
        left = [v for v in rounds[-1].versions if v.id in survivors]
        if not left:
            return
        rounds.append(rounds[-1]._replace(versions=left))
    assert rounds[-1].kept() in ({v.id for v in rounds[-1].versions}, set())


@given(cases(), st.integers(1, 9))
def test_interrupted_deletions_end_in_the_same_state(case: Case, done: int) -> None:
    """Oldest first, killed after any number of deletions: the rerun keeps what the undisturbed run keeps."""
    survivors = case.kept()
    stale = sorted((v for v in case.versions if v.id not in survivors), key=lambda v: (v.created, v.id))
    gone = {v.id for v in stale[:done]}
    assert case._replace(versions=[v for v in case.versions if v.id not in gone]).kept() == survivors


def test_a_missing_version_shortens_no_grace_beside_a_latest_that_is_not_the_newest() -> None:
    """A case that the property on missing versions once found."""
    latest, newest, older = history(1, 0, 0.3)
    rules = policy(keep_last=1, grace_days=0.25)
    complete = evaluate([latest, newest, older], rules, now=NOW, latest_id=latest.id)
    incomplete = evaluate([latest, older], rules, now=NOW, latest_id=latest.id)
    assert kept(complete) - {newest.id} <= kept(incomplete)


def test_planning_again_shortens_no_grace_beside_a_latest_that_is_not_the_newest() -> None:
    """The newest goes at the end of its TTL; the rerun of a killed run would delete one version more."""
    latest, older = history(1, 0.3)
    newest = days_old(0.05, metadata={"retention-ttl-days": "0.01"})
    rules = policy(keep_last=1, grace_days=0.25)
    survivors = kept(evaluate([latest, newest, older], rules, now=NOW, latest_id=latest.id))
    again = [v for v in (latest, newest, older) if v.id in survivors]
    assert kept(evaluate(again, rules, now=NOW, latest_id=latest.id)) == survivors


# --- edges of the call itself


def test_no_versions_give_no_verdicts() -> None:
    """An empty collection is no error."""
    assert evaluate([], policy(keep_last=1), now=NOW) == ()


def test_versions_of_two_keys_are_refused() -> None:
    """Ranking them together would delete one key for another's sake."""
    with pytest.raises(ValueError, match="more than one key"):
        evaluate([*history(1, 2), days_old(3, key="other")], policy(keep_last=1), now=NOW)


def test_versions_with_and_without_key_are_refused() -> None:
    """An artifact without a key is in no collection."""
    with pytest.raises(ValueError, match="more than one key"):
        evaluate([*history(1, 2), days_old(3, key=None)], policy(keep_last=1), now=NOW)


def test_versions_may_come_from_a_generator() -> None:
    """The input is read once."""
    verdicts = evaluate((v for v in history(0, 1, 2)), policy(keep_last=2), now=NOW)
    assert [verdict.keep for verdict in verdicts] == [True, True, False]
