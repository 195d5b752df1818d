"""The demo: a Prefect server of its own, a year of artifacts, a preview, a deletion, and the report.

It runs this package's own commands, in one folder and in processes that see nothing of the user's own Prefect.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import runpy
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from prefect_artifact_retention.flows.local_server import local_server
from prefect_artifact_retention.policies import RetentionError

POLICIES = """\
# The demo's policies. The first that matches a key decides.
[[policies]]
name = "audit"
match_keys = ["audit-*"]
keep_all = true

[[policies]]
name = "daily reports"
match_keys = ["report-2*"]           # one key per date
keep_last = 3
drop_idle_keys_after_days = 180

[[policies]]
name = "grandfather-father-son"
match_keys = ["report-*", "quality-*"]
keep_daily = 7
keep_weekly = 4
keep_monthly = 12
timezone = "Europe/Zurich"

[[policies]]
name = "everything else"
keep_last = 5
keep_within_days = 30

[[policies]]
name = "without a key"
unkeyed = true
keep_within_days = 90
"""

EXAMPLES = ("daily_report", "append_only_log", "long_job")

YEAR = timedelta(days=365)


@dataclass(frozen=True)
class Series:
    """One key of the demo: its type, and the number and ages of its versions."""

    key: str | None
    type: str
    versions: int
    span: timedelta = YEAR
    newest: timedelta = timedelta(hours=3)

    def ages(self) -> Iterator[timedelta]:
        """Iterate over the ages of the versions, the oldest first."""
        for index in range(self.versions):
            share = 1 - index / max(1, self.versions - 1)
            yield self.newest + (self.span - self.newest) * share


SERIES = (
    *(Series(f"report-{name}", "markdown", 60) for name in ("sales", "churn", "finance")),
    *(Series(f"quality-{name}", "table", 40) for name in ("orders", "customers", "payments", "events")),
    *(Series(f"model-{name}-metrics", "table", 30) for name in ("churn", "fraud", "demand")),
    Series("dashboard-link", "link", 25),
    Series("architecture-diagram", "image", 12),
    Series("nightly-load-progress", "progress", 35),
    Series("audit-access-log", "table", 24),
    Series("release-notes", "markdown", 6),
    Series("hourly-heartbeat", "markdown", 48, span=timedelta(days=2), newest=timedelta(minutes=20)),
    Series("report-2026-01-31", "markdown", 4, newest=timedelta(days=290), span=timedelta(days=300)),
    Series("training-run", "progress", 8),
    Series("legal-export", "table", 8),
    Series(None, "markdown", 40),
)


def run(folder: Path, *, as_json: bool = False) -> int:
    """Run the whole demo. Each run starts with a server without artifacts.

    Returns:
        The exit code of the deletion.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = str(folder / "retention.toml")
    Path(config).write_text(POLICIES, encoding="utf-8")
    _say("Starting a Prefect server of the demo's own (the first time, that takes half a minute) ...", as_json=as_json)
    command = [sys.executable, "-m", "prefect_artifact_retention.flows.demo", config, *(["--json"] if as_json else [])]
    with (
        local_server(folder / "prefect") as server,
        subprocess.Popen(command, env=server.environment, cwd=server.folder, stdin=subprocess.PIPE) as steps,  # noqa: S603
    ):
        server.wait()
        steps.communicate(b"go\n")
    if steps.returncode == 0:
        _say(f"\nTo see it in Prefect's own UI: make ui, or artifact-retention demo --ui{_option(folder)}", as_json=as_json)
    return steps.returncode


def _steps(config: str, *, as_json: bool) -> int:
    """Run the demo's commands in this process, which sees the demo's server and nothing of the user's own Prefect.

    Prefect is imported while the server starts; a line on stdin says that the server answers, and none that it never will.
    """
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    from prefect_artifact_retention.flows import cleanup, cli, explanation  # noqa: F401, PLC0415

    if not sys.stdin.readline():
        return 1
    _say("Creating artifacts ...", as_json=as_json)
    _say(asyncio.run(_fill()), as_json=as_json)
    for example in EXAMPLES:
        _say(f"$ python examples/{example}.py", as_json=as_json)
        runpy.run_module(f"prefect_artifact_retention.examples.{example}", run_name="__main__")
    if as_json:
        return cli.main(["delete", "--json", "--config", config])
    _say("\n$ artifact-retention preview      (writes nothing)\n")
    cli.main(["preview", "--config", config])
    _say("\n$ artifact-retention explain legal-export\n")
    cli.main(["explain", "legal-export", "--config", config])
    _say("\n$ artifact-retention delete       (its report is in the UI, too: the artifact artifact-retention-report)\n")
    return cli.main(["delete", "--config", config])


