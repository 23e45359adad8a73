"""A set of user keys, twelve bits each: it forgets none, and takes one in 150 others for one."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

BITS_PER_KEY = 12
# The bits are kept, stored and read in parts: databases bound the size of a statement, and nothing
# of a filter has to be copied as a whole.
PART_BYTES = 2**20
unpack_positions = struct.Struct("<4I").unpack


@dataclass(frozen=True, slots=True)
class BloomFilter:
    """``bits``: how many there are in all ``parts``."""

    bits: int
    parts: tuple[bytes, ...]

    def __contains__(self, key: str) -> bool:
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        for position in unpack_positions(digest):
            place, bit = divmod(position % self.bits, 8)
            if not self.parts[place // PART_BYTES][place % PART_BYTES] >> bit & 1:
                return False
        return True


def count_bytes(keys: int) -> int:
    """Return the size of a filter for so many keys."""
    return max(1, -(-keys * BITS_PER_KEY // 8))


def count_parts(size: int) -> int:
    """Return into how many parts a filter of ``size`` bytes is divided."""
    return -(-size // PART_BYTES)


def build_filter(keys: Iterable[str], count: int) -> BloomFilter:
    """Return the filter of ``keys``; with more than ``count`` of them it is right more seldom."""
    bits = bytearray(count_bytes(count))
    size, blake2b = len(bits) * 8, hashlib.blake2b
    for key in keys:
        for position in unpack_positions(blake2b(key.encode(), digest_size=16).digest()):
            position %= size
            bits[position >> 3] |= 1 << (position & 7)
    parts = (bytes(bits[start : start + PART_BYTES]) for start in range(0, len(bits), PART_BYTES))
    return BloomFilter(size, tuple(parts))
