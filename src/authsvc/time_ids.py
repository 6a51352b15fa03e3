"""Ids of 16 bytes that sort by time and need no sequence.

Microseconds since 1970 (8 bytes), a number that this process counts on (3), chance (5): what one
process makes within a microsecond keeps its order.
"""

from __future__ import annotations

import itertools
import os
from datetime import UTC, datetime, timedelta

SIZE = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_numbers = itertools.count()


def new_time_id(at: datetime) -> bytes:
    """An id nobody else makes, for something of this instant."""
    return first_id_of(at) + (next(_numbers) & 0xFFFFFF).to_bytes(3, "big") + os.urandom(5)


def first_id_of(at: datetime) -> bytes:
    """What no id of this instant or a later one sorts before (8 bytes: a prefix of all of them)."""
    return ((at - _EPOCH) // _MICROSECOND).to_bytes(8, "big")