def _say(text: str, *, as_json: bool = False) -> None:
    output = sys.stderr if as_json else sys.stdout
    output.write(text + "\n")
    output.flush()


def _option(folder: Path) -> str:
    """Return what must be written to name a folder; empty for the usual one."""
    return "" if folder.resolve() == Path(".demo").resolve() else f" --folder {shlex.quote(str(folder))}"


def serve(folder: Path) -> int:
    """Run the demo's server until interrupted, and print the address of its user interface.

    Raises:
        RetentionError: The demo has not been run in this folder.
    """
    prefect_home = folder.resolve() / "prefect"
    if not (prefect_home / "prefect.db").is_file():
        raise RetentionError(
            f"there is no demo in {folder} yet: run `make demo` or `artifact-retention demo{_option(folder)}` first"
        )
    with local_server(prefect_home) as server:
        server.wait()
        _say(f"The report: {server.address}/artifacts/key/artifact-retention-report")
        _say(f"The runs:   {server.address}/runs\nPress Ctrl-C to stop.")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0


async def _fill() -> str:
    """Create the artifacts through Prefect's client, then backdate them over a year."""
    from prefect import flow  # noqa: PLC0415
    from prefect.states import Running  # noqa: PLC0415
    from prefect_artifact_retention.policies.control import HOLD, TTL_DAYS  # noqa: PLC0415
    from prefect_artifact_retention.stores.connection import connect  # noqa: PLC0415

    database = sqlite3.connect(Path(os.environ["PREFECT_HOME"]) / "prefect.db", timeout=30)
    with database:
        database.execute("DELETE FROM artifact")
        database.execute("DELETE FROM artifact_collection")

    @flow(name="train-model")
    def train_model() -> None:
        """Stands for a run that is still going on."""

    async with connect() as connection:
        client = connection.client
        running = await client.create_flow_run(train_model, name="still-training", state=Running())
        created: list[tuple[UUID, timedelta]] = []
        several = asyncio.Semaphore(4)

        async def fill(series: Series) -> None:
            async with several:
                for number, age in enumerate(series.ages()):
                    artifact = {"key": series.key, "type": series.type, "data": _content(series, number), "metadata_": {}}
                    if series.key == "legal-export" and number == 1:
                        artifact["metadata_"] = {HOLD: "true"}
                    if series.key == "legal-export" and number == 2:  # noqa: PLR2004
                        artifact["metadata_"] = {TTL_DAYS: "30"}
                    if series.key == "training-run" and number == 0:
                        artifact["flow_run_id"] = str(running.id)
                    response = await client.request("POST", "/artifacts/", json=artifact)
                    created.append((UUID(response.json()["id"]), age))

        await asyncio.gather(*(fill(series) for series in SERIES))
    now = datetime.now(UTC)
    rows = [(_sqlite_time(now - age), _sqlite_time(now - age), str(version)) for version, age in created]
    with database:
        database.executemany("UPDATE artifact SET created = ?, updated = ? WHERE id = ?", rows)
    database.close()
    keys = sum(series.key is not None for series in SERIES)
    return f"Created {len(rows):,} versions of {keys} keys (and some without a key), backdated over a year."


def _sqlite_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def _content(series: Series, number: int) -> object:
    """Return content for an artifact of the type of a series."""
    rng = random.Random(f"{series.key} {number}")  # noqa: S311 - the same content in every demo
    match series.type:
        case "table":
            rows = [{"row": row, "value": round(rng.gauss(100, 15), 2), "ok": rng.random() < 0.98} for row in range(30)]  # noqa: PLR2004
            return json.dumps(rows)
        case "link":
            return f"[dashboard of day {number}](https://example.com/dashboards/{number})"
        case "image":
            return f"https://example.com/diagrams/{number}.png"
        case "progress":
            return float(min(100, number * 7))
        case _:
            lines = [f"- metric {line}: {rng.gauss(100, 15):.2f}" for line in range(40)]
            return f"# {series.key or 'scratch'} number {number}\n\n" + "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(_steps(sys.argv[1], as_json="--json" in sys.argv))
    except KeyboardInterrupt:
        # Ctrl-C reaches the command that started this process, too, and that one reports it.
        sys.exit(130)
