"""A job that shows how far it is: python examples/long_job.py."""

import time

from prefect import flow
from prefect_artifact_retention import progress, track

STEP_SECONDS = 0.01


@flow
def long_job(rows: int = 300) -> None:
    """Load rows, then check them."""
    with progress(key="load", total=rows, description="Loading", on_error="log") as bar:
        for _batch in range(0, rows, 10):
            time.sleep(STEP_SECONDS)
            bar.advance(10)
    for _row in track(range(rows // 10), key="check", description="Checking", on_error="log"):
        time.sleep(STEP_SECONDS)


if __name__ == "__main__":
    long_job()
