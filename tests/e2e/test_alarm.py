"""The alarms: set up by one command, they call a real webhook on what real cleanups emit, or fail to emit, and not before."""

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from database import series
from platforms import TIMEOUT_SECONDS, Platform, wait_for
from prefect.blocks.webhook import Webhook
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_artifact_retention.flows.automations import FAILED, LARGE, NAME, NAMES, REFUSED, STALLED, WAITING
from prefect_artifact_retention.flows.cleanup import EVENT, SCOPE_LABEL
from prefect_artifact_retention.flows.cli import main
from prefect_artifact_retention.tasks.report import scope_digest

pytestmark = pytest.mark.thorough

SECONDS = 15
"""In place of 26 hours. The server of these tests looks for missing events every second."""


@contextmanager
def pager() -> Iterator[tuple[str, "queue.Queue[str]"]]:
    """A web server that takes calls: its address, and what it was told."""
    calls: queue.Queue[str] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", calls
        finally:
            server.shutdown()
            thread.join()


def alarm(deployed: Platform, *arguments: str) -> tuple[int, str]:
    """Call the command `alarm`; its exit code, and all that it prints."""
    return call(deployed, "alarm", *arguments)


def call(deployed: Platform, *arguments: str) -> tuple[int, str]:
    """Call the command line."""
    output = StringIO()
    with redirect_stdout(output), redirect_stderr(output), talking_to(deployed):
        return main([*arguments]), output.getvalue()


def answer(deployed: Platform, *arguments: str) -> Any:  # noqa: ANN401 - JSON
    """Call a command of `automations`, and return its JSON."""
    code, output = call(deployed, "automations", *arguments, "--json")
    assert code == 0, output
    return json.loads(output)


def talking_to(deployed: Platform) -> AbstractContextManager[object]:
    """Let Prefect talk to this server."""
    return temporary_settings(updates={PREFECT_API_URL: f"{deployed.local.address}/api"})


def succeed(deployed: Platform, scope: str, outcome: str = "completed") -> None:
    """Emit the event of a cleanup that has just ended, or is still at work."""
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": f"{EVENT}.{outcome}",
        "resource": {"prefect.resource.id": EVENT, SCOPE_LABEL: scope_digest([scope])},
    }
    deployed.ask("POST", "/events", [event])


@pytest.fixture
def block(deployed: Platform) -> Iterator[tuple[str, "queue.Queue[str]"]]:
    """A webhook block that calls a pager, and what the pager was told."""
    with pager() as (url, calls), talking_to(deployed):
        name = f"pager-{uuid4().hex[:8]}"
        Webhook(url=url).save(name)
        yield f"webhook/{name}", calls


def automations(deployed: Platform, name: str) -> list[str]:
    """The ids of the automations of that name."""
    found = deployed.ask("POST", "/automations/filter", {"automations": {"name": {"any_": [name]}}})
    return [each["id"] for each in found]


@pytest.mark.long
def test_the_alarm_is_silent_while_cleanups_succeed_and_goes_off_when_they_stop(
    deployed: Platform, block: tuple[str, "queue.Queue[str]"]
) -> None:
    """Failed runs, and cleanups of other keys, do not quieten it."""
    name, calls = block
    # A scope of its own, so that other tests' runs do not quieten it.
    code, output = alarm(deployed, name, "--key", "watched-*", "--hours", str(SECONDS / 3600))
    assert (code, "set up" in output) == (0, True), output
    for _ in range(4):
        succeed(deployed, "watched-*")
        time.sleep(SECONDS / 3)
    assert calls.empty()
    last = time.monotonic()
    succeed(deployed, "watched-*")
    succeed(deployed, "watched-*", "failed")
    succeed(deployed, "watched-a")
    succeed(deployed, "other-*")
    told = calls.get(timeout=TIMEOUT_SECONDS)
    assert "No cleanup of watched-* has succeeded" in told
    assert time.monotonic() - last > SECONDS - 2
    (automation,) = automations(deployed, f"{NAME} watched-*")
    deployed.ask("DELETE", f"/automations/{automation}")


@pytest.mark.long
def test_the_alarm_waits_for_a_run_that_is_at_work_but_not_for_ever(
    deployed: Platform, block: tuple[str, "queue.Queue[str]"]
) -> None:
    """A long night is silent though the last success is longer ago; runs that never succeed are told of all the same."""
    name, calls = block
    assert alarm(deployed, name, "--key", "long-*", "--hours", str(SECONDS / 3600))[0] == 0
    succeed(deployed, "long-*")
    for pause in (8, 5, 4):
        time.sleep(pause)
        succeed(deployed, "long-*", "running")
    assert calls.empty()
    succeed(deployed, "long-*")
    began = time.monotonic()
    while calls.empty() and time.monotonic() - began < TIMEOUT_SECONDS:
        time.sleep(SECONDS / 3)
        succeed(deployed, "long-*", "running")
    assert "No cleanup of long-* has succeeded" in calls.get(timeout=1)
    assert time.monotonic() - began > SECONDS
    (automation,) = automations(deployed, f"{NAME} long-*")
    deployed.ask("DELETE", f"/automations/{automation}")


