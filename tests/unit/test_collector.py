"""Python's garbage collector is as it was, whatever runs at once in a process."""

import gc
from collections.abc import Iterator
from itertools import permutations

import pytest
from prefect_artifact_retention.tasks.collector import MAX_FROZEN_BY_PYTHON, frozen, without_collector


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Nothing stays frozen or disabled after a test."""
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("order", sorted({*permutations("aabbcc")}), ids="".join)
def test_runs_that_overlap_leave_the_collector_as_it_was(order: tuple[str, ...]) -> None:
    """A sweep cleans up several targets at once, which begin and end in any order."""
    for kind in (without_collector, frozen):
        runs = {}
        for name in order:
            if name in runs:
                runs[name].__exit__(None, None, None)
            else:
                runs[name] = kind()
                runs[name].__enter__()
        assert gc.isenabled()
        assert not gc.get_freeze_count()


def test_what_the_process_has_frozen_itself_stays_frozen() -> None:
    """As a server may do before it forks; and nothing of a run is frozen with it."""
    gc.freeze()
    before = gc.get_freeze_count()
    new = [[number] for number in range(100_000)]
    with frozen():
        pass
    assert 0 < gc.get_freeze_count() <= before
    del new


def test_an_error_leaves_nothing_frozen() -> None:
    """Or disabled."""

    def fail() -> None:
        before = gc.get_freeze_count()
        with without_collector(), frozen():
            # Python 3.12 has some frozen from its start.
            assert gc.get_freeze_count() > before + MAX_FROZEN_BY_PYTHON
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert gc.isenabled()
    assert not gc.get_freeze_count()
