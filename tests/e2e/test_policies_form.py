"""The policies in a real browser: a person edits the list in Prefect's form, and the next scheduled run honours it."""

import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from command import COMMAND
from platforms import POLICIES, Platform, wait_for
from playwright.sync_api import expect
from test_browser import CHROMIUM, INTERFACES, Interface, Visitor, visitor

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="no browser: there is no chromium on the PATH"),
]

KEYS = ["report-a", "report-b"]
EDITED = 5
"""With less, of ten versions, more than half would go, which the nightly deployment refuses."""

EVERY_MINUTE = "* * * * *"
BLOCK = "/block_types/slug/artifact-retention/block_documents/name/policies"


@pytest.fixture
def unconfigured(deployed: Platform) -> Iterator[Platform]:
    """The platform with the policies of its file on the server, and none in the file."""
    file = deployed.folder / "retention.toml"
    deployed.fill(KEYS)
    policies(deployed, "push", "--by", "ada")
    file.write_text("", encoding="utf-8")
    try:
        yield deployed
    finally:
        file.write_text(POLICIES, encoding="utf-8")
        deployed.prefect("deploy", "--all")
        deployed.wait_for_silence()


def policies(deployed: Platform, *arguments: str) -> str:
    """Run a command of the policies, and return what it prints."""
    done = subprocess.run(
        [COMMAND, "policies", *arguments],
        cwd=deployed.folder,
        env=deployed.environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def block(deployed: Platform) -> Any:  # noqa: ANN401 - JSON
    """Read the block."""
    return deployed.ask("GET", BLOCK)


def open_form(seen: Visitor, deployed: Platform) -> None:
    """From the list of blocks to the form of this one, as a person finds it."""
    seen.go("/blocks")
    expect(seen.page.get_by_text("policies", exact=True).first).to_be_visible()
    seen.go(f"/blocks/block/{block(deployed)['id']}/edit")
    expect(seen.page.get_by_text("Tried in this order: a key has the first policy that matches it.")).to_be_visible()


def save(seen: Visitor, deployed: Platform) -> None:
    """Press Save until it is saved: a busy server on SQLite refuses it. A form takes up what was typed a moment later."""
    before = block(deployed)["updated"]
    button = seen.page.get_by_role("button", name="Save")

    def is_saved() -> bool | None:
        seen.page.wait_for_timeout(1000)
        if block(deployed)["updated"] != before:
            return True
        if button.is_visible() and button.is_enabled():
            button.click()
        seen.page.wait_for_timeout(4000)
        return None

    wait_for("the block to be saved", is_saved)


def keep(seen: Visitor, deployed: Platform, number: int) -> None:
    """Let the first policy keep so many versions: in a field of the newer interface, as text in the older one."""
    open_form(seen, deployed)
    if seen.interface.name == "v2":
        seen.page.get_by_label("Keep last").first.fill(str(number))
    else:
        seen.page.locator("textarea").first.click(force=True)
        seen.page.keyboard.press("Control+A")
        seen.page.keyboard.insert_text(f'[{{"name": "keep some", "keep_last": {number}}}]')
    save(seen, deployed)
    (policy,) = block(deployed)["data"]["policies"]
    assert (policy["name"], policy["keep_last"]) == ("keep some", number)


def first_scheduled_run(deployed: Platform, since: str) -> Mapping[str, Any]:
    """Wait for the end of the first scheduled run that is to start after a time."""
    only = {"state": {"type": {"any_": ["COMPLETED", "FAILED"]}}, "expected_start_time": {"after_": since}}

    def ended() -> Mapping[str, Any] | None:
        runs = deployed.ask("POST", "/flow_runs/filter", {"flow_runs": only, "sort": "EXPECTED_START_TIME_ASC"})
        return next((run for run in runs if run["auto_scheduled"]), None)

    run: Mapping[str, Any] = wait_for("a scheduled run", ended)
    return run


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_scheduled_run_honours_what_a_person_has_edited_once_it_is_accepted(
    unconfigured: Platform, interface: Interface
) -> None:
    """It is not deployed again. A list that cannot be meant fails the run, and one that nobody has accepted is refused."""
    deployed = unconfigured
    everything = deployed.left()
    with visitor(deployed.local.address, interface) as seen:
        keep(seen, deployed, 0)
    run = deployed.run("nightly")
    assert run["state_type"] == "FAILED"
    assert 'block artifact-retention/policies of the server: policy "keep some": no keep rule' in run["state"]["message"]
    with visitor(deployed.local.address, interface) as seen:
        keep(seen, deployed, EDITED)
        if interface.name == "v2":
            open_form(seen, deployed)
            seen.shoot("policies")
    assert "changed in the UI" in policies(deployed, "log").splitlines()[0]
    begun = datetime.now(UTC).isoformat()
    deployed.prefect("deploy", "--all", ARTIFACT_RETENTION_DEPLOY_CRON=EVERY_MINUTE)
    refused = first_scheduled_run(deployed, begun)
    assert refused["state_type"] == "FAILED"
    assert "policies have changed" in refused["state"]["message"]
    assert deployed.left() == everything
    policies(deployed, "accept", "--by", "ada")
    wait_for("what the edited policy keeps", lambda: True if len(deployed.left()) == EDITED * len(KEYS) else None)
