"""The page of a simulation: the table by policy, versions and bytes over time, and a calendar of one key of each policy."""

from __future__ import annotations

from collections.abc import Iterator

from prefect_artifact_retention.policies import evaluate
from prefect_artifact_retention.policies.formatting import count
from prefect_artifact_retention.tasks.pages import (
    Line,
    Mark,
    calendar,
    heading,
    html_table,
    line_chart,
    page,
    paragraph,
    section,
)
from prefect_artifact_retention.tasks.rendering import label, size
from prefect_artifact_retention.tasks.simulation import Sample, SimulatedPolicy, Simulation, Tally, table


def simulation_page(simulation: Simulation, tally: Tally) -> str:
    """Render a simulation as a page for people."""
    return page("What the policies would leave", _parts(simulation, tally))


def _parts(simulation: Simulation, tally: Tally) -> Iterator[str]:
    where = f" on {simulation.server}" if simulation.server else ""
    yield heading(
        "What the policies would leave",
        f"{count(simulation.days, 'day')} simulated from {simulation.now:%Y-%m-%d %H:%M} UTC on, with a cleanup each day. "
        f"Rhythm: {simulation.rhythm}{where}. Policies: {simulation.policy_source}.",
        *(["The charts begin with what is there now, before the first cleanup."] if simulation.server else []),
    )
    if not simulation.policies:
        yield section("Nothing to show", paragraph("No key has a policy."), *map(paragraph, simulation.notes))
        return
    rows = [*table(simulation)]
    yield section("By policy", html_table(rows, numbers=len(rows[0]) - 1), *map(paragraph, simulation.notes))
    yield section("Versions", _chart(simulation, "versions"))
    yield section("Size of their data", _chart(simulation, "bytes"))
    for policy in simulation.policies:
        yield _policy(policy, tally)


def _chart(simulation: Simulation, what: str) -> str:
    is_size = what == "bytes"
    lines = [
        Line(policy.name, policy.bytes_over_time if is_size else policy.versions_over_time) for policy in simulation.policies
    ]
    title = "Bytes over time, by policy" if is_size else "Versions over time, by policy"
    return line_chart(title, lines, simulation.now, simulation.milestones, size if is_size else "{:,}".format)


def _policy(policy: SimulatedPolicy, tally: Tally) -> str:
    sample, end = tally.samples[policy.name], tally.simulator.cleanups[-1]
    zone = sample.course.policy.timezone
    marks = [*_marks(sample, tally)]
    stay = f"{count(len(marks), 'version')} of {label(sample.key)} on {end:%Y-%m-%d}; days in {zone}"
    texts = [policy.sentence, stay, *_others(policy, sample)]
    return section(f"{policy.name}: what stays", *map(paragraph, texts), calendar(marks, end, zone))


def _others(policy: SimulatedPolicy, sample: Sample) -> Iterator[str]:
    """Say which key of several the calendar is of, and how another is drawn."""
    if policy.keys > 1:
        yield (
            f"Only {label(sample.key)} is drawn, which keeps the most of {count(policy.keys, 'key')}. "
            "Another is drawn if it is named: simulate --key KEY --html FILE"
        )


def _marks(sample: Sample, tally: Tally) -> Iterator[Mark]:
    """Return the versions of a key that are there in the end, with the reasons of the last cleanup."""
    simulator, course = tally.simulator, sample.course
    left = [each for each, fate in zip(course.versions, sample.fates, strict=True) if fate == len(simulator.cleanups)]
    latest_id = course.arrivals[-1].id if course.arrivals else course.latest_id
    for version, _keep, reasons, rules in evaluate(left, course.policy, now=simulator.cleanups[-1], latest_id=latest_id):
        yield Mark(version.created, rules, f"{version.created:%H:%M} UTC, {size(version.size)}: {'; '.join(reasons)}")
