from __future__ import annotations

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwexpire import bloom
from pwexpire.bloom import BloomFilter, build_filter, count_bytes, count_parts

KEYS = st.sets(st.text(max_size=40), max_size=200)


@pytest.mark.parametrize("part_bytes", [1, 8, 2**20])
@settings(max_examples=50, deadline=None)
@given(keys=KEYS, count=st.integers(0, 300))
def test_it_forgets_nobody(part_bytes, keys, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bloom, "PART_BYTES", part_bytes)
        found = build_filter(iter(keys), count)
        assert all(key in found for key in keys)
        assert sum(map(len, found.parts)) * 8 == found.bits == count_bytes(count) * 8
        assert len(found.parts) == count_parts(count_bytes(count))
        # As it is stored and read again.
        assert all(key in BloomFilter(found.bits, tuple(found.parts)) for key in keys)


@pytest.mark.parametrize("make", [str, lambda n: str(uuid.UUID(int=n))], ids=["int", "uuid"])
def test_it_takes_few_others_for_one(make):
    found = build_filter(map(make, range(20_000)), 20_000)
    others = sum(make(number) in found for number in range(20_000, 60_000))
    assert others <= 400, "one in a hundred"


def test_a_million_users_take_less_than_four_mebibytes():
    assert count_bytes(1_000_000) <= 1.5 * 2**20
    assert count_bytes(10_000_000) <= 15 * 2**20
    assert count_parts(count_bytes(10_000_000)) == 15


def test_nobody_is_in_an_empty_one():
    assert "1" not in build_filter([], 0)


def test_the_place_of_a_key_never_changes():
    """Filters are stored, and read by processes of later releases."""
    assert build_filter(["1", "alice"], 10).parts == (
        bytes.fromhex("000000000000044200020008520000"),
    )
