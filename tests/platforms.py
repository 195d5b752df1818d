"""What a platform engineer has: a Prefect server, a checkout of this project, work pools and workers. All real."""

import asyncio
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
from database import LOCKED_SECONDS, Database, Row, series
from gate import Gate
from prefect_artifact_retention.flows.local_server import LocalServer, local_server
from templates import copy_template
from watchdog import end_with_us

ROOT = Path(__file__).parents[1]
PREFECT = str(Path(sys.executable).parent / "prefect")
DEPLOYMENTS = ["doctor", "nightly", "on-demand", "restore", "sweep", "with-approval"]
FLOWS = {"doctor": "artifact-doctor", "restore": "artifact-restore", "sweep": "artifact-sweep"}
"""The flow of each deployment that is none of `artifact-cleanup`."""

TIMEOUT_SECONDS = 180
"""Seconds in which whatever is waited for must have happened."""

POLICIES = '[[policies]]\nname = "keep some"\nkeep_last = 6\n'
NOT_NOW = f"0 {(datetime.now(UTC).hour + 12) % 24} * * *"
"""A cron expression half a day away, lest a schedule start a run in the middle of a test."""

TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def checkout(folder: Path, policies: str = POLICIES) -> Path:
    """Copy what git tracks (or would), with a configuration of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "retention.toml").write_text(policies, encoding="utf-8")
    return folder


def shell_block(section: str) -> list[str]:
    """The lines of the first shell block of a section of docs/deploy.md."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    return page.split(f"\n## {section}\n")[1].split("```sh\n")[1].split("```\n")[0].splitlines()


def before_you_start() -> list[str]:
    """What every deployment begins with; the environment is the one that runs the tests, which `make` has made."""
    return [line for line in shell_block("Before you start") if line not in ("make .venv/.installed", ". .venv/bin/activate")]


