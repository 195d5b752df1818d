"""The alarm: set up by one command, it calls a real webhook when no cleanup succeeds for a while, and not before."""

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from uuid import uuid4

import pytest
from platforms import TIMEOUT_SECONDS, Platform
from prefect.blocks.webhook import Webhook
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_artifact_retention.flows.alarm import NAME
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
    """Call the command; its exit code, and all that it prints."""
    output = StringIO()
    with redirect_stdout(output), redirect_stderr(output), talking_to(deployed):
        return main(["alarm", *arguments]), output.getvalue()


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
