"""Lists and counts rows through the Prefect API, whatever they are.

The API pages by offset, at most 200 rows at a time (an administrator may lower that), each with its full payload. So the size
of a page follows the bytes of the last one, and the server's count tells whether a listing is whole.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

import httpx
import orjson
from prefect_artifact_retention.policies import StoreError
from prefect_artifact_retention.stores.connection import Connection, ListingTimedOutError, ResponseTooLargeError

MAX_PAGE_ROWS = 200
"""Prefect's default limit of a page. A server with a lower one refuses the page, which is then asked for in halves."""

PAGES_BEFORE_LARGER = 10
"""After as many pages of the size to which refused ones were halved, they are doubled: the server may only have been busy.
With fewer, more pages time out on a server that is always as slow; with more, a run stays slow for longer."""

TARGET_PAGE_BYTES = 2 * 2**20
"""The size aimed at for a page. With smaller pages, a listing takes more requests; with larger ones, more memory."""

MAX_PAGE_BYTES = 4 * TARGET_PAGE_BYTES
"""A larger page is refused before it is read, and asked for again with fewer rows."""

MAX_IDS_PER_REQUEST = 1_000
"""Ids or keys in one request. The server's database limits the parameters of a statement, so more would fail."""

MAX_BODY_BYTES = 2**17
"""The size of the ids or keys in one request, for keys may be long. With more, proxies with a low limit refuse it, and it is
sent again in halves; with less, there are more requests."""

MAX_UNREADABLE_ROWS = 20
"""Rows that a listing may leave out because the server fails to show them. With more, the server counts as broken."""