def wait_for(what: str, look: Callable[[], Any], timeout: float = TIMEOUT_SECONDS) -> Any:  # noqa: ANN401 - what it sees
    """Look until there is something to see."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (seen := look()) is not None:
            return seen
        time.sleep(0.3)
    raise AssertionError(f"not seen within {timeout:g} s: {what}")


@dataclass
class Platform:
    """One server, one checkout, and the `prefect` command with an environment of its own."""

    local: LocalServer
    database: Database
    folder: Path
    gate: Gate
    """The way of the workers, and of the runs that they start, to the server."""

    def prefect(self, *arguments: str, fails: bool = False, **variables: str) -> str:
        """Run the `prefect` command in the checkout, and return what it prints."""
        done = subprocess.run(
            [PREFECT, *arguments],
            cwd=self.folder,
            env=self.environment | variables,
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_SECONDS * 4,
        )
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, output
        return output

    @property
    def environment(self) -> dict[str, str]:
        """Of every command."""
        return self.local.environment | {
            "COLUMNS": "200",
            "PREFECT_UI_URL": self.local.address,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "ARTIFACT_RETENTION_DEPLOY_CRON": NOT_NOW,
        }

    def shell(self, commands: Collection[str], **variables: str) -> subprocess.Popen[bytes]:
        """Start a shell in the checkout with some commands, the first failing one being the last."""
        path = f"{Path(sys.executable).parent}:{self.environment['PATH']}"
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", "\n".join(["set -e", *commands])],
                cwd=self.folder,
                env=self.environment | {"PATH": path} | variables,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        end_with_us(process.pid)
        return process

    def log(self) -> str:
        """What shells and workers have printed."""
        return (self.folder / "worker.log").read_text(encoding="utf-8")

    def deployments(self) -> list[str]:
        """The names of all deployments."""
        return [each["name"] for each in self.ask("POST", "/deployments/filter", {"sort": "NAME_ASC"})]

    def wait_until_deployed(self, shell: subprocess.Popen[bytes]) -> None:
        """Wait until a shell has deployed all that there is to deploy; it may have to build an image before."""

        def deployed() -> bool | None:
            assert shell.poll() is None, self.log()
            return True if self.deployments() == DEPLOYMENTS else None

        wait_for("the deployments", deployed, timeout=TIMEOUT_SECONDS * 4)

    @contextmanager
    def worker(self, pool: str = "artifact-retention") -> Iterator[subprocess.Popen[bytes]]:
        """A worker of a pool, until the context ends."""
        command = [PREFECT, "worker", "start", "--pool", pool]
        environment = self.environment | {"PREFECT_API_URL": f"{self.gate.address}/api"}
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder.parent, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        end_with_us(process.pid)
        try:
            yield process
        finally:
            if process.poll() is None:
                end(process, signal.SIGKILL)

    def ask(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        """Send a request to the API, as the Prefect UI does."""

        def answer() -> httpx.Response | None:
            try:
                response = httpx.request(method, f"{self.local.address}/api{path}", json=body, timeout=LOCKED_SECONDS)
            except httpx.TransportError:
                return None
            # A server on SQLite is now and then too busy for a moment.
            return None if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else response

        response: httpx.Response = wait_for(f"an answer to {path}", answer)
        assert response.is_success, response.text
        return response.json() if response.content else None

    def deployment(self, name: str) -> Any:  # noqa: ANN401 - JSON
        """Read a deployment."""
        flow = FLOWS.get(name, "artifact-cleanup")
        return self.ask("GET", f"/deployments/name/{flow}/{name}")

    def start(self, name: str, **parameters: object) -> str:
        """Press Run on a deployment, and return the flow run's id."""
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        # Whose answer is lost is asked for again, and is to be one run.
        run_id: str = self.ask("POST", path, {"parameters": parameters, "idempotency_key": uuid4().hex})["id"]
        return run_id

    def wait(self, run_id: str) -> Mapping[str, Any]:
        """Wait until a flow run has ended, and read it."""

        def ended() -> Mapping[str, Any] | None:
            run: Mapping[str, Any] = self.ask("GET", f"/flow_runs/{run_id}")
            return run if run["state_type"] in TERMINAL else None

        run: Mapping[str, Any] = wait_for("the end of the flow run", ended)
        return run

    def run(self, name: str, **parameters: object) -> Mapping[str, Any]:
        """Press Run and wait for the end."""
        return self.wait(self.start(name, **parameters))

    @contextmanager
    def held(self, name: str, deletions: int) -> Iterator[str]:
        """Press Run on a deployment whose worker is here, and hold the run after so many deletions until the context ends."""
        self.gate.hold_after(deletions)
        try:
            run_id = self.start(name)
            self.gate.wait_until_held(TIMEOUT_SECONDS)
            yield run_id
        finally:
            self.gate.let_go()

    def wait_until_deleting(self, run_id: str) -> None:
        """Wait until a flow run has begun to delete."""

        def deletes() -> bool | None:
            rows = self.ask("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
            texts = [row["description"] or "" for row in rows if row["key"] == "artifact-retention-progress"]
            return True if any("Step 2/3: deleted" in text for text in texts) else None

        wait_for("the first deletion", deletes)

    def wait_for_silence(self) -> None:
        """Wait until no flow run is at work, or about to be."""
        states = {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}}
        busy: list[Mapping[str, Any]] = []

        def is_silent() -> bool | None:
            busy[:] = self.ask("POST", "/flow_runs/filter", {"flow_runs": states})
            return None if busy else True

        try:
            wait_for("the end of all runs", is_silent)
        except AssertionError as error:
            if any(run["state_type"] != "PENDING" for run in busy):
                shown = [{name: run[name] for name in ("name", "state_name", "start_time")} for run in busy]
                raise AssertionError(f"{error}: {shown}, at {datetime.now(UTC)}") from None
            # A worker that has taken a run and not started it by now will not: nothing is at work.
            for run in busy:
                change = {"state": {"type": "CANCELLED"}, "force": True}
                self.ask("POST", f"/flow_runs/{run['id']}/set_state", change)

    def fill(self, keys: Collection[str], versions: int = 10) -> set[str]:
        """Insert versions of some keys, one a day, and return the ids of those that the policy keeps."""
        asyncio.run(self.database.clear())
        kept: set[str] = set()
        for key in keys:
            rows = asyncio.run(self.database.insert(series(key, range(1, versions + 1))))
            kept |= {str(row.id) for row in rows[:6]}
        return kept

    def insert(self, rows: Collection[Row]) -> None:
        """Insert versions."""
        asyncio.run(self.database.insert(rows))

    def left(self) -> set[str]:
        """The ids of the keyed versions that are there, without those of this package.

        Artifacts without a key are Prefect's own here: the server writes one for each state that has data.
        """
        return {str(version_id) for version_id in asyncio.run(self.database.ids("key IS NOT NULL"))}

    def sql(self, statement: str) -> Any:  # noqa: ANN401 - rows
        """Run a statement in the server's database."""
        return asyncio.run(self.database.run(statement))


@contextmanager
def platform(folder: Path, policies: str = POLICIES, **settings: str) -> Iterator[Platform]:
    """A server with an empty database, and a checkout beside it."""
    (folder / "prefect").mkdir(parents=True)
    copy_template("sqlite", sys.executable, folder / "prefect" / "prefect.db")
    with local_server(folder / "prefect", **settings) as local, Gate(local.address).opened() as gate:
        code = checkout(folder / "code", policies)
        local.wait()
        yield Platform(local, Database(f"sqlite+aiosqlite:///{folder / 'prefect' / 'prefect.db'}"), code, gate)


def end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """End a process with all that it started; a worker's flow runs are in sessions of their own."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    for child in started if how == signal.SIGKILL else []:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)
    for child in started:
        with suppress(psutil.NoSuchProcess):
            child.kill()
