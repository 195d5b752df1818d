"""No fault on the line to the server loses a version that is wanted, breaks a collection, or is passed over in silence."""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from chance import SEED
from fake import FakeServer
from fake_database import FakeDatabase
from injection import FAULTS, MAINTENANCE, MAX_PAUSE_SECONDS, Fault, line, takes_turn
from prefect_artifact_retention.stores.connection import MAX_LOST_REQUESTS
from prefect_artifact_retention.tasks.report import CleanupReport
from scenario import (
    Scenario,
    dangling_scenario,
    fill,
    flow_problems,
    problems,
    repair_problems,
    run_flow,
    run_steps,
    scenario,
    shrink,
    strays,
    unfinished_run,
)
from servers import SQLITE_API, Server, long, on

MAX_PAUSES = MAX_LOST_REQUESTS * 6 * MAX_PAUSE_SECONDS
"""What a run may spend waiting between attempts, whatever the server says."""

MAX_SECONDS = 150
"""What a run may take without these pauses. Now and then, a Prefect server on SQLite holds its own writes up for a minute."""

PARTS = 16
"""In which the whole matrix is tried, each a sample of it by chance: the first in every run of the tests, three in CI."""

IN_WHOLE_RUNS = tuple(fault for fault in FAULTS if fault is not MAINTENANCE)
"""Prefect itself waits for the end of a maintenance, to tell the state of the flow run, once ours has ended."""

Case = tuple[Fault, int]


@dataclass
class Figures:
    """What has been tried, and what went wrong."""

    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    wrong: list[str] = field(default_factory=list)

    def line(self, what: str) -> str:
        """The figures, to be put into the documentation."""
        kinds = ", ".join(f"{name} {number}" for name, number in sorted(self.faults.items()))
        outcomes = ", ".join(f"{number} {name}" for name, number in sorted(self.outcomes.items()))
        total = self.faults.total()
        return f"{what}: {total} faults tried (seed {SEED}), rows lost = {self.lost}; {outcomes}; of each kind: {kinds}"


@dataclass(frozen=True)
class Trial:
    """How a run is made, how what it leaves is judged, and on what server."""

    server: Server | FakeServer
    monkeypatch: pytest.MonkeyPatch
    run: Callable[[Any], Awaitable[CleanupReport | None]]
    judge: Callable[[Any, Scenario, CleanupReport | None], Awaitable[list[str]]]
    converged: set[Hashable] = field(default_factory=set)

    async def all_cases(self, made: Scenario, faults: Sequence[Fault] = FAULTS) -> list[Case]:
        """Each fault at every request of an undisturbed run, which is all right, in an order of chance.

        Those that are alike take turns.
        """
        await fill(self.server.database, made)
        random.seed(SEED)
        with line(self.monkeypatch) as undisturbed:
            report = await self.run(self.server)
        assert report is not None
        assert await self.judge(self.server.database, made, report) == []
        assert (report.outcome, report.deleted) == ("completed", len(made.stale))
        requests = list(enumerate(undisturbed.requests))
        chance = random.Random(SEED)
        cases = [
            (fault, at) for fault in faults for at, request in requests if fault.of(request) and takes_turn(fault, request, at)
        ]
        return sorted(cases, key=lambda _case: chance.random())

    async def meet(self, made: Scenario, cases: Sequence[Case], *, most: int = sys.maxsize) -> Figures:
        """Let each fault happen to a run of its own, until `most` have; check the database, and run again without."""
        figures = Figures()
        database = self.server.database
        for fault, at in cases:
            if figures.faults.total() == most:
                break
            await fill(database, made)
            random.seed(SEED)
            with line(self.monkeypatch, fault, at) as broken:
                try:
                    async with asyncio.timeout(MAX_SECONDS):
                        report = await self.run(self.server)
                except TimeoutError:
                    last = broken.requests[-1]
                    figures.wrong.append(f"{fault.name}, request {at}: the run hangs after {last.method} {last.url.path}")
                    continue
            if broken.victim is None:
                # A whole run updates its progress by the clock, so that its last requests have no certain number.
                figures.outcomes["never met"] += 1
                continue
            found = await self.judge(database, made, report)
            must = fault.outcome(broken.victim, made.stale) if report and "attempts" in broken.victim.extensions else ""
            if report and must not in ("", report.outcome):
                found.append(f"the run says {report.outcome}, and must have {must}: {report.errors}")
            if max(broken.pauses, default=0) > MAX_PAUSE_SECONDS or sum(broken.pauses) > MAX_PAUSES:
                found.append(f"pauses of {broken.pauses} s")
            found += await self.run_again(made)
            figures.faults[fault.name] += 1
            figures.outcomes[report.outcome if report else "failed at once"] += 1
            figures.lost += sum(problem.startswith("lost") for problem in found)
            what = f"{fault.name}, request {at}: {broken.victim.method} {broken.victim.url.path}"
            figures.wrong += [f"{what}: {problem}" for problem in found]
        return figures

    async def run_again(self, made: Scenario) -> list[str]:
        """What is wrong after another run, without a fault; on the fake, it is made once from the same leftovers."""
        database = self.server.database
        await database.age_progress()
        left = database.fingerprint() if isinstance(database, FakeDatabase) else None
        if left in self.converged:
            return []
        again = await self.run(self.server)
        amiss = (await database.ids() & {row.id for row in made.rows}) ^ made.kept
        amiss |= await strays(database, made)
        if again is None or again.outcome != "completed" or amiss or await database.dangling():
            return [f"a rerun leaves {len(amiss)} versions amiss: {again}"]
        if left:
            self.converged.add(left)
        return []


