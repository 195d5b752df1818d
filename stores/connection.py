"""Connects to a Prefect API: credentials, request rate, retries, and error messages without secrets.

Prefect's own client sends the requests: it supports profiles, Cloud and basic auth, and retries 408, 429, 502, 503, timeouts
and lost connections. Hooks on its HTTP client count each attempt, limit the request rate over all tasks of a run, notice when
the server is busy, take a 504, with which a proxy gives up on a server, for a timeout, and refuse a response that is too large
before it is read. Below them, the HTTP/2 transport sends a request again by itself where a server closes the connection with
GOAWAY; it tells that to the trace of the request only.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import inf
from typing import Any, TypeVar
from uuid import UUID

import httpx
import orjson
from aiolimiter import AsyncLimiter
from prefect.client.base import ServerType
from prefect.client.orchestration import PrefectClient, get_client
from prefect.context import SettingsContext, get_settings_context
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.policies.formatting import printable
from prefect_artifact_retention.stores.concurrency import HIGHEST_LEVEL, AdaptiveConcurrency
from prefect_artifact_retention.stores.destination import Destination, destination, going_to
from prefect_artifact_retention.stores.diagnosis import (
    FORBIDDEN_CHARACTER,
    address_hint,
    connection_hint,
    unusable_port,
    unusable_setting,
)
from prefect_artifact_retention.stores.store import OutdatedCheckError
from pydantic import ValidationError

CLOUD_REQUESTS_PER_MINUTE = 150
"""The default on Cloud. The smallest plan allows 625 a minute for the whole account; more leave less for its other work."""

MAX_RETRY_AFTER_SECONDS = 120
"""The longest pause that a server may ask for. Prefect's client itself would sleep for any time."""

MAX_LOST_REQUESTS = 3
"""After as many consecutive requests without an answer, the server counts as out of reach and nothing more is sent. With more,
a run over many keys takes longer to end, as each request is retried. Concurrent requests count as one."""

RETRIED_STATUSES = (408, 429, 502, 503)
"""The statuses that Prefect's client retries. After the last attempt, they mean that the server is out of reach."""

MAX_DETAIL_CHARS = 200
"""A longer explanation by the server is cut off in messages."""

HTTP_NOT_FOUND = 404
NO_ROUTE = ": Not Found"
"""The detail of a 404 where there is no such path, as opposed to "Block document not found": of FastAPI, which proxies are
written in, too."""
HTTP_CONFLICT = 409
HTTP_UNAVAILABLE = 503
HTTP_GATEWAY_TIMEOUT = 504
HTTP_TOO_MANY_REQUESTS = 429
FIRST_BUSY_RETRY_SECONDS = 0.02
BUSY_RETRY_FACTOR = 6
MAX_BUSY_RETRY_SECONDS = 20
"""The pauses after a 503: 0.02, 0.12, 0.72, 4.3 and 20 seconds, 25 seconds in all. A server on SQLite answers 503 while
another write locks its database for milliseconds, and Prefect's client would sleep for 2 seconds at first."""

SHIELD_SECONDS = 2
"""How long a request may still take when the run is cancelled. With less, more deletions go uncounted; with more, shutdown
takes longer."""

WRONG_ADDRESS_STATUSES = (301, 302, 307, 308, 400, 404, 405)
"""What servers and proxies answer to a request that every Prefect API takes, if it is sent to something else."""

HTTP_FORBIDDEN = 403
HTTP_CREDENTIALS_REFUSED = (401, HTTP_FORBIDDEN)

_LIMITS = httpx.Limits(max_connections=HIGHEST_LEVEL + 1, max_keepalive_connections=HIGHEST_LEVEL + 1, keepalive_expiry=25)
"""A connection for each concurrent request and for an update of the progress. Prefect's own limits are 16, of which it keeps 8
open, so that more requests at once would open a new one each."""

Answer = TypeVar("Answer")

READS_AHEAD: ContextVar[bool] = ContextVar("READS_AHEAD", default=False)
"""Whether the requests of this context read ahead, beside others: they wait for no slot, and end at once when the run does."""


class ResponseTooLargeError(Exception):
    """The response is longer than `max_bytes`; it was not read."""


class ListingTimedOutError(Exception):
    """The server, or a proxy before it, took too long for a listing; a smaller one may be in time."""


class _LateError(Exception):
    """The deadline of the request has passed, so it was not sent."""


