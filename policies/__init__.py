"""What is kept, and why. Pure: no I/O, no clock, nothing of Prefect.

`model` has the value types, `evaluation` the planner, `periods` the calendar, `control` the per-artifact metadata, `loading`
the way from configuration to policies with every error a user can make.
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
