"""Approval in a real browser: a person reads what a run would delete, types how many versions these are, and it goes on."""

from contextlib import suppress

import pytest
from platforms import Platform, wait_for
from playwright.sync_api import Locator, expect
from test_browser import (
    CHROMIUM,
    INTERFACES,
    KEPT,
    KEYS,
    LONG_MS,
    MAX_PRESSES,
    PRESS_AGAIN_MS,
    Interface,
    NotSeenError,
    Visitor,
    fill,
    keyed,
    visitor,
)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="no browser: there is no chromium on the PATH"),
]

STALE = sum(KEYS.values()) - KEPT * len(KEYS)


def ask(deployed: Platform) -> str:
    """Start a run with approval, and wait until it waits."""
    run_id = deployed.start("with-approval")
    wait_for("the question", lambda: deployed.ask("GET", f"/flow_runs/{run_id}")["state_name"] == "Suspended" or None)
    return run_id


def press_resume(seen: Visitor, run_id: str) -> Locator:
    """Press Resume on the page of the run, in its menu in the newer interface, and return the form."""
    seen.go(f"/runs/flow-run/{run_id}")
    expect(seen.page.get_by_text("Suspended", exact=True).first).to_be_visible()
    if seen.interface.name == "v2":
        seen.page.locator("button:has(svg.lucide-ellipsis-vertical)").first.click()
        seen.page.get_by_role("menuitem", name="Resume").click()
    else:
        seen.page.get_by_role("button", name="Resume").first.click()
    form = seen.page.get_by_role("dialog")
    expect(form.get_by_text(f"Deletes {STALE} versions in {len(KEYS)} keys").first).to_be_visible()
    return form


def send(seen: Visitor, form: Locator) -> None:
    """Send the form. It takes up what was typed a moment later; until then, the button may do nothing, or send too little."""
    said = "nothing was sent"
    for _press in range(MAX_PRESSES):
        with suppress(NotSeenError):
            with seen.page.expect_request("**/resume", timeout=PRESS_AGAIN_MS) as sent:
                form.get_by_role("button", name="Resume").or_(form.get_by_role("button", name="Submit")).last.click()
            response = sent.value.response()
            said = f"{sent.value.post_data}: {response.text() if response else sent.value.failure}"
            if '"ACCEPT"' in said:
                return
    raise AssertionError(f"the server did not accept the form: {said}")


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_person_approves_in_the_form_of_the_run(deployed: Platform, interface: Interface) -> None:
    """What was shown goes, by the worker that takes the run up again; the report says who has approved it."""
    fill(deployed)
    run_id = ask(deployed)
    assert len(deployed.left() & keyed(deployed)) == sum(KEYS.values())
    with visitor(deployed.local.address, interface) as seen:
        form = press_resume(seen, run_id)
        # Before anything is typed: it changes the size of the window.
        seen.shoot("approval")
        form.locator("[role=checkbox], [role=switch], input[type=checkbox]").first.click()
        form.locator("input[type=number], input[inputmode=numeric]").first.fill(str(STALE))
        form.locator("textarea, input[type=text]").last.fill("ada")
        send(seen, form)
        expect(seen.page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=LONG_MS)
    run = deployed.ask("GET", f"/flow_runs/{run_id}")
    assert f"Deleted {STALE} versions" in run["state"]["message"]
    assert len(deployed.left() & keyed(deployed)) == KEPT * len(KEYS)
