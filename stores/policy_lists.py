"""The list of policies on the server: a block, for which the UI has a form, and the records of what was pushed to it.

Records are anonymous blocks of the same type: the UI does not list them, a block has room for any list, and each has a name of
its own, so that of two who push at the same time one is refused.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from prefect_artifact_retention.policies import RetentionError, RetentionPolicy, StoreError
from prefect_artifact_retention.policies.pushes import FIELD, Push, read_push
from prefect_artifact_retention.stores.connection import Connection
from prefect_artifact_retention.stores.paging import Paging
from pydantic import TypeAdapter, ValidationError

SLUG = "artifact-retention"
NAME = "policies"
RECORD_PREFIX = "push-"
RECORD_DIGITS = 6

BLOCK_TYPE = {
    "name": "Artifact Retention",
    "slug": SLUG,
    "description": "The policies by which artifact-retention cleans up, in the order in which they are tried.",
    "code_example": "```sh\nartifact-retention policies check --live\n```",
}


class PolicyList(NamedTuple):
    """The block with the list.

    Attributes:
        id: Its id.
        data: What it has: a list of policies, unless somebody has saved something else.
        updated: When it was last saved, by the server's clock.
        form: The schema of its form.
    """

    id: UUID
    data: Any
    updated: datetime
    form: Any


class PolicyLists(Paging):
    """Reads and writes the list through the API.

    Every method raises `StoreError` if the server cannot be reached, or refuses a request.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        # A list of a hundred policies takes ten kilobytes, and a record two lists.
        self._page_rows = self._max_page_rows

    async def read(self) -> PolicyList | None:
        """Read the list, in one request that causes no event; None if there is none."""
        if (found := await self._document(NAME)) is None:
            return None
        try:
            updated = TypeAdapter(datetime).validate_python(found["updated"])
            return PolicyList(UUID(found["id"]), found["data"], updated, found["block_schema"]["fields"])
        except (KeyError, TypeError, ValueError, ValidationError):
            raise StoreError(f"{self.connection.address} shows the block {SLUG}/{NAME} without what a block has") from None

    async def pushes(self) -> tuple[list[Push], int]:
        """Read the records of all pushes. Return those that can be read, and the highest number of any."""
        found = await self.connection.find(f"/block_types/slug/{SLUG}")
        if found is None:
            return [], 0
        only = {
            "is_anonymous": {"eq_": True},
            "block_type_id": {"any_": [self.connection.json(found)["id"]]},
            "name": {"like_": RECORD_PREFIX},
        }
        pushes, highest = list[Push](), 0
        async for page in self._pages("/block_documents/filter", only, "NAME_ASC", body_field="block_documents"):
            for row in page:
                number = str(row.get("name")).removeprefix(RECORD_PREFIX)
                if number.isdecimal():
                    highest = max(highest, int(number))
                    if push := read_push(int(number), row.get("data")):
                        pushes.append(push)
        return pushes, highest

    async def push(self, push: Push, present: PolicyList | None) -> None:
        """Leave the record of a push, write the list, and note in the record that it is there.

        Raises:
            RetentionError: Somebody else has pushed meanwhile, or changed the list.
        """
        type_id, schema_id = await self._register()
        ids = {"block_type_id": type_id, "block_schema_id": schema_id}
        name = f"{RECORD_PREFIX}{push.number:0{RECORD_DIGITS}}"
        record = push.model_dump(mode="json", exclude={"number"})
        made = await self.connection.create("/block_documents/", {"name": name, "is_anonymous": True, "data": record, **ids})
        recorded = await self._document(name)
        if recorded is None or (not made and recorded["data"] != record):
            raise RetentionError("somebody else has pushed policies meanwhile: see `artifact-retention policies log`")
        if present is None:
            made = await self.connection.create("/block_documents/", {"name": NAME, "data": push.after, **ids})
            if not made and (await self._document(NAME) or {}).get("data") != push.after:
                raise RetentionError("somebody else has created the list meanwhile: see `artifact-retention policies log`")
        else:
            # Prefect saves over whatever is there: an edit that is as recent as this one would be lost, and on no record.
            found = await self.read()
            if found is None or (found.data, found.updated) != (present.data, present.updated):
                await self.connection.request("DELETE", f"/block_documents/{recorded['id']}")
                raise RetentionError(
                    "the list was changed meanwhile, so nothing was pushed: see `artifact-retention policies log`"
                )
            await self._save(present.id, schema_id, push.after, merges=False)
        await self._save(recorded["id"], schema_id, {"is_finished": True})

    async def renew_form(self, present: PolicyList) -> bool:
        """Give the block the form of this release, and leave its list alone. Return False if it has it."""
        if present.form == form():
            return False
        _type_id, schema_id = await self._register()
        # What is there is merged with nothing; without `data`, Prefect does not change the schema.
        await self._save(present.id, schema_id, {})
        return True

    async def _save(self, block_id: UUID | str, schema_id: str, data: object, *, merges: bool = True) -> None:
        body = {"block_schema_id": schema_id, "data": data, "merge_existing_data": merges}
        await self.connection.request("PATCH", f"/block_documents/{block_id}", body)

    async def _document(self, name: str) -> Any:  # noqa: ANN401 - JSON
        found = await self.connection.find(f"/block_types/slug/{SLUG}/block_documents/name/{name}")
        return None if found is None else self.connection.json(found)

    async def _register(self) -> tuple[str, str]:
        """Create the type of the block, and the schema of its form, unless they are there. Return their ids."""
        await self.connection.create("/block_types/", BLOCK_TYPE)
        found = self.connection.json(await self.connection.request("GET", f"/block_types/slug/{SLUG}"))
        body = {"fields": form(), "block_type_id": found["id"], "capabilities": []}
        schema = await self.connection.ask("/block_schemas/", body)
        return str(found["id"]), str(schema["id"])


def form() -> dict[str, Any]:
    """Return the schema of the block's form, as Prefect makes it of a block's class."""
    schema = TypeAdapter(list[RetentionPolicy]).json_schema(ref_template="#/definitions/{model}")
    definitions = schema.pop("$defs")
    for definition in definitions.values():
        definition.pop("description", None)
    title = {"title": "Policies", "description": "Tried in this order: a key has the first policy that matches it."}
    return {
        "title": "RetentionPolicies",
        "description": BLOCK_TYPE["description"],
        "type": "object",
        "properties": {FIELD: {**schema, **title, "position": 0}},
        "required": [FIELD],
        "definitions": definitions,
        "block_type_slug": SLUG,
        "block_schema_references": {},
        "secret_fields": [],
    }
