"""The server on which the work of a context is done, if that is not the one of the active Prefect profile.

A flow run and its log live on the server of the profile, its home. What it reads and deletes, and the artifacts that it
leaves, live at its destination. Credentials of the one are never sent to the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from prefect.settings import get_current_settings
from pydantic import SecretStr

NOTHING = SecretStr("")


@dataclass(frozen=True, slots=True)
class Destination:
    """A server, or a workspace of Prefect Cloud, with its own credentials.

    Attributes:
        name: What messages call it.
        api_url: The address of its API, without credentials.
        api_key: The API key; empty for none.
        auth_string: The user name and password of basic authentication, in the form `user:password`; empty for none.
    """

    name: str
    api_url: str
    api_key: SecretStr = NOTHING
    auth_string: SecretStr = NOTHING

    @property
    def is_home(self) -> bool:
        """Whether it is the server of the active profile, by its address."""
        return self.api_url.rstrip("/") == (get_current_settings().api.url or "").rstrip("/")

    @property
    def ui_url(self) -> str:
        """The address of its user interface, as Prefect infers it from the address of an API."""
        cloud = get_current_settings().cloud
        url = self.api_url.rstrip("/")
        if cloud.ui_url and url.startswith(cloud.api_url):
            url = url.replace(cloud.api_url, cloud.ui_url)
        url = url.removesuffix("/api").replace("/api/", "/")
        return url.replace("/accounts/", "/account/").replace("/workspaces/", "/workspace/")


_DESTINATION: ContextVar[Destination | None] = ContextVar("destination", default=None)


def destination() -> Destination | None:
    """Return the destination of this context; None at home."""
    return _DESTINATION.get()


def is_elsewhere() -> bool:
    """Whether the work of this context is done on another server than that of the active profile, which knows its flow run."""
    there = destination()
    return there is not None and not there.is_home


@contextmanager
def going_to(there: Destination | None) -> Iterator[None]:
    """Do the work of this context at a destination; None is home."""
    token = _DESTINATION.set(there)
    try:
        yield
    finally:
        _DESTINATION.reset(token)
