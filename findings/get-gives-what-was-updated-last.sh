#!/usr/bin/env bash
# Versions: Prefect 3.8.8.
#
# Artifact.get(KEY) gives the version of a key that was updated last, not the one that was created last. Once anybody has changed
# an old version in place, if only its metadata, that old version is the answer, whatever the collection names as the latest,
# until the next version is created. Code that reads what there is to add to it then goes on from an old version.
#
# Seen:
#                                       Artifact.get    the collection
#   three versions were created         3               3
#   metadata of the first were changed  1               3
#   a fourth was created                4               4
#   as described
set -euo pipefail
unset "${!PREFECT_@}"
folder=$(mktemp -d)
export XDG_RUNTIME_DIR=$folder
child=
clean_up() {
  trap '' INT TERM
  if [ -n "$child" ]; then kill "$child" 2>/dev/null && wait "$child" || true; fi
  rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
run() { "$@" & child=$!; wait "$child"; child=; }

cat >"$folder/finding.py" <<'PYTHON'
import asyncio
import signal
import sys

from prefect import get_client
from prefect.artifacts import Artifact
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey
from prefect.testing.utilities import prefect_test_harness

KEY = "report"


async def latest(client):
    only = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[KEY]))
    (collection,) = await client.read_latest_artifacts(artifact_filter=only)
    return collection.data


async def look(client, what, found):
    got = (await Artifact.aget(KEY)).data
    found.append((got, await latest(client)))
    print(f"  {what:34}  {found[-1][0]:14}  {found[-1][1]}")


async def main():
    found = []
    print(f"{'':36}  Artifact.get    the collection")
    async with get_client() as client:
        first, *_ = [
            await client.create_artifact(ArtifactCreate(key=KEY, type="markdown", data=data)) for data in ("1", "2", "3")
        ]
        await look(client, "three versions were created", found)
        await client.update_artifact(first.id, ArtifactUpdate(metadata_={"reviewed": "yes"}))
        await look(client, "metadata of the first were changed", found)
        await client.create_artifact(ArtifactCreate(key=KEY, type="markdown", data="4"))
        await look(client, "a fourth was created", found)
    return found == [("3", "3"), ("1", "3"), ("4", "4")]


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with prefect_test_harness(server_startup_timeout=300):
    expected = asyncio.run(main())
print("as described" if expected else "CHANGED: this is not what was described")
sys.exit(not expected)
PYTHON

run python3 -m venv "$folder/venv"
run "$folder/venv/bin/pip" install -qq --disable-pip-version-check \
  prefect==3.8.8 fastapi==0.150.0 sqlalchemy==2.0.58 aiosqlite==0.22.1
export PREFECT_HOME="$folder/home" PREFECT_LOGGING_LEVEL=CRITICAL PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
run "$folder/venv/bin/python" "$folder/finding.py" 2>"$folder/log"