def one_of_each(cases: Sequence[Case]) -> list[Case]:
    """The first case of each kind of fault."""
    return list({fault.name: (fault, at) for fault, at in reversed(cases)}.values())


async def pruning(server: Server | FakeServer, monkeypatch: pytest.MonkeyPatch) -> tuple[Trial, Scenario, list[Case]]:
    """Every fault at every request of the steps of a run."""
    shrink(monkeypatch)
    trial, made = Trial(server, monkeypatch, run_steps, problems), scenario(await unfinished_run(server))
    return trial, made, await trial.all_cases(made)


async def broken_collections(
    server: Server | FakeServer, monkeypatch: pytest.MonkeyPatch
) -> tuple[Trial, Scenario, list[Case]]:
    """The same of a run that finds collections without their latest version."""
    shrink(monkeypatch)
    trial, made = Trial(server, monkeypatch, run_steps, repair_problems), dangling_scenario()
    return trial, made, await trial.all_cases(made)


async def whole_runs(server: Server, monkeypatch: pytest.MonkeyPatch, deep: int) -> tuple[Trial, Scenario, list[Case]]:
    """Every fault at every request of the flow, Prefect's own requests included."""
    trial, made = Trial(server, monkeypatch, run_flow, flow_problems), scenario(await unfinished_run(server), deep=deep)
    return trial, made, await trial.all_cases(made, IN_WHOLE_RUNS)


@pytest.mark.parametrize(
    "part",
    [
        0,
        *(pytest.param(part, marks=pytest.mark.thorough) for part in (1, 2)),
        *map(long, range(3, PARTS)),
    ],
)
@pytest.mark.parametrize("prepare", [pruning, broken_collections])
async def test_every_fault_of_every_request_loses_nothing(
    fake: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    tell: Callable[[str], None],
    prepare: Callable[..., Awaitable[tuple[Trial, Scenario, list[Case]]]],
    part: int,
) -> None:
    """The report is honest, no wanted version goes, no collection breaks, a rerun converges; repairs included."""
    trial, made, every = await prepare(fake, monkeypatch)
    cases = every[part::PARTS]
    began = time.process_time()
    figures = await trial.meet(made, cases)
    what = f"every fault of every request, {prepare.__name__}, part {part + 1} of {PARTS} ({len(every)} in all)"
    tell(figures.line(f"{what}, {time.process_time() - began:.0f} s"))
    assert figures.wrong == []
    assert figures.faults.total() >= 0.95 * len(cases)


@on(SQLITE_API)
@pytest.mark.thorough
@pytest.mark.parametrize(("prepare", "most"), [(pruning, 4), (broken_collections, 2)])
async def test_a_fault_on_the_way_to_a_real_server_loses_nothing(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[..., Awaitable[tuple[Trial, Scenario, list[Case]]]],
    most: int,
) -> None:
    """As on the fake, at requests of chance."""
    trial, made, cases = await prepare(server, monkeypatch)
    figures = await trial.meet(made, cases, most=most)
    assert figures.wrong == []
    assert figures.faults.total() == most


@on(SQLITE_API)
@pytest.mark.thorough
async def test_a_fault_in_a_whole_run_loses_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own requests, the report, the history and the progress included; what the server shows is honest, too."""
    trial, made, cases = await whole_runs(server, monkeypatch, 7)
    figures = await trial.meet(made, cases, most=3)
    assert figures.wrong == []
    assert figures.faults.total() == 3


@on(SQLITE_API)
@pytest.mark.long
async def test_many_faults_in_whole_runs_lose_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, tell: Callable[[str], None]
) -> None:
    """Each kind of fault three times, at requests of chance, in whole runs with a key of two batches."""
    trial, made, cases = await whole_runs(server, monkeypatch, 60)
    some = [case for part in range(3) for case in one_of_each(cases[part::3])]
    began = time.monotonic()
    figures = await trial.meet(made, some)
    tell(figures.line(f"faults in whole runs, {time.monotonic() - began:.0f} s"))
    assert figures.wrong == []
    assert figures.faults.total() >= 2 * len(IN_WHOLE_RUNS)
