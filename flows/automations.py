"""The alarms: automations on the Prefect server that notify people of what the events of cleanups tell.

A nightly run that never starts emits no event, so one alarm goes off when none has succeeded for a day. The others go off
on an event. Prefect compares labels of events with patterns only, so numbers are labels of fixed width, see `more_than`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

from prefect.events.actions import CallWebhook, SendNotification
from prefect.events.schemas.automations import AutomationCore, CompoundTrigger, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect_artifact_retention.flows import terminal
from prefect_artifact_retention.flows.cleanup import (
    EPHEMERAL_SERVER,
    EVENT,
    LABEL_DIGITS,
    RUNNING,
    SCOPE_LABEL,
    SUCCESS_EVENTS,
    artifact_cleanup,
    number_label,
)
from prefect_artifact_retention.policies import ConfigurationError, StoreError
from prefect_artifact_retention.policies.formatting import count, printable
from prefect_artifact_retention.policies.globs import impossible
from prefect_artifact_retention.stores.connection import (
    HTTP_NOT_FOUND,
    Connection,
    api_address,
    connect,
    uses_ephemeral_server,
)
from prefect_artifact_retention.tasks.history import MAX_HISTORY_ROWS
from prefect_artifact_retention.tasks.rendering import scope_label
from prefect_artifact_retention.tasks.report import in_order, scope_digest
from pydantic import BaseModel, Field, ValidationError
from rich.text import Text

NAME = "artifact-retention-alarm"
FAILED, REFUSED, LARGE, STALLED, WAITING = (
    f"artifact-retention-{each}" for each in ("failed", "refused", "large", "stalled", "waiting")
)
NAMES = (NAME, FAILED, REFUSED, LARGE, STALLED, WAITING)
"""The names of the automations; the globs of a scope follow."""

MIN_HOURS = 10 / 3600
"""Ten seconds. Prefect's server checks for missing events every few seconds, so a shorter time would make false alarms."""

MAX_HOURS = 24 * 365
MAX_NUMBER = 10**LABEL_DIGITS - 2
"""The largest number that a label can be compared with."""

ENDINGS = ("completed", "unfinished", "refused", "failed", "stopped")
"""The endings of runs that may have deleted something."""

FLOW_RUN = "prefect.flow-run"
ANSWERS = {f"{FLOW_RUN}.{state}" for state in ("Resuming", "Cancelling", "Cancelled")}
"""The events of a flow run that waits no longer because a person has answered or cancelled it. One that the server gives up
has none of them."""


_Present = Mapping[str, Sequence[Mapping[str, Any]]]
"""The automations of the server, by name; a name is not unique."""


class Thresholds(NamedTuple):
    """When the alarms go off.

    Attributes:
        hours: How long no cleanup may have succeeded.
        deleted_more_than: How many versions one run may delete; 0 for no such alarm.
        unfinished_runs: How many unfinished runs in a row may leave a backlog that does not shrink; 0 for no such alarm.
        waiting_hours: How long a run may wait for its approval; 0 for no such alarm.
    """

    hours: float
    deleted_more_than: int
    unfinished_runs: int
    waiting_hours: float


class Alarm(BaseModel):
    """An alarm that was asked for."""

    name: str = Field(description="The automation.")
    server: str = Field(description="The address of the server's API, without credentials.")
    block: str = Field(description="The block that is called.")
    scope: str = Field(description="The keys whose cleanups are watched.")
    when: str = Field(description="When it goes off.")
    hours: float = Field(description="For how long something must be missing; 0 if it goes off at once.")
    renewed: bool = Field(description="Whether the automation was there before.")
    changed: bool = Field(description="Whether it was written: it was not there, or not the same.")
    enabled: bool = Field(description="Whether it is switched on. One that somebody has paused stays paused.")

    def describe(self) -> str:
        """Describe in one line when the alarm goes off, and which block it calls."""
        how = "set up" if not self.renewed else "changed" if self.changed else "unchanged"
        paused = "" if self.enabled else f". It is paused: `prefect automation resume '{self.name}'` switches it on"
        return f"{self.name}: {how} on {self.server}; calls {self.block} {self.when}{paused}"


class Applied(BaseModel):
    """The alarms of a scope."""

    alarms: list[Alarm] = Field(description="The alarms that were asked for, all of which are there now.")
    removed: list[str] = Field(description="The alarms that were there and are not asked for any more.")


class Found(BaseModel):
    """An alarm on the server."""

    name: str = Field(description="The automation.")
    enabled: bool = Field(description="Whether it is switched on.")
    description: str = Field(description="When it goes off.")


class _Wanted(NamedTuple):
    """An alarm that is to be set up: what it is called, when it goes off, and what it says then."""

    name: str
    when: str
    subject: str
    message: str
    trigger: EventTrigger | CompoundTrigger
    hours: float = 0


