#!/usr/bin/env bash
# Versions: pyarrow 26.0.1, polars 2.1.0, DuckDB 2.0.1, pandas 3.1.1.
#
# A Parquet file that ends with its footer is taken for a whole one. But a writer that is left by an exception writes the footer,
# too: pyarrow's `ParquetWriter` as a context, and polars' `sink_parquet`, which does so in the background, after it has raised.
# What every reader then gets without an error or a warning is a part of the rows. Only a number of rows, or a hash, that is
# noted elsewhere tells the difference.
#
# Seen:
#   5000 rows were to be written, and the source failed after 2000
#   pyarrow ParquetWriter   raised RuntimeError    pyarrow 2000, polars 2000, duckdb 2000, pandas 2000 rows
#   polars sink_parquet     raised RuntimeError    pyarrow 2000, polars 2000, duckdb 2000, pandas 2000 rows
#   as described
set -euo pipefail
folder=$(mktemp -d)
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
import sys
import time
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

ROWS, GOOD, BATCH = 5_000, 2_000, 1_000
folder = Path(sys.argv[1])


def batches():
    for start in range(0, ROWS, BATCH):
        if start == GOOD:
            raise RuntimeError("the source has failed")
        yield list(range(start, start + BATCH))


def by_pyarrow(path):
    schema = pa.schema([("id", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for batch in batches():
            writer.write_table(pa.table({"id": batch}, schema))


def by_polars(path):
    def source(with_columns, predicate, n_rows, batch_size):
        for batch in batches():
            yield pl.DataFrame({"id": batch})

    register_io_source(source, schema={"id": pl.Int64}).sink_parquet(path)


def rows(path):
    return {
        "pyarrow": pq.read_table(path).num_rows,
        "polars": len(pl.read_parquet(path)),
        "duckdb": duckdb.sql(f"SELECT count(*) FROM '{path}'").fetchall()[0][0],
        "pandas": len(pd.read_parquet(path)),
    }


def settle(path):
    """Wait until the size of a file has not changed for a second."""
    sizes = [-1, -2]
    while sizes[-1] != sizes[-2] or sizes[-1] == 0:
        sizes.append(path.stat().st_size)
        time.sleep(1)
        if len(sizes) > 30:
            break


print(f"{ROWS} rows were to be written, and the source failed after {GOOD}")
seen = []
for name, write in (("pyarrow ParquetWriter", by_pyarrow), ("polars sink_parquet", by_polars)):
    path = folder / f"{write.__name__}.parquet"
    try:
        write(path)
        raised = "nothing"
    except Exception as error:
        raised = type(error).__name__
    settle(path)
    found = rows(path)
    seen.append((raised != "nothing", *found.values()))
    print(f"{name:22}  raised {raised:14}  " + ", ".join(f"{reader} {number}" for reader, number in found.items()) + " rows")
expected = all(raised and {*numbers} == {GOOD} for raised, *numbers in seen)
print("as described" if expected else "CHANGED: this is not what was described")
sys.exit(not expected)
PYTHON

run python3 -m venv "$folder/venv"
run "$folder/venv/bin/pip" install -qq --disable-pip-version-check pyarrow==26.0.1 polars==2.1.0 duckdb==2.0.1 pandas==3.1.1
run "$folder/venv/bin/python" "$folder/finding.py" "$folder"
