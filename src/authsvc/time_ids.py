"""Ids of 16 bytes that sort by time and need no sequence: microseconds since 1970, then chance."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

SIZE = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def new_time_id(at: datetime) -> bytes:
    """An id nobody else makes, for something of this instant."""
    return first_id_of(at) + os.urandom(8)


def first_id_of(at: datetime) -> bytes:
    """What no id of this instant or a later one sorts before (8 bytes: a prefix of all of them)."""
    return ((at - _EPOCH) // _MICROSECOND).to_bytes(8, "big")
