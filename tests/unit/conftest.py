"""One hypothesis profile for every machine: the same examples on each run, no deadline, nothing left on disk.

Others with another `TEST_SEED`. And a folder in memory.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

settings.register_profile("unit", derandomize="TEST_SEED" not in os.environ, database=None, deadline=None, max_examples=100)
settings.load_profile("unit")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: on a disk, what is written a hundred times waits for it a thousand times."""
    if not os.access("/dev/shm", os.W_OK):  # noqa: S108 - a file system that is in memory
        yield tmp_path
        return
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)
