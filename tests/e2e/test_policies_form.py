"""The policies in a real browser: a person edits the list in Prefect's form, and the next scheduled run honours it."""

import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from command import COMMAND
from platforms import POLICIES, Platform, wait_for
from playwright.sync_api import expect
from test_browser import CHROMIUM, INTERFACES, Interface, Visitor, visitor

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not CHROMIUM, reason="no browser: there is no chromium on the PATH"),
]

KEYS = ["report-a", "report-b"]
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
    """Press Save, and wait until it is saved. A form takes up what was typed a moment later."""
    before = block(deployed)["updated"]
    seen.page.wait_for_timeout(1000)
    seen.page.get_by_role("button", name="Save").click()
    wait_for("the block to be saved", lambda: block(deployed)["updated"] != before or None)


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


def next_scheduled_run(deployed: Platform, known: set[str]) -> Mapping[str, Any]:
    """Wait for the end of a scheduled run that has not been seen yet."""
    only = {"auto_scheduled": {}, "state": {"type": {"any_": ["COMPLETED", "FAILED"]}}}
    del only["auto_scheduled"]

    def ended() -> Mapping[str, Any] | None:
        runs = deployed.ask("POST", "/flow_runs/filter", {"flow_runs": only, "sort": "START_TIME_DESC"})
        new = [run for run in runs if run["auto_scheduled"] and run["id"] not in known]
        return new[-1] if new else None

    run: Mapping[str, Any] = wait_for("a scheduled run", ended)
    known.add(run["id"])
    return run


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_scheduled_run_honours_what_a_person_has_edited_once_it_is_accepted(
    unconfigured: Platform, interface: Interface
) -> None:
    """Without a deployment. A list that cannot be meant fails the run; one that nobody has accepted is refused, with the change."""
    deployed = unconfigured
    everything = deployed.left()
    with visitor(deployed.local.address, interface) as seen:
        keep(seen, deployed, 0)
        run = deployed.run("nightly")
        assert run["state_type"] == "FAILED"
        assert 'block artifact-retention/policies of the server: policy "keep some": no keep rule' in run["state"]["message"]
        assert deployed.left() == everything
        keep(seen, deployed, 3)
        if interface.name == "v2":
            open_form(seen, deployed)
            seen.shoot("policies")
    assert "changed in the UI" in policies(deployed, "log").splitlines()[0]
    # Before it is accepted, lest the first scheduled run on record count as the first on the server.
    known: set[str] = set()
    deployed.prefect("deploy", "--all", ARTIFACT_RETENTION_DEPLOY_CRON=EVERY_MINUTE)
    refused = next_scheduled_run(deployed, known)
    assert refused["state_type"] == "FAILED"
    assert "policies have changed" in refused["state"]["message"]
    assert deployed.left() == everything
    policies(deployed, "accept", "--by", "ada")
    wait_for("what the edited policy keeps", lambda: True if len(deployed.left()) == 3 * len(KEYS) else None)
