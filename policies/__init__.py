"""Retention policies and their evaluation. Pure: no I/O, no clock, no import of Prefect.

- `model`: the value types `Version`, `Versions`, `Verdict` and `RetentionPolicy`.
- `evaluation`: `evaluate`, which decides for each version of a key whether it is kept, and why.
- `simulation`: plays a cleanup every day, by the same evaluation.
- `periods`: the calendar periods of `keep_hourly` to `keep_yearly`.
- `globs`: which globs can match a key at all, and which cover others.
- `control`: holds and TTLs in an artifact's metadata.
- `loading`: reads policies from configuration, and reports every mistake in them.
- `meaning`: what policies mean, by which they are recognized and compared.
- `doubts`: what is valid in policies and yet hardly meant.
- `formatting`: numbers, durations and text from outside, as they are shown.
"""

from prefect_artifact_retention.policies.errors import ConfigurationError, RetentionError, StoreError
from prefect_artifact_retention.policies.evaluation import evaluate
from prefect_artifact_retention.policies.loading import load_policies
from prefect_artifact_retention.policies.model import RetentionPolicy, Verdict, Version

__all__ = [
    "ConfigurationError",
    "RetentionError",
    "RetentionPolicy",
    "StoreError",
    "Verdict",
    "Version",
    "evaluate",
    "load_policies",
]
