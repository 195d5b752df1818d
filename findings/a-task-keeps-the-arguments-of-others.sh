#!/usr/bin/env bash
# Versions: Prefect 3.8.8.
#
# A task that runs other tasks, one after another, keeps the arguments of all of them until it ends itself, though each is done,
# nothing is cached or persisted, and nobody else has a reference: the transaction of the outer task lists those of the inner ones,
# for a rollback, and with them their engines. So a task that hands out a long work in pieces needs the memory of all pieces
# together, and the garbage collector traverses them all, again and again. Tasks called by the flow itself let go, some of them a
# moment later.
#
# Seen:
#   100 tasks, one after another, each with an object as its argument that nobody else needs; objects alive
#                                        15 seconds after the last has ended   when the flow has ended
#     called by the flow                                                   0                         0
#     called by a task                                                   100                         0
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
import gc
import signal
import sys
import time
import weakref

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.testing.utilities import prefect_test_harness

PIECES = 100


class Piece:
    """A piece of a long work."""


@task(cache_policy=NO_CACHE, persist_result=False)
def work(piece):
    return None


def hand_out(seen):
    """Work on the pieces, and note how many are alive a while after the last."""
    alive = weakref.WeakSet()
    for _number in range(PIECES):
        piece = Piece()
        alive.add(piece)
        work(piece)
        del piece
    time.sleep(15)
    gc.collect()
    seen.append(len(alive))
    return alive


@task(cache_policy=NO_CACHE, persist_result=False)
def hand_out_in_a_task(seen, kept):
    kept.append(hand_out(seen))


@flow
def by_the_flow(seen, kept):
    kept.append(hand_out(seen))


@flow
def by_a_task(seen, kept):
    hand_out_in_a_task(seen, kept)
    gc.collect()


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print(f"{PIECES} tasks, one after another, each with an object as its argument that nobody else needs; objects alive")
print(f"{'':36} 15 seconds after the last has ended   when the flow has ended")
found = []
with prefect_test_harness(server_startup_timeout=300):
    for name, run in (("called by the flow", by_the_flow), ("called by a task", by_a_task)):
        seen, kept = [], []
        # Parameters of a flow are copied, unless they are not validated.
        run.with_options(validate_parameters=False)(seen, kept)
        gc.collect()
        found.append((seen[0], len(kept[0])))
        print(f"  {name:34} {found[-1][0]:35}   {found[-1][1]:23}")
expected = found == [(0, 0), (PIECES, 0)]
print("as described" if expected else "CHANGED: this is not what was described")
sys.exit(not expected)
PYTHON

run python3 -m venv "$folder/venv"
run "$folder/venv/bin/pip" install -qq --disable-pip-version-check \
  prefect==3.8.8 fastapi==0.150.0 sqlalchemy==2.0.58 aiosqlite==0.22.1
export PREFECT_HOME="$folder/home" PREFECT_LOGGING_LEVEL=CRITICAL PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
run "$folder/venv/bin/python" "$folder/finding.py" 2>"$folder/log"
