"""Work that one process does for all: whoever asks first, until its transaction ends."""

from __future__ import annotations

import hashlib

from sqlalchemy import text

from authsvc.database import Transaction

_TRY = text("SELECT pg_try_advisory_xact_lock(:key)")


async def first_here(tx: Transaction, work: str) -> bool:
    """Whether no other process is at this work right now; it is ours until the transaction ends.

    A write transaction of SQLite is alone anyway.
    """
    if tx.engine_name == "sqlite":
        return True
    digest = hashlib.sha256(f"authsvc {work}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)
    return bool((await tx.execute(_TRY, {"key": key})).scalar_one())
