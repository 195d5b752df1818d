"""The error hierarchy: every error that is meant for the user.

RetentionError            base class; its message can be shown as it is
├── ConfigurationError    a policy, setting or flag is invalid; nothing has run
├── StoreError            the server or the database cannot be reached, or refuses or fails a request
└── CleanupFailed         a run was refused or failed; carries its report (tasks/report.py)
"""

from prefect_artifact_retention.policies.formatting import printable


class RetentionError(Exception):
    """Base of all errors with a message for the user. Characters that are not printable are escaped in it."""

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(printable(line) for line in message.split("\n")))


class ConfigurationError(RetentionError, ValueError):
    """A policy, setting or flag is invalid. The message names the source, the policy, the field and the value."""


class StoreError(RetentionError):
    """The server or the database cannot be reached, refuses a request, or sends an unexpected answer.

    Attributes:
        status: The HTTP status of the answer; None without one.
        is_absent: Whether Prefect itself answers that it does not have what was asked for. A 404 of a proxy is no such answer.
    """

    def __init__(self, message: str, status: int | None = None, *, is_absent: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_absent = is_absent