class Connection:
    """An open connection to a Prefect API, shared by all tasks of a run.

    Attributes:
        client: Prefect's client.
        address: The address of the API for messages, without credentials.
        shows_credentials: Whether `PREFECT_API_URL` has credentials in it.
        is_cloud: Whether the API is that of Prefect Cloud.
        seconds_per_request: Seconds between two requests at the rate limit; 0 without one.
        max_page_rows: The rows in a page of any listing, by what the server has refused.
    """

    def __init__(self, client: PrefectClient, concurrency: AdaptiveConcurrency, seconds_per_request: float = 0) -> None:
        self.client = client
        self.seconds_per_request = seconds_per_request
        self.max_page_rows = sys.maxsize
        self.address = _public(client.api_url)
        self.shows_credentials = bool(client.api_url.userinfo)
        self.is_cloud = client.server_type == ServerType.CLOUD
        self._concurrency = concurrency
        self._lost = 0
        self._has_answered = False
        # Prefect's server compresses at level 9, which takes its one event loop longer than a local network saves.
        self._headers = {} if self.is_cloud else {"Accept-Encoding": "identity"}

    async def create(self, path: str, body: object) -> bool:
        """Create what nothing else may have the name of. Return False if there is one: also where an answer was lost.

        Raises:
            StoreError: As `request` does.
        """
        try:
            await self.request("POST", path, body)
        except StoreError as error:
            if error.status != HTTP_CONFLICT:
                raise
            return False
        return True

    async def find(self, path: str) -> httpx.Response | None:
        """Read something; None if Prefect says that there is none.

        Raises:
            StoreError: As `request` does; also for a 404 that something else answers, such as a proxy: nobody knows then.
        """
        try:
            return await self.request("GET", path)
        except StoreError as error:
            if error.is_absent:
                return None
            if error.status == HTTP_NOT_FOUND:
                raise StoreError(f"{error}, which Prefect does not say of what it does not have", error.status) from None
            raise

    async def request(  # noqa: PLR0913 - the options of a request
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        attempts: list[float] | None = None,
        max_bytes: int = 0,
        deadline: float = inf,
        is_divisible: bool = False,
    ) -> httpx.Response:
        """Send one request, which Prefect's client retries on transient errors.

        Args:
            method: The HTTP method.
            path: The path below the API's address.
            body: The content of the request, sent as JSON.
            attempts: An item is appended each time the request is sent, by the transport itself, too.
            max_bytes: Refuse a response whose `Content-Length` is above this. 0 is no limit.
            deadline: When, by the monotonic clock, it is too late for another attempt.
            is_divisible: Whether the caller can ask for less: the request is then not sent again after a timeout.

        Raises:
            ListingTimedOutError: A divisible request timed out.
            ResponseTooLargeError: The response is longer than `max_bytes`.
            OutdatedCheckError: The deadline has passed. An earlier attempt may have succeeded.
            StoreError: The server cannot be reached, refuses the credentials, or answers with an error.
        """
        attempts = [] if attempts is None else attempts
        content = None if body is None else orjson.dumps(body, default=_id_text)
        headers = self._headers | ({"Content-Type": "application/json"} if content else {})
        is_ahead = READS_AHEAD.get()
        async with nullcontext() if is_ahead else self._concurrency.slot(is_timed=method == "DELETE") as turn:
            lost_before = self._lost
            if lost_before >= MAX_LOST_REQUESTS:
                raise StoreError(
                    f"the Prefect server at {self.address} is out of reach: {MAX_LOST_REQUESTS} requests in a row failed"
                )
            try:
                sending = self.client.request(
                    method,  # type: ignore[arg-type]  # a Literal of the HTTP methods
                    path,  # type: ignore[arg-type]  # a Literal of all of Prefect's own paths
                    content=content,
                    headers=headers,
                    extensions={
                        "attempts": attempts,
                        "max_bytes": max_bytes,
                        "deadline": deadline,
                        "is_divisible": is_divisible,
                        "turn": turn,
                        "trace": _trace_resends(attempts, deadline),
                    },
                )
                response = await (sending if is_ahead else shielded(sending))
            except _LateError:
                message = f"the Prefect server at {self.address} did not take {method} {path} in time"
                raise OutdatedCheckError(message, is_sent=bool(attempts)) from None
            except PrefectHTTPStatusError as error:
                self._has_answered = True
                self._lost = self._one_more(lost_before) if error.response.status_code in RETRIED_STATUSES else 0
                # Not "from error": its message has the address with the password, and a traceback would show it.
                raise request_error(error, self.client.api_url, f"{method} {path}") from None
            except httpx.RequestError as error:
                self._lost = self._one_more(lost_before)
                raise request_error(error, self.client.api_url, has_answered=self._has_answered) from None
            except (json.JSONDecodeError, ValidationError) as error:
                # Of the token against forgery, which Prefect's client asks for before the first request.
                raise self._no_prefect() from error
            self._lost, self._has_answered = 0, True
            # It refers to the response, whose payloads only the garbage collector would free then; ours is a copy.
            response.request.extensions.pop("response").stream = httpx.ByteStream(b"")
            return response

    def take_over(self, other: Connection) -> None:
        """Send all requests through the client of another connection from now on, as this one may be in the middle of one."""
        self.client, self._concurrency = other.client, other._concurrency
        self.seconds_per_request = other.seconds_per_request
        self._lost = 0

    @property
    def level(self) -> int:
        """How many requests are under way at once at present."""
        return self._concurrency.level

    def allow_concurrency(self) -> None:
        """Allow concurrent requests from now on, as many as the server handles fastest."""
        self._concurrency.allow_concurrency()

    def reserve_slot(self) -> AbstractAsyncContextManager[None]:
        """Reserve one slot for all requests of this context, so that none of them waits for other requests."""
        return self._concurrency.reserve_slot()

    async def ask(self, path: str, body: object) -> Any:  # noqa: ANN401 - JSON
        """Send a POST request and return the JSON of its answer."""
        return self.json(await self.request("POST", path, body))

    def json(self, response: httpx.Response, load: Callable[[bytes], Any] = orjson.loads) -> Any:  # noqa: ANN401 - JSON
        """Read a response as JSON; the standard library's `load` reads more than orjson: lone surrogates, huge numbers.

        Raises:
            StoreError: The response is not JSON, such as the page of a proxy or of a user interface.
        """
        try:
            return load(response.content)
        except ValueError as error:
            raise self._no_prefect() from error

    async def now(self) -> datetime:
        """Read the server's clock, to the second, from the `Date` header of an answer.

        Raises:
            StoreError: The server cannot be reached, is no Prefect API, or sends no `Date` header.
        """
        try:
            response = await self.request("POST", "/artifacts/latest/count", {})
        except StoreError as error:
            if error.status in WRONG_ADDRESS_STATUSES:
                raise StoreError(f"{error}; {address_hint()}", error.status) from None
            raise
        self.json(response)
        try:
            return parsedate_to_datetime(response.headers["Date"]).astimezone(UTC)
        except (KeyError, ValueError, OverflowError) as error:
            raise StoreError(f"the server at {self.address} sends no Date header, so no age can be computed") from error

    def _one_more(self, lost_before: int) -> int:
        """Count a lost request, unless a concurrent one has been counted already."""
        return self._lost + 1 if self._lost <= lost_before else self._lost

    def _no_prefect(self) -> StoreError:
        return StoreError(f"{self.address} does not answer like a Prefect API: {address_hint()}")