async def set_up_alarm(block: str, hours: float, keys: Sequence[str] = ()) -> Alarm:
    """Set up the alarm that goes off when no cleanup has succeeded, or change it.

    Args:
        block: The block to call, as TYPE/NAME, such as `slack-webhook/ops` or `webhook/pager`.
        hours: The time without a successful cleanup after which the alarm goes off.
        keys: The parameter `keys` of the cleanups that are watched; empty for cleanups of all keys.

    Raises:
        ConfigurationError: There is no such block, it is no notification or webhook, `hours` is out of bounds, no key can
            match one of `keys`, somebody else's automation has the name, or no server is configured.
        StoreError: The server cannot be reached, or refuses a request.
    """
    _check(keys, hours=hours)
    async with connect() as connection:
        wanted = _overdue(hours, keys)
        present = await _present(connection, [wanted.name])
        (alarm,) = await _set_up(connection, block, [wanted], keys, present)
    return alarm


async def apply(block: str, thresholds: Thresholds, keys: Sequence[str] = ()) -> Applied:
    """Set up all alarms of a scope, or change them, and remove those that are not asked for any more.

    One that is the same already is left alone, because with each change Prefect forgets what the alarm has waited for. One
    that somebody has paused stays paused, and tags stay.

    Raises:
        ConfigurationError: As `set_up_alarm` does, or another threshold is out of bounds.
        StoreError: The server cannot be reached, or refuses a request.
    """
    switched_on = {"waiting-hours": thresholds.waiting_hours} if thresholds.waiting_hours else {}
    _check(keys, hours=thresholds.hours, **switched_on)
    for flag, number, most in (
        ("--deleted-more-than", thresholds.deleted_more_than, MAX_NUMBER),
        # The history knows of no more.
        ("--unfinished-runs", thresholds.unfinished_runs, MAX_HISTORY_ROWS),
    ):
        if not 0 <= number <= most:
            raise ConfigurationError(f"command line: {flag} {number}: must be between 0, for no such alarm, and {most:,}")
    wanted = _wanted(thresholds, keys)
    async with connect() as connection:
        present = await _present(connection, _names(keys))
        alarms = await _set_up(connection, block, wanted, keys, present)
        removed = await _remove(connection, present.keys() - {each.name for each in wanted}, present)
    return Applied(alarms=alarms, removed=removed)


async def remove(keys: Sequence[str] = ()) -> list[str]:
    """Remove all alarms of a scope, and return their names.

    Raises:
        ConfigurationError: No key can match one of `keys`, somebody else's automation has a name, or no server is configured.
        StoreError: The server cannot be reached, or refuses a request.
    """
    _check(keys)
    async with connect() as connection:
        present = await _present(connection, _names(keys))
        return await _remove(connection, present, present)


async def find_alarms() -> list[Found]:
    """Find the alarms of all scopes, in the order of their names.

    Raises:
        ConfigurationError: No server is configured.
        StoreError: The server cannot be reached, or refuses a request.
    """
    _check(())
    found: list[Any] = []
    async with connect() as connection:
        await connection.now()
        # As long a page as the server allows.
        while page := await connection.ask("/automations/filter", {"sort": "NAME_ASC", "offset": len(found)}):
            found += page
    return [Found.model_validate(each) for each in found if each["name"].partition(" ")[0] in NAMES]


def show(found: Sequence[Found]) -> None:
    """Print alarms as a table, and the server that has them."""
    server = Text(printable(f"On {api_address()}"))
    if not found:
        terminal.show(server, Text("There are no alarms."))
        return
    rows = [(each.name, "on" if each.enabled else "off", each.description) for each in found]
    header = [Text(name) for name in ("Automation", "State", "Meaning")]
    terminal.show(server, terminal.WholeTable(header, [[Text(printable(cell)) for cell in row] for row in rows]))


def more_than(number: int) -> list[str]:
    """Return the patterns of the labels, all of the same width, whose number is larger than this one.

    Such a label has the same digits up to some position, and a larger digit there. At most nine patterns for each digit.
    """
    digits = number_label(number)
    return [f"{digits[:index]}{digit}*" for index, own in enumerate(digits) for digit in range(int(own) + 1, 10)]


def _check(keys: Sequence[str], **hours: float) -> None:
    """Refuse a scope or times that cannot be meant, and a temporary server."""
    for name, number in hours.items():
        if not MIN_HOURS <= number <= MAX_HOURS:
            raise ConfigurationError(f"command line: {name} = {number:g}: must be between 10 seconds and a year")
    for glob in keys:
        if problem := impossible(glob):
            raise ConfigurationError(f"command line: keys: {problem}")
    if uses_ephemeral_server():
        raise ConfigurationError(f"{EPHEMERAL_SERVER}. An alarm on it would end with this command")


