"""Ten writers append to one log at once, and nobody's entry is lost: python examples/append_only_log.py."""

from prefect import flow, task
from prefect_artifact_retention import append_markdown

WRITERS = 10


@task
def load(source: int) -> None:
    """Stand in for a load, and say that it is done."""
    append_markdown(f"- source {source} is loaded", key="load-log", separator="\n", max_entries=500)


@flow
def append_only_log() -> None:
    """Load all sources at once."""
    load.map(range(WRITERS)).wait()


if __name__ == "__main__":
    append_only_log()
