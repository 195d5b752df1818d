"""Simulates policies over time: the keys of a server go on as they did, or a key is written at a given rhythm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.flows.settings import RetentionSettings, resolve_policies
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.loading import OWN_POLICY
from prefect_artifact_retention.policies.simulation import Course, Simulator
from prefect_artifact_retention.tasks.rendering import NO_BREAK, size
from prefect_artifact_retention.tasks.simulation import (
    SimulatedPolicy,
    Simulation,
    Tally,
    given_rhythm,
    read_size,
    table,
)
from rich.console import RenderableType
from rich.text import Text

MAX_DAYS = 3_650
"""The longest simulation; with more, one of an hourly key takes minutes."""

DEFAULT_SIZE = "20kB"

BARS = "▁▂▃▄▅▆▇█"
CHART_CHARS = 60
"""Characters of a chart; with more, it does not fit beside the names on a narrow terminal."""


def check_flags(rhythm: str | None, size_text: str, days: int, keys: Sequence[str]) -> None:
    """Refuse flags that cannot be meant.

    Raises:
        ConfigurationError: A number is out of bounds, or two flags do not go together.
    """
    if not 1 <= days <= MAX_DAYS:
        raise ConfigurationError(f"command line: --days {days} is not between 1 and {MAX_DAYS:,}")
    if keys and rhythm is not None:
        raise ConfigurationError("command line: --key chooses keys of the server, of which --rhythm needs none")
    if size_text and rhythm is None:
        raise ConfigurationError("command line: --size goes with --rhythm; the sizes on a server are observed")


def simulate_rhythm(settings: RetentionSettings, rhythm: str, size_text: str, days: int) -> tuple[Simulation, Tally]:
    """Simulate one key for each policy, which is written at a given rhythm from now on. Needs no server.

    Raises:
        ConfigurationError: The policies, the rhythm or the size are invalid.
    """
    policies, source = resolve_policies((), settings, "preview")
    return simulate_policies(policies, source, rhythm, size_text, days, datetime.now(UTC).replace(microsecond=0))


def simulate_policies(  # noqa: PLR0913, PLR0917 - what a simulation depends on
    policies: Sequence[RetentionPolicy], source: str, rhythm: str, size_text: str, days: int, now: datetime
) -> tuple[Simulation, Tally]:
    """Simulate one key for each policy, written at a given rhythm from a moment on.

    Raises:
        ConfigurationError: The rhythm or the size are invalid.
    """
    keyed = [policy for policy in policies if policy is not OWN_POLICY and not policy.unkeyed]
    amount = read_size(size_text or DEFAULT_SIZE)
    arrivals = given_rhythm(rhythm, amount, now, days)
    tally = Tally(Simulator(now, days), keyed)
    for policy in keyed:
        tally.add("one key", Course(policy, (), arrivals))
    return _result("", now, days, f"{rhythm}, {size(amount)} each, one key for each policy", source, tally, ()), tally


async def simulate_server(settings: RetentionSettings, keys: Sequence[str], days: int) -> tuple[Simulation, Tally]:
    """Simulate the keys of the server, each of which goes on as it did. Writes nothing to it.

    Raises:
        ConfigurationError: The policies are invalid, or no key can match `keys`.
        StoreError: The server cannot be reached, or refuses a request.
    """
    # It imports Prefect, which takes seconds.
    from prefect_artifact_retention.flows.cleanup import open_run  # noqa: PLC0415
    from prefect_artifact_retention.tasks.observation import observe  # noqa: PLC0415

    async with open_run(settings, "preview", (), keys) as run:
        policies = [policy for policy in run.policies if policy is not OWN_POLICY and not policy.unkeyed]
        now = run.report.now
        tally = Tally(Simulator(now, days), policies)
        notes = await observe(run, tally)
        described = "each key as it has been written so far"
        return _result(run.report.server, now, days, described, run.report.policy_source, tally, notes), tally


def _result(  # noqa: PLR0913, PLR0917 - the fields of a simulation
    server: str, now: datetime, days: int, rhythm: str, source: str, tally: Tally, notes: Sequence[str]
) -> Simulation:
    return Simulation(
        server=server,
        now=now,
        days=days,
        rhythm=rhythm,
        policy_source=source,
        policies=tally.policies_with_keys(),
        notes=list(notes),
    )


def show(simulation: Simulation) -> None:
    """Print a simulation: a table by policy, and a chart of each."""
    header, *rows = table(simulation)
    where = f" on {simulation.server}" if simulation.server else ""
    parts: list[RenderableType] = [
        Text(f"{count(simulation.days, 'day')} simulated, a cleanup each, as of {simulation.now:%Y-%m-%d %H:%M} UTC", "bold"),
        Text(printable(f"Rhythm: {simulation.rhythm}{where}")),
        Text(printable(f"Policies: {simulation.policy_source}")),
        *(Text(printable(note), style="yellow") for note in simulation.notes),
        terminal.WholeTable(
            [Text(name) for name in header],
            [[Text(row[0]), *(Text(cell.replace(" ", NO_BREAK), justify="right") for cell in row[1:])] for row in rows],
        ),
        *_charts(simulation.policies),
    ]
    terminal.show(*parts)


def _charts(policies: Sequence[SimulatedPolicy]) -> Iterator[Text]:
    widest = max((len(policy.name) for policy in policies), default=0)
    for policy in policies:
        amounts = policy.versions_over_time
        most = count(max(amounts), "version")
        yield Text.assemble(f"{policy.name:<{widest}} ", (spark(amounts), "blue"), f" {most} at most")


def spark(amounts: Sequence[int]) -> str:
    """Draw amounts as a line of bars, each the most of some days."""
    width = min(CHART_CHARS, len(amounts))
    edges = [len(amounts) * column // width for column in range(width + 1)]
    columns = [max(amounts[begin:end]) for begin, end in pairwise(edges)]
    highest = max(1, *columns)
    return "".join(BARS[min(len(BARS) - 1, len(BARS) * amount // highest)] if amount else " " for amount in columns)


def write_page(file: Path, page: str) -> None:
    """Write a page.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"command line: --html {file} cannot be written: {error.strerror}") from None
