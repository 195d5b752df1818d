"""The JSON schema of `retention.toml`, made from the settings and the policy: editors complete and check the file by it."""

from __future__ import annotations

from typing import Any

from prefect_artifact_retention.flows.settings import RetentionSettings
from prefect_artifact_retention.flows.targets import Target
from prefect_artifact_retention.policies import RetentionPolicy
from prefect_artifact_retention.policies.model import KEEP_RULES
from pydantic import Field, SecretStr, create_model

DRAFT = "http://json-schema.org/draft-07/schema#"
"""The newest draft that the TOML language servers know."""


def configuration_schema() -> dict[str, Any]:
    """The schema of a configuration file: every setting but the secrets, which such a file may not hold.

    It knows nothing of what takes more than one field to tell, such as two policies of one name: `policies check` does.
    """
    fields: dict[str, Any] = {
        name: (field.annotation, field)
        for name, field in RetentionSettings.model_fields.items()
        if field.annotation is not SecretStr
    }
    policies = RetentionSettings.model_fields["policies"]
    fields["policies"] = (list[RetentionPolicy], Field(default=[], description=policies.description))
    fields["targets"] = (list[Target], Field(default=[], description=RetentionSettings.model_fields["targets"].description))
    file = create_model("retention.toml", __config__={"extra": "forbid"}, **fields)
    schema = file.model_json_schema(ref_template="#/definitions/{model}")
    definitions = schema.pop("$defs")
    policy = definitions["RetentionPolicy"]
    policy["description"], _, _ = policy["description"].partition("\n\n")
    policy["anyOf"] = [{"required": [rule]} for rule in KEEP_RULES]
    return {"$schema": DRAFT, **schema, "definitions": definitions}
