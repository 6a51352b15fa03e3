"""The SQLite file: private from its first byte, refused when it is damaged, served by one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from authsvc.database import Database
from authsvc.errors import BusyError, DamagedError, StartError
from authsvc.sqlite_file import ServingLock, prepare_file

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file may be made."""
    return tmp_path / "auth.sqlite3"


@pytest.fixture
def copied(sqlite_template: Path, path: Path) -> Path:
    """A migrated file, with rows enough for several pages."""
    prepare_file(path)
    shutil.copyfile(sqlite_template, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE filling (content TEXT)")
        connection.execute("CREATE INDEX filled ON filling (content)")
        row = [("x" * 500,)]
        connection.executemany("INSERT INTO filling VALUES (?)", row * 400)
    return path


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


@pytest.fixture
def as_another(open_folder: Path) -> Iterator[None]:
    """To root nothing is forbidden: be somebody else for the test then."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def mode(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def contents(path: Path) -> list[str]:
    """What lies beside the file."""
    return sorted(found.name for found in path.parent.iterdir())


# Modes


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_new_file_is_its_owners_alone(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert prepare_file(path) == []
    finally:
        os.umask(before)
    assert mode(path) == 0o600 & ~umask
    assert path.stat().st_size == 0


async def test_what_sqlite_makes_beside_it_is_the_owners_alone_too(
    copied: Path, tmp_path: Path
) -> None:
    before = os.umask(0)
    database = Database.sqlite(copied)
    try:
        async with database.writer.begin() as connection:
            await connection.exec_driver_sql("INSERT INTO filling VALUES ('more')")
        found = {name: mode(tmp_path / name) for name in contents(copied)}
    finally:
        await database.dispose()
        os.umask(before)
    assert found == dict.fromkeys((f"{copied.name}{end}" for end in ("", "-shm", "-wal")), 0o600)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("found", [0o644, 0o640, 0o606, 0o777])
def test_an_open_file_is_closed_with_a_warning_or_refused(
    copied: Path, suffix: str, found: int
) -> None:
    file = Path(f"{copied}{suffix}")
    file.touch()
    file.chmod(found)
    with pytest.raises(StartError) as refused:
        prepare_file(copied, refuse_open_modes=True)
    assert refused.value.exit_code == 3
    assert f"chmod 600 {file}" in str(refused.value)
    assert mode(file) == found

    (warning,) = prepare_file(copied)
    assert warning.startswith(f"{file} could be read by other users")
    assert not file.exists() or mode(file) == 0o600
    assert prepare_file(copied, refuse_open_modes=True) == []


# What is not a file to be used


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    for use in (prepare_file, ServingLock):
        with pytest.raises(StartError, match="does not exist: make it, or set AUTH_SQLITE_PATH"):
            use(tmp_path / "missing" / "auth.sqlite3")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_place_of_the_file(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StartError, match="is not a regular file"):
        prepare_file(path)


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
@pytest.mark.parametrize("dangling", [True, False])
def test_a_symbolic_link_is_not_followed(
    copied: Path, tmp_path: Path, suffix: str, dangling: bool
) -> None:
    target = tmp_path / "target"
    if not dangling:
        target.write_bytes(b"somebody's")
        target.chmod(0o644)
    link = Path(f"{copied}{suffix}")
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    with pytest.raises(StartError, match="is not a regular file"):
        prepare_file(copied)
    assert target.exists() is not dangling
    if not dangling:
        assert (target.read_bytes(), mode(target)) == (b"somebody's", 0o644)


def test_a_fifo_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path, 0o600)
    with pytest.raises(StartError, match="is not a regular file"):
        prepare_file(path)


def test_a_folder_that_cannot_be_written(open_folder: Path, request: pytest.FixtureRequest) -> None:
    path = open_folder / "auth.sqlite3"
    prepare_file(path)
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    open_folder.chmod(0o555)
    request.getfixturevalue("as_another")
    with pytest.raises(StartError, match="cannot be written, and SQLite keeps files beside"):
        prepare_file(path)
    for use in (prepare_file, ServingLock):
        with pytest.raises(StartError, match=r"cannot be made \(Permission denied\)"):
            use(open_folder / "other.sqlite3")


def test_a_file_of_somebody_else(open_folder: Path, request: pytest.FixtureRequest) -> None:
    if os.geteuid() != 0:
        pytest.skip("Only root can give a file away")
    path = open_folder / "auth.sqlite3"
    prepare_file(path)
    open_folder.chmod(0o777)
    request.getfixturevalue("as_another")
    with pytest.raises(StartError, match="belongs to another user"):
        prepare_file(path)


def test_a_file_that_may_not_be_written(open_folder: Path, request: pytest.FixtureRequest) -> None:
    path = open_folder / "auth.sqlite3"
    prepare_file(path)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    path.chmod(0o400)
    open_folder.chmod(0o777)
    request.getfixturevalue("as_another")
    with pytest.raises(StartError, match="cannot be written: chmod 600"):
        prepare_file(path)


# Damage


def test_a_sound_file_and_an_empty_one_are_accepted(copied: Path, tmp_path: Path) -> None:
    assert prepare_file(copied) == []
    empty = tmp_path / "empty.sqlite3"
    assert prepare_file(empty) == []
    assert prepare_file(empty) == []


@pytest.mark.parametrize("content", [b"{}", b"SQLite format 2\0" * 100, b"\0" * 8192], ids=len)
def test_what_is_not_a_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(DamagedError, match="is not an SQLite database") as refused:
        prepare_file(path)
    assert refused.value.exit_code == 74
    assert path.read_bytes() == content


def truncate(path: Path, share: float) -> None:
    """Cut the file off."""
    os.truncate(path, int(path.stat().st_size * share))


def overwrite(path: Path, share: float) -> None:
    """Put noise over three pages."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(int(size * share))
        file.write(b"\xa5" * 3 * 4096)


@pytest.mark.parametrize("damage", [truncate, overwrite])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.9])
def test_a_damaged_file_is_not_served(copied: Path, damage: object, share: float) -> None:
    assert callable(damage)
    damage(copied, share)
    with pytest.raises(DamagedError, match="is damaged and is not served") as refused:
        prepare_file(copied)
    assert refused.value.exit_code == 74
    assert str(copied) in str(refused.value)


# Serving


def test_one_process_serves_a_file(path: Path) -> None:
    lock = ServingLock(path)
    with pytest.raises(BusyError, match=f"Another authsvc serves {path} already") as refused:
        ServingLock(path)
    assert refused.value.exit_code == 75
    assert mode(Path(f"{path}.serving")) == 0o600
    ServingLock(path.with_name("other.sqlite3")).release()
    # What is served can still be prepared, as commands beside the server do.
    assert prepare_file(path) == []
    lock.release()
    ServingLock(path).release()


def test_the_lock_ends_with_its_process(path: Path) -> None:
    holding = (
        "import sys, pathlib, authsvc.sqlite_file as it\n"
        "lock = it.ServingLock(pathlib.Path(sys.argv[1]))\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BusyError):
            ServingLock(path)
        process.kill()
        process.wait()
    ServingLock(path).release()


def test_a_lock_that_is_a_link_is_refused(path: Path, tmp_path: Path) -> None:
    Path(f"{path}.serving").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="cannot be made"):
        ServingLock(path)
    assert not (tmp_path / "elsewhere").exists()
