"""Ids are packed, and are the same ids all the same."""

from uuid import UUID, uuid4

import pytest
from prefect_artifact_retention.stores.ids import Ids

IDS = [uuid4() for _number in range(5)]


def test_packed_ids_are_read_as_they_were_given() -> None:
    """By iteration, by index, and as members of a set of Python's own ids."""
    packed = Ids(iter(IDS))
    assert list(packed) == IDS
    assert (packed[0], packed[-1], len(packed)) == (IDS[0], IDS[-1], 5)
    assert set(packed) == set(IDS)
    assert all(isinstance(each, UUID) for each in packed)
    assert not Ids()
    with pytest.raises(IndexError):
        packed[5]


@pytest.mark.parametrize("part", [slice(2), slice(2, None), slice(1, 3), slice(-2, None), slice(9, None)])
def test_a_slice_of_packed_ids_is_packed(part: slice) -> None:
    """Of consecutive ones; nothing takes every second of them."""
    sliced = Ids(IDS)[part]
    assert isinstance(sliced, Ids)
    assert list(sliced) == IDS[part]
    with pytest.raises(ValueError, match="without a step"):
        sliced[::-1]