def request_error(error: httpx.HTTPError, url: httpx.URL, what: str = "a request", *, has_answered: bool = True) -> StoreError:
    """Return the error of a request that failed: what the server at an address answers, or that it cannot be reached.

    Args:
        error: What Prefect's client raises.
        url: The address of the API.
        what: The request, for the message.
        has_answered: Whether the server has answered before; if not, the message may doubt its address.
    """
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in HTTP_CREDENTIALS_REFUSED:
            there = destination()
            own = f"those of the target {there.name}" if there else "PREFECT_API_KEY or PREFECT_API_AUTH_STRING"
            message = f"refuses our credentials ({status}): check {own}"
        else:
            message = f"answers {what} with {status} {error.response.reason_phrase}{_detail(error.response)}"
        is_absent = status == HTTP_NOT_FOUND and _detail(error.response) not in {"", NO_ROUTE}
        return StoreError(f"the Prefect server at {_public(url)} {message}", status, is_absent=is_absent)
    hint = ""
    if isinstance(error, httpx.RequestError):
        hint = connection_hint(error, url, has_answered=has_answered)
    return StoreError(f"cannot reach the Prefect server at {_public(url)}: {reason(error)}{hint}")


def _id_text(value: object) -> str:
    """Write an id as text: those of a database are of a subclass of Python's UUID, which orjson does not know."""
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def uses_ephemeral_server() -> bool:
    """Return whether Prefect starts a temporary server in place of one that is configured: no `PREFECT_API_URL` is set.

    Never of a destination, which has an address.

    That server is not the one whose artifacts people look at, so a deletion there succeeds, night after night, on nothing.
    """
    settings = get_current_settings()
    return destination() is None and not settings.api.url and settings.server.ephemeral.enabled


def has_home() -> bool:
    """Return whether a server is configured on which this runs. Who only looks at a destination needs none."""
    return bool(get_current_settings().api.url)


