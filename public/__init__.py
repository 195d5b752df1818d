"""Retention for Prefect artifacts. From here, authors of flows import what helps them to write artifacts.

The names are loaded when they are first used: `policies` alone needs no Prefect.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_artifact_retention.tasks.producers import *  # noqa: F403 - its `__all__` is the one list of names

_PRODUCERS = "prefect_artifact_retention.tasks.producers"
_ROOMS = ("flows", "tasks", "stores", "policies", "examples")


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any of the names
    # An import of a submodule asks here first.
    if name == "__all__":
        return import_module(_PRODUCERS).__all__
    if name.startswith("_") or name in _ROOMS or name not in import_module(_PRODUCERS).__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PRODUCERS), name)


def __dir__() -> list[str]:
    return sorted(import_module(_PRODUCERS).__all__)
