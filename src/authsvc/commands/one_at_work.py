"""One command at a time: who begins a second one is told who is at work.

What holds the others off ends with the process, however that ends: a lock on a file beside a
SQLite database, an advisory lock of a session of PostgreSQL. Nothing depends on it but clarity:
two at work would find what the other has done already.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from authsvc.errors import BusyError, Unavailable
from authsvc.settings import Settings, SqliteFile
from authsvc.sqlite_file import PRIVATE

_LOCK = 0x61757468_73766363  # "authsvcc"
_LONGEST_NAME = 63
_WHO = (
    "SELECT application_name, backend_start FROM pg_stat_activity JOIN pg_locks USING (pid)"
    " WHERE locktype = 'advisory' AND granted AND classid = $1 AND objid = $2"
)


@asynccontextmanager
async def one_at_work(settings: Settings, command: str) -> AsyncIterator[None]:
    """Hold the place of the one at work. Raises BusyError, saying who has it."""
    who = f"{command} (process {os.getpid()} on {socket.gethostname()})"
    target = settings.database
    if isinstance(target, SqliteFile):
        with _file(Path(f"{target.path}.at-work")) as descriptor:
            _take(descriptor, who)
            yield
    else:
        connection = await _connect(settings, who)
        try:
            await _take_on_server(connection)
            yield
        finally:
            await connection.close()


def _refused(who: str) -> BusyError:
    return BusyError(f"Another is at work: {who}. Let it end, or stop it, and run this again")


class _file:
    """An open descriptor of the lock file for as long as the context lasts."""

    def __init__(self, path: Path) -> None:
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, PRIVATE)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_exception: object) -> None:
        os.close(self._descriptor)


def _take(descriptor: int, who: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refused(os.pread(descriptor, 400, 0).decode(errors="replace")) from None
    since = datetime.now(UTC).strftime("%H:%M:%S UTC")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{who}, since {since}".encode(), 0)


async def _connect(settings: Settings, who: str) -> asyncpg.Connection:
    # Straight to the server, as the gate: behind a pooler a session is nobody's own.
    target = settings.gate
    if target is None:
        raise Unavailable
    options = {"timeout": 5, **target.driver_kwargs()}
    options["server_settings"] = {
        **options.get("server_settings", {}),
        "application_name": who[:_LONGEST_NAME],
    }
    if len(target.hosts) > 1:
        options.setdefault("target_session_attrs", "primary")
    try:
        return await asyncpg.connect(**options)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Unavailable from error


async def _take_on_server(connection: asyncpg.Connection) -> None:
    if await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
        return
    row = await connection.fetchrow(_WHO, _LOCK >> 32, _LOCK & 0xFFFFFFFF)
    who = "somebody who has just ended"
    if row is not None:
        since = row["backend_start"].astimezone(UTC).strftime("%H:%M:%S UTC")
        who = f"{row['application_name']}, since {since}"
    raise _refused(who)
