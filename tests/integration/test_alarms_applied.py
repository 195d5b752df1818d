"""The alarms as a server has them after each `apply`, which respects what people have changed there."""

from typing import Any

import pytest
from prefect.blocks.webhook import Webhook
from prefect.events.schemas.automations import EventTrigger
from prefect_artifact_retention.flows.automations import FAILED, LARGE, NAME, REFUSED, Thresholds, apply, remove, set_up_alarm
from prefect_artifact_retention.policies import ConfigurationError
from prefect_artifact_retention.stores.connection import connect
from servers import SQLITE_API, Server, on

USUAL = Thresholds(hours=26, deleted_more_than=0, unfinished_runs=3, waiting_hours=24)
BLOCK = "webhook/pager"


async def ask(method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
    """Send a request to the server."""
    async with connect() as connection:
        answer = await connection.request(method, f"/automations{path}", body)
        return connection.json(answer) if answer.content else None


async def present() -> dict[str, dict[str, Any]]:
    """The automations of the server, by name."""
    return {each["name"]: each for each in await ask("POST", "/filter", {})}


@on(SQLITE_API)
async def test_alarms_that_are_the_same_already_are_not_touched(server: Server) -> None:
    """With each change, Prefect forgets what an alarm has waited for: one set up anew each day would never go off."""
    with server.active():
        await Webhook(url="http://127.0.0.1:1").save("pager", overwrite=True)
        first = await apply(BLOCK, USUAL)
        before = await present()
        again = await apply(BLOCK, USUAL)
        assert [(each.renewed, each.changed) for each in first.alarms] == [(False, True)] * 5
        assert [(each.renewed, each.changed) for each in again.alarms] == [(True, False)] * 5
        assert await present() == before
        other = await apply(BLOCK, USUAL._replace(hours=30))
        assert [each.name for each in other.alarms if each.changed] == [NAME]
        assert not (await set_up_alarm(BLOCK, 30)).changed
        await remove()


@on(SQLITE_API)
async def test_what_people_have_done_to_an_alarm_stays_but_for_when_it_goes_off(server: Server) -> None:
    """One that is paused stays paused, and the command says so; tags stay; a trigger that was edited is set right."""
    with server.active():
        await Webhook(url="http://127.0.0.1:1").save("pager", overwrite=True)
        await apply(BLOCK, USUAL)
        was = await present()
        await ask("PATCH", f"/{was[FAILED]['id']}", {"enabled": False})
        edited = was[REFUSED] | {"tags": ["ours"], "trigger": was[FAILED]["trigger"]}
        await ask("PUT", f"/{was[REFUSED]['id']}", {key: edited[key] for key in edited.keys() - {"id", "created", "updated"}})
        done = {each.name: each for each in (await apply(BLOCK, USUAL)).alarms}
        now = await present()
        assert (done[FAILED].changed, done[FAILED].enabled, now[FAILED]["enabled"]) == (False, False, False)
        assert f"It is paused: `prefect automation resume '{FAILED}'`" in done[FAILED].describe()
        assert (done[REFUSED].changed, now[REFUSED]["tags"]) == (True, ["ours"])
        assert now[REFUSED]["trigger"]["expect"] == was[REFUSED]["trigger"]["expect"]
        # An interruption: some are missing, one is there twice.
        await ask("DELETE", f"/{was[REFUSED]['id']}")
        await ask("POST", "/", {key: was[NAME][key] for key in ("name", "trigger", "actions")})
        await apply(BLOCK, USUAL)
        assert sorted(each["name"] for each in await ask("POST", "/filter", {})) == sorted(was)
        await remove()


@on(SQLITE_API)
async def test_somebody_elses_automation_of_the_same_name_is_left_alone(server: Server) -> None:
    """The error names it, before anything is changed or removed."""
    theirs = {"name": LARGE, "trigger": EventTrigger(expect={"their.event"}).model_dump(mode="json"), "actions": []}
    with server.active():
        await Webhook(url="http://127.0.0.1:1").save("pager", overwrite=True)
        their_id = (await ask("POST", "/", theirs))["id"]
        before = await present()
        for change in (apply(BLOCK, USUAL), apply(BLOCK, USUAL._replace(deleted_more_than=9)), remove()):
            with pytest.raises(ConfigurationError, match=f"{LARGE} .* is not about cleanups"):
                await change
        assert await present() == before
        await ask("DELETE", f"/{their_id}")


@on(SQLITE_API)
async def test_a_brace_in_a_glob_is_no_template(server: Server) -> None:
    """Prefect reads messages as templates, and would refuse one with half an expression."""
    with server.active():
        await Webhook(url="http://127.0.0.1:1").save("pager", overwrite=True)
        done = await apply(BLOCK, USUAL._replace(deleted_more_than=9), ["[a{{]*", "[{%b]"])
        assert len(done.alarms) == 5
        await remove(["[a{{]*", "[{%b]"])


@on(SQLITE_API)
@pytest.mark.parametrize("block", ["webhook/..", "../webhook", "webhook/a/b", "webhook/"])
async def test_a_name_that_is_no_block_is_refused(server: Server, block: str) -> None:
    """Also one that makes another path of the request."""
    with server.active(), pytest.raises(ConfigurationError, match=r"there is no block|names no block"):
        await apply(block, USUAL)


@on(SQLITE_API)
async def test_more_unfinished_runs_than_the_history_has_are_refused(server: Server) -> None:
    """Such an alarm would never go off."""
    with server.active(), pytest.raises(ConfigurationError, match="--unfinished-runs 201: must be between 0"):
        await apply(BLOCK, USUAL._replace(unfinished_runs=201))
