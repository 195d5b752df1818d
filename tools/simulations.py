"""The tables of docs/simulate.md: what the policies of each example leave, as its command says."""

from __future__ import annotations

import re
import tomllib

from prefect_artifact_retention.flows.cli import app
from prefect_artifact_retention.flows.simulation import simulate_policies
from prefect_artifact_retention.policies import load_policies
from prefect_artifact_retention.tasks.simulation import table

from tools.cookbook import NOW, TABLE, configuration, recipes
from tools.reference import markdown

COMMAND = re.compile(r"^artifact-retention (simulate --rhythm .*)$", re.MULTILINE)


def renew_simulations(page: str) -> str:
    """Simulate the example of every part of the page anew."""
    return "\n## ".join(renew_part(part) for part in recipes(page))


def renew_part(part: str) -> str:
    """Simulate the example of one part anew, if it has policies and a command."""
    command = COMMAND.search(part)
    if not command or "```toml" not in part:
        return part
    _command, bound, _ignored = app.parse_args(command[1], exit_on_error=False, print_error=False)
    given = bound.arguments
    policies = load_policies(tomllib.loads(configuration(part))["policies"], source="docs/simulate.md")
    simulation, _tally = simulate_policies(
        policies, "docs/simulate.md", given["rhythm"], given.get("size", ""), given.get("days", 365), NOW
    )
    rows = markdown(table(simulation))
    return TABLE.sub(lambda _: rows, part, count=1)
