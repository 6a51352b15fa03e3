"""What a database refuses, as an error of ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy import exc

from authsvc.errors import Busy, ReadOnly, Unavailable

log = structlog.get_logger("authsvc.database")

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_LOCK_NOT_AVAILABLE = {"55P03", "40P01", "40001", "57014"}
_READ_ONLY = {"25006"}
_REFUSED = {"28000", "28P01", "3D000", "42501", "42P01"}
_SQLITE_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def sqlite_code(error: BaseException | None) -> int:
    """The primary result code; extended codes carry more in their upper bits."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def sqlstate(error: BaseException | None) -> str:
    """PostgreSQL's five characters; empty where there are none."""
    return str(getattr(error, "sqlstate", "") or "")


@contextmanager
def refusals() -> Iterator[None]:
    """Turn a failing database into an error of ours; a bug (a constraint, bad data) stays one."""
    try:
        yield
    except (exc.IntegrityError, exc.DataError):
        raise
    except exc.DBAPIError as error:
        raise refusal(error.orig) from error
    except (exc.TimeoutError, exc.DisconnectionError, OSError, TimeoutError) as error:
        raise refusal(error) from error


def refusal(error: BaseException | None) -> Unavailable:
    """The error of ours for one of a driver."""
    state = sqlstate(error) or str(getattr(error, "sqlite_errorname", ""))
    log.warning("database_refused", kind=type(error).__name__, state=state)
    if state in _LOCK_NOT_AVAILABLE or sqlite_code(error) in _SQLITE_BUSY:
        return Busy("Others are writing to this tenant; nothing was changed, try again")
    if state in _REFUSED:
        return Unavailable(
            "The database refuses this service: its operator has to look at the role, the password"
            " and the grants",
            retry_after=30,
        )
    if state in _READ_ONLY or sqlite_code(error) == sqlite3.SQLITE_READONLY:
        return ReadOnly("The database accepts no writes right now; nothing was changed")
    if sqlite_code(error) == sqlite3.SQLITE_FULL:
        return Unavailable("The database's disk is full; nothing was changed", retry_after=30)
    return Unavailable()
