"""A Prefect server in memory, at the transport of httpx: the routes that this package uses, as Prefect answers them.

Everything above the transport is real: Prefect's client with its retries, our hooks, our stores. What a request may say is
decided by Prefect's own request models; the rest (latest, deletion, filters,
sorts, pages, limits) is written here after `prefect/server/models/artifacts.py`, and `tests/contract` holds it against real
servers. It is serial, as a server on SQLite is: no two requests overlap. What it does not know raises an error of its own
instead of an answer.

Its clock is this machine's unless time passes by `pass_time`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from itertools import count
from typing import Any, Literal
from unittest.mock import patch
from uuid import UUID

import httpx
import orjson
import prefect
import steps
from fake_database import BROKEN, Artifact, BrokenDataError, FakeDatabase
from prefect.events.clients import NullEventsClient
from prefect.events.worker import EventsWorker
from prefect.server.schemas import actions, core, filters
from prefect.server.schemas.states import State, StateType
from prefect_artifact_retention.flows.cleanup import artifact_cleanup
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.tasks.report import CleanupReport
from pydantic import BaseModel, Field, ValidationError
from servers import talking_to

DEFAULT_LIMIT = 200
"""Rows in a page, as PREFECT_SERVER_API_DEFAULT_LIMIT has it."""

Body = Mapping[str, Any]
_NUMBERS = count(1)


class _Page(BaseModel):
    limit: int | None = None
    offset: int = Field(default=0, ge=0)


class _ArtifactPage(_Page):
    sort: Literal["CREATED_DESC", "UPDATED_DESC", "ID_DESC", "KEY_DESC", "KEY_ASC"] = "ID_DESC"


class _VariablePage(_Page):
    sort: Literal["CREATED_DESC", "UPDATED_DESC", "NAME_DESC", "NAME_ASC"] = "NAME_ASC"


class UnknownRequestError(BaseException):
    """The fake does not know how Prefect answers this. No `except Exception` of the code under test takes it for a failure."""


class _RefusedError(Exception):
    """An answer that is none of success."""

    def __init__(self, status: int, detail: object) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


class FakeServer:
    """A server of the fake: it answers at an address of its own while it is `listening`.

    Attributes:
        address: Of its API, without the `/api`.
        takes_several: It answers as a server on PostgreSQL does where clients ask whether it takes several requests at once.
        limit: The most rows in a page.
        version: The version of Prefect that it says it is.
        expiry: What `/admin/settings` tells of the server's own expiry.
    """

    store: Literal["api"] = "api"

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.address = f"http://fake-{next(_NUMBERS)}.invalid"
        self.takes_several = False
        self.limit = DEFAULT_LIMIT
        self.version = prefect.__version__
        self.expiry: dict[str, object] = {"enabled": ["events"], "retention_period": 7_776_000.0}
        self._clock = clock
        self._ahead = timedelta()
        self.database = FakeDatabase(self.now)

    @property
    def local(self) -> FakeServer:
        """What knows the address, as of a real server."""
        return self

    def now(self) -> datetime:
        """The server's clock."""
        return self._clock() + self._ahead

    def pass_time(self, duration: timedelta) -> None:
        """Let time pass, for the server."""
        self._ahead += duration

    def reset(self) -> None:
        """Be as new."""
        self._ahead = timedelta()
        self.database = FakeDatabase(self.now)

    def start_run(self, flow: str = "somebodys-flow") -> UUID:
        """Let a flow run begin, and go on until it is ended."""
        flow_id = self._create_flow({"name": flow})["id"]
        run_id: UUID = self._create_run("flow_runs", {"flow_id": str(flow_id), "state": {"type": "RUNNING"}})["id"]
        return run_id

    def end_run(self, run_id: UUID) -> None:
        """Let a flow run end."""
        self._set_state(run_id, {"state": {"type": "COMPLETED"}})

    @contextmanager
    def listening(self) -> Iterator[FakeServer]:
        """Answer the requests to this server's address, and leave all others to whoever answers them.

        Events, which go elsewhere, go nowhere meanwhile.
        """
        host = httpx.URL(self.address).host
        send = httpx.AsyncHTTPTransport.handle_async_request

        async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
            return await (self.answer(request) if request.url.host == host else send(transport, request))

        EventsWorker.set_client_override(NullEventsClient)
        try:
            with (
                patch.object(httpx.AsyncHTTPTransport, "handle_async_request", handle),
                # Prefect's client reads its certificates each time that one is opened.
                patch.object(ssl, "create_default_context", cache(ssl.create_default_context)),
            ):
                yield self
        finally:
            EventsWorker.set_client_override(None)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let Prefect talk to this server."""
        with talking_to(f"{self.address}/api"):
            yield

    async def cleanup(self, policies: Sequence[RetentionPolicy] = (), **parameters: object) -> CleanupReport:
        """Run all steps of the flow against this server, without Prefect's engine."""
        with self.active():
            return await steps.cleanup(policies, **{"own_runs": {self.start_run(artifact_cleanup.name)}, **parameters})  # type: ignore[arg-type]

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer one request; others may come in before it, none while it is at work."""
        content = await request.aread()
        await asyncio.sleep(0)
        path = request.url.path.removeprefix("/api")
        try:
            body = orjson.loads(content) if content else {}
            status, result = self._route(request.method, path, body)
        except ValidationError as error:
            status, result = 422, {"exception_message": "Invalid request received.", "exception_detail": str(error)}
        except BrokenDataError:
            status, result = 500, {"exception_message": "Internal Server Error"}
        except _RefusedError as refused:
            status, result = refused.status, {"detail": refused.detail}
        headers = {"Date": format_datetime(self.now(), usegmt=True)}
        if status == 204:
            return httpx.Response(status, headers=headers, request=request)
        headers["Content-Type"] = "application/json"
        return httpx.Response(status, headers=headers, content=orjson.dumps(result, option=orjson.OPT_UTC_Z), request=request)

    def _route(  # noqa: C901, PLR0911, PLR0912 - a table of routes
        self, method: str, path: str, body: Body
    ) -> tuple[int, object]:
        match method, path.split("/")[1:]:
            case "POST", ["artifacts", ""]:
                return 201, self.database.create(actions.ArtifactCreate(**body))
            case "POST", ["artifacts", "filter"]:
                return 200, _shown(self._page(self._artifacts(body), body))
            case "POST", ["artifacts", "count"]:
                return 200, len(self._artifacts(body))
            case "POST", ["artifacts", "latest", "filter"]:
                return 200, _shown(self._page(self._collections(body), body))
            case "POST", ["artifacts", "latest", "count"]:
                return 200, len(self._collections(body))
            case (("GET" | "PATCH" | "DELETE"), ["artifacts", version_id]):
                return self._artifact(method, UUID(version_id), body)
            case "POST", [("flow_runs" | "task_runs") as kind, "filter"]:
                return 200, self._page(self._runs(kind, body), body)
            case "POST", [("flow_runs" | "task_runs") as kind, "count"]:
                return 200, len(self._runs(kind, body))
            case "POST", [("flow_runs" | "task_runs") as kind, ""]:
                return 201, self._create_run(kind, body)
            case "POST", ["flow_runs", run_id, "set_state"]:
                return 201, self._set_state(UUID(run_id), body)
            case "DELETE", ["flow_runs", run_id]:
                return 204, self.database.runs["flow_runs"].pop(UUID(run_id))
            case "POST", ["variables", ""]:
                return 201, self.database.create_variable(self._new_variable(body))
            case "POST", ["variables", "filter"]:
                only = filters.VariableFilter(**_only(body, "variables"))
                return 200, self._page(_matching(self.database.variables.values(), only), body, _VariablePage)
            case (("GET" | "PATCH" | "DELETE"), ["variables", "name", name]):
                return self._variable(method, name, body)
            case "GET", ["block_types", "slug", slug, "block_documents", "name", name]:
                return 200, self._block(slug, name)
            case "POST", ["flows", "count"]:
                return 200, self._count_flows(body)
            case "POST", ["flows", "filter"] if body == {"limit": 1}:
                return 200, [{"name": name} for name in sorted(self.database.flows, reverse=True)[:1]]
            case "POST", ["flows", ""]:
                return 201, self._create_flow(body)
            case "GET", ["admin", "version"]:
                return 200, self.version
            case "GET", ["admin", "settings"]:
                return 200, {"server": {"services": {"db_vacuum": self.expiry}}}
            case "GET", ["csrf-token"]:
                raise _RefusedError(422, "CSRF protection is disabled.")
        raise UnknownRequestError(f"{method} {path}")

    def _artifact(self, method: str, version_id: UUID, body: Body) -> tuple[int, object]:
        if method == "GET" and (artifact := self.database.artifacts.get(version_id)):
            return 200, _shown([artifact])[0]
        change = actions.ArtifactUpdate(**body).model_dump(exclude_unset=True)
        if (method == "DELETE" and self.database.delete(version_id)) or (
            method == "PATCH" and self.database.update(version_id, change)
        ):
            return 204, None
        raise _RefusedError(404, "Artifact not found.")

    def _artifacts(self, body: Body) -> list[Artifact]:
        only = filters.ArtifactFilter(**_only(body, "artifacts"))
        rows = self.database.artifacts
        if only.id and only.id.any_ is not None:
            return _matching([rows[each] for each in dict.fromkeys(only.id.any_) if each in rows], only)
        return _matching(rows.values(), only)

    def _collections(self, body: Body) -> list[Artifact]:
        return _matching(self.database.collections.values(), filters.ArtifactCollectionFilter(**_only(body, "artifacts")))

    def _runs(self, kind: str, body: Body) -> list[dict[str, Any]]:
        model = filters.FlowRunFilter if kind == "flow_runs" else filters.TaskRunFilter
        return _matching(self.database.runs[kind].values(), model(**_only(body, kind)))

    def _page(
        self, rows: list[dict[str, Any]], body: Body, kind: type[_ArtifactPage | _VariablePage] = _ArtifactPage
    ) -> list[dict[str, Any]]:
        page = kind(**{name: body[name] for name in kind.model_fields.keys() & body.keys()})
        limit = self.limit if page.limit is None else page.limit
        if not 0 <= limit <= self.limit:
            raise _RefusedError(422, f"Invalid limit: must be less than or equal to {self.limit}.")
        field, _, direction = page.sort.lower().rpartition("_")
        # As SQLite does, where PostgreSQL has what is null come last.
        rows = sorted(rows, key=lambda row: (row[field] is not None, row[field] or ""), reverse=direction == "desc")
        return rows[page.offset : page.offset + limit]

    def _new_variable(self, body: Body) -> actions.VariableCreate:
        variable = actions.VariableCreate(**body)
        if variable.name in self.database.variables:
            raise _RefusedError(409, f"A variable with the name {variable.name!r} already exists.")
        return variable

    def _variable(self, method: str, name: str, body: Body) -> tuple[int, object]:
        if method == "PATCH":
            change = actions.VariableUpdate(**body).model_dump(exclude_unset=True)
            if "name" in change:
                raise UnknownRequestError(body)
        if not (variable := self.database.variables.get(name)):
            raise _RefusedError(404, "Variable not found.")
        if method == "GET":
            return 200, variable
        if method == "PATCH":
            variable.update(change, updated=self.now())
        else:
            del self.database.variables[name]
        return 204, None

    def _block(self, slug: str, name: str) -> dict[str, Any]:
        if not (block := self.database.blocks.get(f"{slug}/{name}")):
            raise _RefusedError(404, "Block document not found")
        return block

    def _count_flows(self, body: Body) -> int:
        name = filters.FlowFilter(**_only(body, "flows")).name
        if not name or name.any_ is None or not name.like_ or name.like_[0] != "\\":
            raise UnknownRequestError(body)
        # PostgreSQL takes the backslash for an escape, and SQLite for a character like any other.
        like = (name.like_[1:] if self.takes_several else name.like_).lower()
        return sum(like in flow.lower() for flow in self.database.flows if flow in name.any_)

    def _create_flow(self, body: Body) -> dict[str, Any]:
        flow = actions.FlowCreate(**body)
        flow_id = self.database.flows.setdefault(flow.name, self.database.new_id())
        return flow.model_dump(mode="json") | {"id": flow_id, "created": self.now(), "updated": self.now()}

    def _create_run(self, kind: str, body: Body) -> dict[str, Any]:
        is_flow_run = kind == "flow_runs"
        request = actions.FlowRunCreate(**body) if is_flow_run else actions.TaskRunCreate(**body)
        state = request.state or actions.StateCreate(type=StateType.PENDING)
        given = request.model_dump(exclude={"state", "id", "deployment_id"})
        made = (core.FlowRun if is_flow_run else core.TaskRun)(**given)
        dates = {"created": self.now(), "updated": self.now()}
        run = made.model_dump(mode="json") | {"id": self.database.new_id()} | dates
        self.database.runs[kind][run["id"]] = run
        self._enter(run, state)
        return run

    def _set_state(self, run_id: UUID, body: Body) -> dict[str, Any]:
        state = actions.StateCreate(**body["state"])
        self._enter(self.database.runs["flow_runs"][run_id], state)
        entered = self.database.runs["flow_runs"][run_id]["state"]
        return {"state": entered, "status": "ACCEPT", "details": {"type": "accept_details"}}

    def _enter(self, run: dict[str, Any], given: actions.StateCreate) -> None:
        state = State(**given.model_dump())
        run |= {"state": state.model_dump(mode="json"), "state_type": state.type.value, "state_name": state.name}
        if state.is_running() and run["start_time"] is None:
            run["start_time"] = self.now()


def _only(body: Body, kind: str) -> Any:  # noqa: ANN401 - JSON
    """What a request says of the rows that it is for, if it says nothing of others."""
    if body.keys() - {kind, "sort", "limit", "offset"}:
        raise UnknownRequestError(body)
    return body.get(kind) or {}


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if any(row["data"] is BROKEN for row in rows):
        raise BrokenDataError
    return rows


def _matching(rows: Iterable[dict[str, Any]], only: BaseModel) -> list[dict[str, Any]]:
    """The rows that meet all criteria of one of Prefect's filters."""
    tests: list[Callable[[dict[str, Any]], bool]] = []
    for field, criterion in only:
        if isinstance(criterion, BaseModel):
            tests += _tests(field, criterion)
        elif field == "operator" and criterion.value != "and_":
            raise UnknownRequestError(only)
    return [row for row in rows if all(test(row) for test in tests)]


def _tests(field: str, criterion: BaseModel) -> Iterator[Callable[[dict[str, Any]], bool]]:
    for name, value in criterion:
        # As Prefect's own filters: nothing is excluded by an empty list.
        if value is None or (name == "not_any_" and not value) or (name == "operator" and value.value == "and_"):
            continue
        if name == "any_":
            yield lambda row, some=frozenset(value): row[field] in some
        elif name == "not_any_":
            # To a database, what is of no type does not differ from any.
            yield lambda row, some=frozenset(value): row[field] is not None and row[field] not in some
        elif name == "like_" and field == "name" and not set(value) & {"_", "%", "\\"}:
            yield lambda row, text=value: text.lower() in row["name"].lower()
        elif name == "exists_":
            yield lambda row, exists=value: (row[field] is not None) == exists
        else:
            raise UnknownRequestError(f"{field}.{name} = {value!r}")