def _names(keys: Iterable[str]) -> list[str]:
    return [_name(name, keys) for name in NAMES]


def _name(name: str, keys: Iterable[str]) -> str:
    return " ".join([name, *in_order(keys)])


async def _set_up(
    connection: Connection, block: str, wanted: Sequence[_Wanted], keys: Sequence[str], present: _Present
) -> list[Alarm]:
    """Create automations, or change those of the same names."""
    kind, _, name = block.partition("/")
    if not kind or not name:
        raise ConfigurationError(f"{block} names no block: it must be TYPE/NAME, such as slack-webhook/ops")
    path = f"/block_types/slug/{quote(kind, safe='')}/block_documents/name/{quote(name, safe='')}"
    try:
        answer = await connection.find(path)
    except StoreError as error:
        if error.status != HTTP_NOT_FOUND:
            raise
        answer = None
    document = connection.json(answer) if answer else None
    # A name such as .. makes another path of it, which there may not be.
    if not (isinstance(document, dict) and "id" in document):
        raise ConfigurationError(f"there is no block {block}: create it in the UI, or see `prefect block ls`")
    alarms = []
    for each in wanted:
        before = present[each.name]
        automation = AutomationCore(
            name=each.name,
            description=f"Goes off {each.when}.",
            enabled=not before or any(one["enabled"] for one in before),
            tags=before[0].get("tags", []) if before else [],
            trigger=each.trigger,
            actions=[_action(document, block, each)],
        )
        # A change may not have an owner.
        content = automation.model_dump(mode="json", exclude={"owner_resource"})
        changed = not (before and _is_same(automation, before[0]))
        if not before:
            await connection.request("POST", "/automations/", content)
        elif changed:
            await connection.request("PUT", f"/automations/{before[0]['id']}", content)
        # A name is not unique: two calls at once, or an answer that was lost, leave two.
        for one in before[1:]:
            await _delete(connection, one["id"])
        alarms.append(
            Alarm(
                name=each.name,
                server=connection.address,
                block=block,
                scope=scope_label(keys),
                when=each.when,
                hours=each.hours,
                renewed=bool(before),
                changed=changed,
                enabled=automation.enabled,
            )
        )
    return alarms


def _is_same(wanted: AutomationCore, present: Mapping[str, Any]) -> bool:
    """Whether an automation of the server says the same, but for the ids that the server gives to triggers."""
    try:
        found = AutomationCore.model_validate(present)
    except ValidationError:
        return False
    one, other = (_comparable(each.model_dump(mode="json", exclude={"owner_resource"})) for each in (wanted, found))
    return bool(one == other)


def _comparable(item: Any) -> Any:  # noqa: ANN401 - JSON
    """Drop ids, and sort lists of texts, most of which are sets."""
    if isinstance(item, dict):
        return {key: _comparable(value) for key, value in item.items() if key != "id"}
    if isinstance(item, list):
        is_text = all(isinstance(each, str) for each in item)
        return sorted(item) if is_text else [_comparable(each) for each in item]
    return item


async def _present(connection: Connection, names: Collection[str]) -> _Present:
    """Return the automations of some names, by name.

    Raises:
        ConfigurationError: One of them is about something else: somebody has given it the name of an alarm.
    """
    await connection.now()
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        body = {"automations": {"name": {"any_": [name]}}, "sort": "CREATED_DESC"}
        found[name] = await connection.ask("/automations/filter", body)
        for each in found[name]:
            trigger = json.dumps(each["trigger"])
            if not any(subject in trigger for subject in (EVENT, artifact_cleanup.name)):
                raise ConfigurationError(
                    f"the automation {name} ({each['id']}) is not about cleanups: somebody has made it for something else. "
                    "Rename or delete it in the UI"
                )
    return found


async def _remove(connection: Connection, names: Iterable[str], present: _Present) -> list[str]:
    removed = sorted(name for name in names if present[name])
    for automation in (each for name in removed for each in present[name]):
        await _delete(connection, automation["id"])
    return removed


async def _delete(connection: Connection, automation_id: str) -> None:
    try:
        await connection.request("DELETE", f"/automations/{automation_id}")
    except StoreError as error:
        if error.status != HTTP_NOT_FOUND:
            raise


def _action(block: dict[str, Any], name: str, wanted: _Wanted) -> CallWebhook | SendNotification:
    message = f"{wanted.message} Check the runs of the flow {artifact_cleanup.name}."
    if (block.get("block_type") or {}).get("slug") == "webhook":
        return CallWebhook(block_document_id=block["id"], payload=message)
    if "notify" in (block.get("block_schema") or {}).get("capabilities", ()):
        return SendNotification(block_document_id=block["id"], subject=wanted.subject, body=message)
    raise ConfigurationError(f"the block {name} is neither a notification nor a webhook")


