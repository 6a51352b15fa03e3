"""The SQLite file on disk: made private from its first byte, and served by one process."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from pathlib import Path
from urllib.parse import quote

from authsvc.errors import BusyError, DamagedError, StartError

PRIVATE = 0o600
_BESIDE = ("", "-wal", "-shm", "-journal")
_CHECKED_WHOLE = 32 * 1024 * 1024
_HEADER = b"SQLite format 3\x00"


def prepare_file(path: Path, *, refuse_open_modes: bool = False) -> list[str]:
    """Make the file if it is not there, mode 0600, and see that nobody else can read it.

    A file that others can read is closed to them, with a warning in the returned list, or refused
    with ``refuse_open_modes``. SQLite gives the files beside it (-wal, -shm) the same mode.
    Raises StartError, DamagedError.
    """
    made = _make(path)
    warnings = [] if made else _make_private(path, refuse=refuse_open_modes)
    if not made:
        _look_inside(path)
    return warnings


def _make(path: Path) -> bool:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(path, flags, PRIVATE))
    except FileExistsError:
        return False
    except OSError as error:
        raise _unusable(path, error) from None
    return True


def _unusable(path: Path, error: OSError) -> StartError:
    if isinstance(error, FileNotFoundError):
        return StartError(
            f"The folder {path.parent} does not exist: make it, or set AUTH_SQLITE_PATH"
        )
    return StartError(
        f"The file {path} cannot be made ({error.strerror}):"
        " make its folder writable, or set AUTH_SQLITE_PATH"
    )


def _make_private(path: Path, *, refuse: bool) -> list[str]:
    warnings = []
    if not os.access(path.parent, os.W_OK, effective_ids=True):
        raise StartError(f"{path.parent} cannot be written, and SQLite keeps files beside {path}")
    for suffix in _BESIDE:
        file = Path(f"{path}{suffix}")
        try:
            found = os.lstat(file)
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(found.st_mode):
            raise StartError(f"{file} is not a regular file: set AUTH_SQLITE_PATH to one")
        if found.st_uid != os.geteuid() and os.geteuid() != 0:
            raise StartError(f"{file} belongs to another user: run as its owner, or chown it")
        if not os.access(file, os.R_OK | os.W_OK, effective_ids=True):
            raise StartError(f"{file} cannot be written: chmod 600 {file}")
        if found.st_mode & 0o077:
            if refuse:
                raise StartError(f"{file} can be read by other users: chmod 600 {file}")
            os.chmod(file, PRIVATE)
            warnings.append(f"{file} could be read by other users; its mode is now 0600")
    return warnings


def _look_inside(path: Path) -> None:
    """Refuse a file that is not a database, or one whose structure is damaged."""
    # Reading through an own descriptor would drop SQLite's locks of this process on closing it,
    # so this is done before any connection exists.
    with path.open("rb") as file:
        header = file.read(len(_HEADER))
    if header and header != _HEADER:
        raise DamagedError(
            f"{path} is not an SQLite database: restore it from a backup, or move it away"
        )
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=5)
        try:
            # A large file is not read whole at every start; damage is then met at first touch.
            small = path.stat().st_size <= _CHECKED_WHOLE
            check = "quick_check(1)" if small else "schema_version"
            answered = connection.execute(f"PRAGMA {check}").fetchone()[0]
            found = answered if small else "ok"
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise StartError(f"{path} cannot be opened: {error}") from None
    except sqlite3.DatabaseError:
        found = "damaged"
    if found != "ok":
        raise DamagedError(f"{path} is damaged and is not served: restore it from a backup")


class ServingLock:
    """Held by the one process that serves a file; commands beside it do not take it."""

    def __init__(self, path: Path) -> None:
        name = Path(f"{path}.serving")
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(name, flags, PRIVATE)
        except OSError as error:
            raise _unusable(name, error) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise BusyError(
                f"Another authsvc serves {path} already: SQLite is served by one process."
                " Stop it, set AUTH_SQLITE_PATH, or use PostgreSQL for several"
            ) from None

    def release(self) -> None:
        """Let another process serve the file."""
        os.close(self._descriptor)