HTTP_CONTENT_TOO_LARGE = 413
HTTP_UNPROCESSABLE = 422
HTTP_SERVER_ERROR = 500

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Paging:
    """Lists and counts rows of the Prefect API, in pages of a size that the server accepts and sends in time.

    Every method raises `StoreError` if the server cannot be reached or sends an unexpected answer.

    Attributes:
        connection: The connection to the API.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._page_rows = 25
        # By what the server has been too slow for lately; what it has refused for good, the connection knows.
        self._max_page_rows = MAX_PAGE_ROWS
        # The pages of this size since it changed.
        self._max_pages = 0
        self._max_body_bytes = MAX_BODY_BYTES

    async def latest_row(self, key: str) -> dict[str, Any] | None:
        """Read the server's row for a key, with its copy of the latest version's data; None if there is none."""
        async for page in self._pages("/artifacts/latest/filter", {"key": {"any_": [key]}}, "KEY_ASC"):
            for row in page:
                return row
        return None

    async def _count(self, path: str, only: object, *, body_field: str = "artifacts") -> int:
        count = await self.connection.ask(f"{path}/count", {body_field: only})
        if not isinstance(count, int):
            raise StoreError(f"{self.connection.address} answers {path}/count with {str(count)[:100]!r}, not with a number")
        return count

    async def _pages(  # noqa: PLR0913 - the options of a listing
        self,
        path: str,
        only: object,
        sort: str,
        *,
        body_field: str = "artifacts",
        start: int = 0,
        unreadable: list[str | None] | None = None,
        load: Callable[[bytes], Any] = orjson.loads,
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Page through a listing by offset, from row `start` on. The size of a page follows the bytes of the page before.

        A page for which the server takes too long is asked for with fewer rows, and so are the next `PAGES_BEFORE_LARGER`.

        With `unreadable`, a page that the server fails to show (500) is asked for with fewer rows, down to the single row that
        fails. That row is skipped, and the key of the row before it is appended to the list.
        """
        offset = start
        last_key: str | None = None
        while True:
            limit = self._page_limit
            body = {body_field: only, "sort": sort, "limit": limit, "offset": offset}
            try:
                response = await self._page(path, body, limit)
            except StoreError as error:
                if error.status != HTTP_SERVER_ERROR or unreadable is None or len(unreadable) == MAX_UNREADABLE_ROWS:
                    raise
                elif limit > 1:
                    self._page_rows = max(1, limit // 4)
                else:
                    unreadable.append(last_key)
                    offset += 1
                continue
            if response is None:
                continue
            rows = self._rows(response, path, limit, load)
            del response
            if rows:
                last_key = rows[-1].get("key")
            got = len(rows)
            yield rows
            if got < limit:
                return
            offset += got

    async def _page(self, path: str, body: object, limit: int, *, is_divisible: bool = False) -> httpx.Response | None:
        """Ask for one page of a listing; None if it must be asked for again with fewer rows."""
        max_bytes = MAX_PAGE_BYTES if limit > 1 else 0
        try:
            response = await self.connection.request(
                "POST", path, body, max_bytes=max_bytes, is_divisible=is_divisible or limit > 1
            )
        except ResponseTooLargeError:
            self._page_rows = max(1, limit // 4)
        except ListingTimedOutError:
            if is_divisible:
                raise
            self._limit_pages(limit // 2)
        except StoreError as error:
            if error.status != HTTP_UNPROCESSABLE:
                raise
            if limit == 1:
                # It was not for its size that the page was refused.
                self.connection.max_page_rows = sys.maxsize
                raise
            # Most likely, an administrator has lowered the limit of a page.
            self.connection.max_page_rows = min(self.connection.max_page_rows, limit // 2)
        else:
            self._max_pages += limit == self._max_page_rows
            if self._max_pages >= PAGES_BEFORE_LARGER:
                self._limit_pages(min(2 * limit, MAX_PAGE_ROWS))
            return response
        return None

    def _limit_pages(self, rows: int) -> None:
        self._max_page_rows, self._max_pages = rows, 0

    @property
    def _page_limit(self) -> int:
        """The rows to ask for in the next page."""
        return min(self._page_rows, self._max_page_rows, self.connection.max_page_rows)

    def _rows(
        self, response: httpx.Response, path: str, limit: int, load: Callable[[bytes], Any] = orjson.loads
    ) -> list[dict[str, Any]]:
        """Read the rows of a page that was asked for with a limit, and adapt the size of the next page to their size."""
        rows = self.connection.json(response, load)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise StoreError(f"{self.connection.address} answers {path} with something else than a list of rows")
        row_bytes = len(response.content) // max(1, len(rows))
        self._page_rows = max(1, min(TARGET_PAGE_BYTES // max(1, row_bytes), limit * 4))
        return rows

    async def _existing(
        self,
        kind: str,
        ids: Iterable[UUID],
        read: Callable[[Mapping[str, Any]], Item],
        load: Callable[[bytes], Any] = orjson.loads,
    ) -> list[Item]:
        """Read those rows that exist.

        Rows that are deleted during the listing shift its pages and hide others, and a run that was skipped would be taken for
        one that has ended. So the ids not found are counted, and asked for again.
        """
        found: list[Item] = []

        async def find(part: Sequence[UUID]) -> None:
            missing = set(part)
            for _attempt in range(3):
                async for page in self._pages(f"/{kind}/filter", any_of(missing), "ID_DESC", body_field=kind, load=load):
                    rows = {UUID(row["id"]): row for row in page}
                    found.extend([read(rows[row_id]) for row_id in rows.keys() & missing])
                    missing -= rows.keys()
                    # Free the payloads before the next request: many tasks wait for their pages at the same time.
                    rows.clear()
                    page.clear()
                if not missing or not await self._count(f"/{kind}", any_of(missing), body_field=kind):
                    break
            else:
                raise StoreError(f"{self.connection.address} counts {kind} that it does not list")

        await self._in_parts(sorted(set(ids)), find)
        return found

    async def _in_parts(self, items: Sequence[Item], ask: Callable[[Sequence[Item]], Awaitable[Answer]]) -> list[Answer]:
        """Ask for ids or keys in as many requests as they need. A part that is too large for a proxy (413) is halved."""
        answers: list[Answer] = []
        while items:
            part = self._first_part(items)
            try:
                answers.append(await ask(part))
            except StoreError as error:
                if error.status != HTTP_CONTENT_TOO_LARGE or len(part) == 1:
                    raise
                self._max_body_bytes = body_bytes(part) // 2
                continue
            items = items[len(part) :]
        return answers

    def _first_part(self, items: Sequence[Item], limit: int = MAX_IDS_PER_REQUEST) -> Sequence[Item]:
        """Return the first of the ids or keys, as many as one request takes; at least one, and at most `limit`."""
        first, size = items[:limit], 0
        for number, item in enumerate(first):
            size += body_bytes([item])
            if number and size > self._max_body_bytes:
                return first[:number]
        return first


def body_bytes(items: Iterable[object]) -> int:
    """Return the size of ids or keys as JSON, with their quotes and commas."""
    return sum(len(str(item).encode()) + 3 for item in items)


def any_of(ids: Iterable[UUID]) -> Mapping[str, Any]:
    """Select the rows with these ids."""
    return {"id": {"any_": sorted(str(each) for each in ids)}}