@pytest.mark.long
def test_the_alarm_goes_off_where_no_cleanup_has_ever_succeeded(
    deployed: Platform, block: tuple[str, "queue.Queue[str]"]
) -> None:
    """A deployment that never ran is found out, too."""
    name, calls = block
    assert alarm(deployed, name, "--key", "never-*", "--hours", str(SECONDS / 3600))[0] == 0
    assert "No cleanup of never-* has succeeded" in calls.get(timeout=TIMEOUT_SECONDS)
    (automation,) = automations(deployed, f"{NAME} never-*")
    deployed.ask("DELETE", f"/automations/{automation}")


@pytest.mark.long
def test_setting_the_alarm_up_again_changes_it(deployed: Platform, block: tuple[str, "queue.Queue[str]"]) -> None:
    """There is one, with the new number of hours; the documented command deletes it."""
    name, _ = block
    assert alarm(deployed, name)[0] == 0
    (before,) = automations(deployed, NAME)
    code, output = alarm(deployed, name, "--hours", "50", "--json")
    assert (code, json.loads(output)["renewed"], json.loads(output)["scope"]) == (0, True, "all keys")
    assert automations(deployed, NAME) == [before]
    triggers = deployed.ask("GET", f"/automations/{before}")["trigger"]["triggers"]
    assert [each["within"] for each in triggers] == [50 * 3600] * 3
    deployed.prefect("automation", "delete", NAME)
    assert automations(deployed, NAME) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["slack-webhook/none"], "there is no block slack-webhook/none"),
        (["pager"], "pager names no block: it must be TYPE/NAME"),
        (["webhook/x", "--hours", "0"], "hours = 0: must be between 10 seconds and a year"),
    ],
)
def test_an_alarm_that_cannot_be_meant_is_refused(deployed: Platform, arguments: list[str], words: str) -> None:
    """In one line, and nothing is set up."""
    code, output = alarm(deployed, *arguments)
    assert (code, words in output, "Traceback" in output) == (2, True, False), output
    assert automations(deployed, NAME) == []


def test_a_block_that_can_tell_nobody_is_refused(deployed: Platform) -> None:
    """A secret, for instance."""
    from prefect.blocks.system import Secret  # noqa: PLC0415 - a block type is registered where it is used

    with talking_to(deployed):
        Secret(value="x").save("no-pager", overwrite=True)
    code, output = alarm(deployed, "secret/no-pager")
    assert (code, "neither a notification nor a webhook" in output) == (2, True), output


SCOPE = ["signal-*"]


def cleanup(deployed: Platform, **parameters: object) -> str:
    """Run a real cleanup of the scope, by the worker; the name of its state."""
    given = {"mode": "delete", "keys": SCOPE, "ignore_guard": True} | parameters
    return str(deployed.run("on-demand", **given)["state_name"])


@pytest.mark.long
def test_alarms_go_off_on_the_events_of_real_cleanups(deployed: Platform, block: tuple[str, "queue.Queue[str]"]) -> None:
    """Each on its own: too many deletions, a refusal, a failure, nights that do not keep up. What is as usual is silent."""
    name, calls = block
    applied = answer(deployed, "apply", "--block", name, "--key", *SCOPE, "--deleted-more-than", "3", "--unfinished-runs", "2")
    assert [each["name"] for each in applied["alarms"]] == [f"{each} signal-*" for each in NAMES if each != WAITING]

    # Of each key, the policy keeps six.
    deployed.fill(["signal-a"], versions=9)
    assert cleanup(deployed) == "Completed"
    deployed.insert(series("signal-b", range(1, 11)))
    assert cleanup(deployed) == "Completed"
    assert "has deleted 4 versions, more than 3." in calls.get(timeout=TIMEOUT_SECONDS)

    new = [{"name": "new", "keep_last": 1}]
    assert cleanup(deployed, policies=new, ignore_guard=False, refuse_above_percent=1) == "Failed"
    assert "A cleanup of signal-* was refused" in calls.get(timeout=TIMEOUT_SECONDS)

    assert cleanup(deployed, policies=[*new, *new]) == "Failed"
    assert "A cleanup of signal-* has failed" in calls.get(timeout=TIMEOUT_SECONDS)

    deployed.insert(series("signal-c", range(1, 10)))
    assert cleanup(deployed, max_deletions=1) == "Unfinished"
    assert cleanup(deployed, max_deletions=1) == "Unfinished"
    deployed.insert(series("signal-d", range(1, 9)))
    assert cleanup(deployed, max_deletions=1) == "Unfinished"
    assert "The last 3 cleanups of signal-* were unfinished" in calls.get(timeout=TIMEOUT_SECONDS)
    assert calls.empty()
    answer(deployed, "remove", "--key", *SCOPE)


