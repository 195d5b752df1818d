"""The errors that a user can meet, drawn once.

RetentionError            every error below; its text is one clear message, fit to be shown as it is
├── ConfigurationError    a policy, setting or flag that cannot be meant; nothing has run
├── StoreError            the server or database does not answer as it should
└── CleanupFailed         a run was refused or failed; carries its report (tasks/report.py)
"""

from prefect_artifact_retention.policies.formatting import printable


class RetentionError(Exception):
    """Base of all errors with a message for the user, of printable lines whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(printable(line) for line in message.split("\n")))


class ConfigurationError(RetentionError, ValueError):
    """A policy, setting or flag that cannot be meant. Names the source, the policy, the field and the value."""


class StoreError(RetentionError):
    """The server or database is out of reach, refuses us, or answers what it should not.

    Attributes:
        status: The HTTP status, where there was one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