def _trace_resends(attempts: list[float], deadline: float) -> Callable[[str, Mapping[str, Any]], Awaitable[None]]:
    """Create a trace for httpcore that counts what the transport sends again within one attempt of Prefect's client.

    A server may have acted on the first sending, whatever its GOAWAY says: a 404 to the second one is then no sign that
    somebody else has deleted the version.
    """
    traced = 0

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        nonlocal traced
        # A CONNECT opens the tunnel of a proxy; the request itself follows.
        if not event.endswith(".send_request_headers.started") or info["request"].method == b"CONNECT":
            return
        # It may have waited for a connection.
        _check_deadline(deadline)
        if len(attempts) == traced:
            attempts.append(asyncio.get_running_loop().time())
        traced = len(attempts)

    return trace


def _check_deadline(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise _LateError


def _create_client(event_hooks: Mapping[str, Any]) -> PrefectClient:
    httpx_settings = {"event_hooks": event_hooks, "limits": _LIMITS}
    try:
        there = destination()
        client = _client_to(there, httpx_settings) if there else get_client(httpx_settings=httpx_settings)
    except (OSError, ImportError, ValueError, RuntimeError, httpx.InvalidURL) as error:
        # Not "from error": some of their messages quote a credential.
        raise StoreError(f"no Prefect server to talk to: {unusable_setting(error)}") from None
    if unusable := unusable_port(client.api_url):
        raise StoreError(f"no Prefect server to talk to: {unusable}")
    return client


def _client_to(there: Destination, httpx_settings: dict[str, Any]) -> PrefectClient:
    """Create a client with the credentials of a destination, and none of those of the active profile.

    Its own headers may be credentials, too, and Prefect's client sends them to whatever server.
    """
    with _changed_settings(custom_headers={}):
        return PrefectClient(
            there.api_url,
            api_key=there.api_key.get_secret_value() or None,
            auth_string=there.auth_string.get_secret_value() or None,
            httpx_settings=httpx_settings,
        )


@asynccontextmanager
async def connect(max_requests_per_minute: int = 0) -> AsyncIterator[Connection]:
    """Open a connection to the API of the active Prefect profile or `PREFECT_API_URL`, or to the context's destination.

    Args:
        max_requests_per_minute: The limit, retries included. 0 is 150 on Cloud, and no limit elsewhere.

    Raises:
        StoreError: No server is configured, or it cannot be reached.
    """
    limiter: AsyncLimiter | None = None
    concurrency = AdaptiveConcurrency()

    async def before(request: httpx.Request) -> None:
        attempts = request.extensions.setdefault("attempts", [])
        _check_timeout(request)
        deadline = request.extensions.get("deadline", inf)
        _check_deadline(deadline)
        if limiter:
            await limiter.acquire()
            _check_deadline(deadline)
        attempts.append(asyncio.get_running_loop().time())

    async def after(response: httpx.Response) -> None:
        response.request.extensions["response"] = response
        if response.status_code in (HTTP_TOO_MANY_REQUESTS, HTTP_UNAVAILABLE) and (
            turn := response.request.extensions.get("turn")
        ):
            concurrency.back_off(turn)
        if response.is_error:
            # Not of a success, whose content may still time out.
            response.request.extensions["answered"] = len(response.request.extensions["attempts"])
        _check(response)

    client = _create_client({"request": [before], "response": [after]})
    if rate := max_requests_per_minute or (CLOUD_REQUESTS_PER_MINUTE if client.server_type == ServerType.CLOUD else 0):
        limiter = _limiter(rate)
    try:
        async with client:
            yield Connection(client, concurrency, 60 / rate if rate else 0)
    except httpx.RequestError as error:
        raise request_error(error, client.api_url) from None


@contextmanager
def without_retries() -> Iterator[None]:
    """Let Prefect's client send a request once, in this context only. After a 503, it waits for 2 s all the same."""
    with _changed_settings(max_retries=0):
        yield


@contextmanager
def _changed_settings(**of_client: object) -> Iterator[None]:
    """Change settings of Prefect's client, in this context only."""
    present = get_settings_context()
    settings = present.settings
    changed = settings.model_copy(update={"client": settings.client.model_copy(update=of_client)})
    with SettingsContext(profile=present.profile, settings=changed):
        yield


async def shielded(request: Coroutine[Any, Any, Answer]) -> Answer:
    """Await a request or a transaction. On cancellation, give it `SHIELD_SECONDS` to finish first.

    A server may finish a request although its client has disconnected, and its effect would then be missing from the final
    report. A transaction that is not finished in time, because it waits for a lock, is rolled back.
    """
    sending = asyncio.ensure_future(request)
    try:
        return await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.wait([sending], timeout=SHIELD_SECONDS)
        if not sending.cancel():
            sending.exception()
        raise


def _public(address: httpx.URL) -> str:
    """Format an address without credentials and what else may be a secret."""
    return str(address.copy_with(userinfo=b"", query=None, fragment=None)).rstrip("/")


@asynccontextmanager
async def connect_home(connection: Connection) -> AsyncIterator[Connection]:
    """Open a connection to the server on which this runs: another one than this, only if this one leads to a destination.

    Raises:
        StoreError: The server cannot be reached.
    """
    if destination() is None:
        yield connection
        return
    with going_to(None):
        async with connect() as home:
            yield home


def api_address() -> str:
    """Return the address of the API that is configured, without credentials; empty if there is none."""
    there = destination()
    try:
        return _public(httpx.URL(there.api_url if there else get_current_settings().api.url or ""))
    except httpx.InvalidURL:
        return ""


def ui_address() -> str:
    """Return the address of Prefect's user interface, without credentials and trailing slash; empty if unknown."""
    there = destination()
    try:
        address = httpx.URL(there.ui_url if there else get_current_settings().ui_url or "")
    except httpx.InvalidURL:
        return ""
    return str(address.copy_with(userinfo=b"")).rstrip("/")


def reason(error: httpx.HTTPError) -> str:
    """Describe why a request failed without secrets: httpx quotes an illegal header, and a URL with its password."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"{error.response.status_code} {error.response.reason_phrase}"
    if isinstance(error, httpx.LocalProtocolError):
        return FORBIDDEN_CHARACTER
    return printable(str(error)) or type(error).__name__


def _check_timeout(request: httpx.Request) -> None:
    """Raise `ListingTimedOutError` if a divisible request is to be sent again after a timeout, which tells no hook.

    Prefect's client also sleeps between two attempts, for as long as an answer asks for.
    """
    attempts = request.extensions["attempts"]
    timeout = request.extensions.get("timeout", {}).get("read")
    if not (attempts and timeout and request.extensions.get("is_divisible")):
        return
    if request.extensions.get("answered") == len(attempts):
        return
    if asyncio.get_running_loop().time() - attempts[-1] >= timeout:
        raise ListingTimedOutError


def _limiter(per_minute: int) -> AsyncLimiter:
    """Create a leaky bucket whose burst and refill add up to at most `per_minute` in any minute."""
    burst = max(1.0, per_minute / 10)
    return AsyncLimiter(burst, time_period=60 * burst / max(1.0, per_minute - burst))


def _check(response: httpx.Response) -> None:
    # With this header, Prefect's client would retry without end.
    response.headers.pop("Prefect-Maintenance", None)
    if response.status_code == HTTP_GATEWAY_TIMEOUT:
        if response.request.extensions.get("is_divisible"):
            raise ListingTimedOutError
        raise httpx.ReadTimeout(f"{HTTP_GATEWAY_TIMEOUT} {response.reason_phrase}", request=response.request)
    max_bytes = response.request.extensions.get("max_bytes") or 0
    length = response.headers.get("Content-Length", "")
    if max_bytes and response.is_success and length.isdigit() and int(length) > max_bytes:
        raise ResponseTooLargeError
    if (retry_after := response.headers.get("Retry-After")) is not None:
        response.headers["Retry-After"] = str(
            min(_seconds(retry_after, response.headers.get("Date", "")), MAX_RETRY_AFTER_SECONDS)
        )
    elif response.status_code == HTTP_UNAVAILABLE:
        attempt = len(response.request.extensions.get("attempts", [1]))
        response.headers["Retry-After"] = str(
            min(FIRST_BUSY_RETRY_SECONDS * BUSY_RETRY_FACTOR ** min(attempt - 1, 9), MAX_BUSY_RETRY_SECONDS)
        )


def _seconds(retry_after: str, now: str) -> float:
    """Read a Retry-After header (RFC 9110, 10.2.3: seconds, or a date by the server's clock); 1 if it is neither."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        try:
            since = parsedate_to_datetime(now) if now else datetime.now(UTC)
            return max(0.0, (parsedate_to_datetime(retry_after) - since).total_seconds())
        except (ValueError, TypeError, OverflowError):
            return 1.0


def _detail(response: httpx.Response) -> str:
    try:
        detail = orjson.loads(response.content)["detail"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
    return f": {printable(str(detail)[:MAX_DETAIL_CHARS])}"
