"""The answer to a run that waits for an approval, and the plan that was shown: whatever cannot be read is no yes and no no."""

import asyncio
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest
from database import series
from fake import FakeServer
from prefect.context import FlowRunContext
from prefect_artifact_retention.flows import approval
from prefect_artifact_retention.flows.cleanup import open_run
from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.policies import ConfigurationError, RetentionPolicy, StoreError
from prefect_artifact_retention.stores import api
from prefect_artifact_retention.stores.run_inputs import RunInputs
from prefect_artifact_retention.tasks.discover import discover
from prefect_artifact_retention.tasks.plan import make_plan
from prefect_artifact_retention.tasks.waiting import WaitingPlan, load_plan

WAITING = WaitingPlan(number=1, name="abc", parts=1, sha256="", versions=1, text="text")
REQUEST = httpx.Request("GET", "http://server/api")


def answer_upon(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, waiting: WaitingPlan = WAITING
) -> tuple[approval.Approval, str]:
    """Read the answer where Prefect fails so; return it, and the key that Prefect keeps it by."""
    keys: list[str] = []

    async def fail(*, key: str, **_rest: object) -> None:
        keys.append(key)
        raise failure

    monkeypatch.setattr(approval, "asuspend_flow_run", fail)
    answer = asyncio.run(approval.ask(waiting, RetentionSettings()))
    return answer, keys[0]


def status(code: int) -> httpx.HTTPStatusError:
    """What Prefect raises upon an answer of the server."""
    return httpx.HTTPStatusError("no", request=REQUEST, response=httpx.Response(code, request=REQUEST))


def test_a_run_that_is_resumed_without_an_answer_is_not_approved(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is asked for another plan is another question."""
    answer, key = answer_upon(monkeypatch, status(404))
    assert not answer.approve
    assert answer_upon(monkeypatch, status(404), WAITING.model_copy(update={"name": "def"}))[1] != key


@pytest.mark.parametrize("failure", [status(500), httpx.ConnectError("refused"), RuntimeError("cannot be suspended")])
def test_an_answer_that_cannot_be_read_fails_the_run(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    """So that it can be tried again, where a no would be the end."""
    with pytest.raises(StoreError, match=r"500 Internal|refused|cannot be suspended"):
        answer_upon(monkeypatch, failure)


def test_a_run_that_another_flow_has_started_cannot_ask() -> None:
    """Prefect would not suspend it, which it says after planning."""

    async def work(_part: approval.Part) -> None:
        pytest.fail("planned")

    run = SimpleNamespace(parent_task_run_id=uuid4())
    policies = [RetentionPolicy(name="all", keep_last=1)]
    with (
        FlowRunContext.model_construct(flow_run=run),
        pytest.raises(ConfigurationError, match="that another flow has started"),
    ):
        asyncio.run(approval.clean_up_with_approval(RetentionSettings(), policies, work))  # type: ignore[arg-type]


@pytest.mark.parametrize("plans_all", [False, True])
async def test_a_time_budget_is_for_deleting_only_where_a_person_approves(
    monkeypatch: pytest.MonkeyPatch,
    plans_all: bool,  # noqa: FBT001
) -> None:
    """What is planned once there is an answer would be more than was shown, and be asked about again."""
    monkeypatch.setattr(api, "LISTED_ROWS", 1)
    settings = RetentionSettings(time_budget_minutes=0.0001)
    with FakeServer().listening() as server:
        await server.database.insert([*series("a", [1, 2]), *series("b", [1, 2]), *series("c", [1, 2])])
        with server.active():
            async with open_run(settings, "preview", [RetentionPolicy(name="all", keep_last=1)], ()) as run:
                run.plans_all = plans_all
                await asyncio.sleep(0.01)
                await discover(run)
                await make_plan(run)
                assert ([each.key for each in run.plans] == ["a", "b", "c"]) == plans_all
                assert (run.unbudgeted_seconds >= 0.01) == plans_all


@pytest.mark.parametrize("part", ["abc", "eJw=", None])
def test_a_plan_of_which_a_part_is_damaged_is_not_carried_out(monkeypatch: pytest.MonkeyPatch, part: str | None) -> None:
    """Also if it is no base64."""

    async def read(_inputs: RunInputs, _key: str) -> str | None:
        return part

    monkeypatch.setattr(RunInputs, "read", read)
    with pytest.raises(StoreError, match="is not whole"):
        asyncio.run(load_plan(None, uuid4(), WAITING))  # type: ignore[arg-type]
