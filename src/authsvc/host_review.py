"""A look at what other users of this machine can see: arguments of processes, database files."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from authsvc.production import Check

_SHORTEST = 8
_PROCESSES = Path("/proc")


def argument_checks(secrets: Mapping[str, str]) -> Iterator[Check]:
    """Whether a secret, given by its variable, stands in the arguments of any process (item 7)."""
    lines = []
    for path in _PROCESSES.glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue  # It ended, or is nobody's business.
    shown = [
        name
        for name, value in secrets.items()
        if len(value) >= _SHORTEST and any(value.encode() in line for line in lines)
    ]
    for name in shown:
        evidence = f"{name}: stands in the arguments of a process"
        yield Check(7, "fail", evidence, "give it by a file, and make a new one")
    if not shown and lines:
        yield Check(7, "pass", "no secret stands in the arguments of any process")


def database_file_checks(path: Path) -> Iterator[Check]:
    """Whether others have access to a SQLite file and those beside it (item 3)."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        file = Path(f"{path}{suffix}")
        if file.exists() and stat.S_IMODE(file.lstat().st_mode) & 0o077:
            yield Check(3, "fail", f"{file}: others have access to it", "chmod 600 it", fatal=True)