def _wanted(thresholds: Thresholds, keys: Sequence[str]) -> list[_Wanted]:
    scope, text = scope_label(keys), _literal(scope_label(keys))
    wanted = [
        _overdue(thresholds.hours, keys),
        _Wanted(
            _name(FAILED, keys),
            f"when a cleanup of {scope} fails",
            "Artifact cleanup has failed",
            f"A cleanup of {text} has failed.",
            _on_event(["failed"], keys),
        ),
        _Wanted(
            _name(REFUSED, keys),
            f"when a cleanup of {scope} is refused",
            "Artifact cleanup was refused",
            f"A cleanup of {text} was refused: somebody has to decide.",
            _on_event(["refused"], keys),
        ),
    ]
    if limit := thresholds.deleted_more_than:
        wanted.append(
            _Wanted(
                _name(LARGE, keys),
                f"when a cleanup of {scope} deletes more than {count(limit, 'version')}",
                "Artifact cleanup has deleted much",
                f"A cleanup of {text} has deleted {{{{ event.payload.deleted }}}} versions, more than {limit:,}.",
                _on_event(ENDINGS, keys, deleted=limit),
            )
        )
    if runs := thresholds.unfinished_runs:
        wanted.append(
            _Wanted(
                _name(STALLED, keys),
                f"when {count(runs, 'cleanup')} of {scope} in a row {'is' if runs == 1 else 'are'} unfinished and "
                "the backlog does not shrink",
                "Artifact cleanup does not keep up",
                f"The last {{{{ event.payload.stalled_runs }}}} cleanups of {text} were unfinished, and the backlog of stale "
                "versions has not shrunk.",
                _on_event(["unfinished"], keys, stalled_runs=runs - 1),
            )
        )
    # The events of flow runs, which Prefect itself emits, know no scope: one alarm is for all.
    if thresholds.waiting_hours and not keys:
        wanted.append(_waiting(thresholds.waiting_hours))
    return wanted


def _literal(text: str) -> str:
    """Write a text so that a template, as which Prefect reads messages, gives it back; a set in a glob may have a brace."""
    return text.replace("{", "{{ '{' }}")


def _on_event(endings: Iterable[str], keys: Sequence[str], **numbers: int) -> EventTrigger:
    """Trigger on an event of a scope, some of whose numbers are larger than these."""
    labels = {f"artifact-retention.{field}": more_than(number) for field, number in numbers.items()}
    return EventTrigger(
        posture=Posture.Reactive,
        match=ResourceSpecification({"prefect.resource.id": EVENT, SCOPE_LABEL: scope_digest(keys), **labels}),
        expect={f"{EVENT}.{ending}" for ending in endings},
        threshold=1,
    )


def _waiting(hours: float) -> _Wanted:
    return _Wanted(
        WAITING,
        f"when nobody has answered a run that waits for its approval for {hours:g} hours",
        "Artifact cleanup waits for approval",
        f"Nobody has answered a run that waits for its approval for {hours:g} hours.",
        EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": f"{FLOW_RUN}.*"}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "flow", "prefect.resource.name": artifact_cleanup.name}
            ),
            after={f"{FLOW_RUN}.Suspended"},
            expect=ANSWERS,
            for_each={"prefect.resource.id"},
            within=timedelta(hours=hours),
        ),
        hours,
    )


def _overdue(hours: float, keys: Sequence[str]) -> _Wanted:
    """Combine three triggers, of which any one sets the alarm off.

    Overdue: neither a success nor a sign of a run at work for `hours`, after the last of either. It starts with one of them,
    so alone it would miss a cleanup that has never worked. Never: the same in a window of `hours`. The windows are fixed, so
    alone it could go off up to a window late. Endless: no success for `hours` after a run has said that it is at work.
    Without it, a run that hangs, or is killed every night after an hour, would put the alarm off for ever.
    """
    scope = scope_label(keys)
    signs = SUCCESS_EVENTS | {RUNNING}
    triggers = [
        EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": EVENT, SCOPE_LABEL: scope_digest(keys)}),
            after=after,
            expect=expect,
            for_each=for_each,
            within=timedelta(hours=hours),
        )
        for after, expect, for_each in (
            (signs, signs, set[str]()),
            (set[str](), signs, set[str]()),
            # By a label that is the same in all: without one, Prefect does not wait for `after`, but begins at once.
            ({RUNNING}, SUCCESS_EVENTS, {"prefect.resource.id"}),
        )
    ]
    return _Wanted(
        _name(NAME, keys),
        f"when no cleanup of {scope} succeeds for {hours:g} hours",
        "Artifact cleanup is overdue",
        f"No cleanup of {_literal(scope)} has succeeded for {hours:g} hours.",
        CompoundTrigger(require="any", within=None, triggers=list(triggers)),
        hours,
    )