@pytest.mark.long
def test_an_alarm_goes_off_where_nobody_answers_a_run_that_waits(
    deployed: Platform, block: tuple[str, "queue.Queue[str]"]
) -> None:
    """One that was answered in time is silent."""
    name, calls = block
    answer(deployed, "apply", "--block", name, "--waiting-hours", str(SECONDS / 3600))
    deployed.fill(["signal-a"])

    def waiting() -> str:
        run_id = deployed.start("with-approval", keys=SCOPE)
        wait_for("the question", lambda: deployed.ask("GET", f"/flow_runs/{run_id}")["state_name"] == "Suspended" or None)
        return run_id

    answered = waiting()
    code, output = call(deployed, "approve", answered, "--decline")
    assert code == 0, output
    deployed.wait(answered)
    time.sleep(SECONDS + 5)
    assert calls.empty()
    ignored = waiting()
    assert "Nobody has answered a run that waits for its approval" in calls.get(timeout=TIMEOUT_SECONDS)
    call(deployed, "approve", ignored, "--decline")
    deployed.wait(ignored)
    answer(deployed, "remove")


def test_a_second_apply_changes_nothing_and_one_with_less_removes(
    deployed: Platform, block: tuple[str, "queue.Queue[str]"]
) -> None:
    """The same automations with the same content; another scope's, and somebody else's, are left alone."""
    name, _ = block

    def present() -> dict[str, Any]:
        found = deployed.ask("POST", "/automations/filter", {"sort": "NAME_ASC"})
        without = {"updated", "created"}
        return {each["name"]: {key: each[key] for key in each.keys() - without} for each in found}

    def content() -> dict[str, Any]:
        """Without the ids that Prefect gives to triggers anew."""
        return json.loads(json.dumps(present()), object_hook=without_trigger_id)

    def without_trigger_id(item: dict[str, Any]) -> dict[str, Any]:
        is_trigger = "posture" in item or "triggers" in item
        return {key: value for key, value in item.items() if not (is_trigger and key == "id")}

    theirs = {
        "name": f"{FAILED}-of-theirs",
        "trigger": {"type": "event", "posture": "Reactive", "expect": ["their.event"]},
        "actions": [{"type": "do-nothing"}],
    }
    deployed.ask("POST", "/automations/", theirs)
    answer(deployed, "apply", "--block", name, "--key", "other-*")
    first = answer(deployed, "apply", "--block", name, "--deleted-more-than", "1000")
    before = content()
    assert [each["renewed"] for each in first["alarms"]] == [False] * len(NAMES)
    second = answer(deployed, "apply", "--block", name, "--deleted-more-than", "1000")
    assert [each["renewed"] for each in second["alarms"]] == [True] * len(NAMES)
    assert (second["removed"], content()) == ([], before)

    assert answer(deployed, "apply", "--block", name, "--unfinished-runs", "0")["removed"] == [LARGE, STALLED]
    listed = {each["name"] for each in answer(deployed, "list")["automations"]}
    of_others = {f"{each} other-*" for each in (NAME, FAILED, REFUSED, STALLED)}
    assert listed == {NAME, FAILED, REFUSED, WAITING} | of_others
    assert answer(deployed, "remove")["removed"] == sorted([NAME, FAILED, REFUSED, WAITING])
    assert set(present()) == of_others | {theirs["name"]}
    answer(deployed, "remove", "--key", "other-*")
    deployed.prefect("automation", "delete", str(theirs["name"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--deleted-more-than", "-1"], "--deleted-more-than -1: must be between 0"),
        (["--unfinished-runs", "1.5"], "1.5 is no whole number"),
        (["--waiting-hours", "-1"], "waiting-hours = -1: must be between 10 seconds and a year"),
        (["--key", "Report-*"], "keys: "),
    ],
)
def test_alarms_that_cannot_be_meant_are_refused(deployed: Platform, arguments: list[str], message: str) -> None:
    """Before anything is set up."""
    code, output = call(deployed, "automations", "apply", "--block", "webhook/x", *arguments)
    assert (code, message in output, "Traceback" in output) == (2, True, False), output
