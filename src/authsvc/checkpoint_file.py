"""A file of checkpoints outside the database, one a line, that is only ever added to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from authsvc.checkpoints import Checkpoint, from_line
from authsvc.errors import StartError


class CheckpointFile:
    """The file; it is made with mode 0600 when the first line is written."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self._read_to = 0
        self._reached = 0

    def __iter__(self) -> Iterator[Checkpoint]:
        """Its checkpoints, none if there is no file.

        A line that cannot be read is passed over, because a machine may have stopped while it was
        written: if it was one, its number is missing. Raises StartError for another kind of file.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StartError(f"{self.path} cannot be read ({error.strerror})") from None
        with file:
            understood, lines = 0, 0
            for line in file:
                lines += 1
                try:
                    checkpoint = from_line(line)
                except ValueError:
                    continue
                understood += 1
                yield checkpoint
        if lines > 1 and not understood:
            raise StartError(f"{self.path} holds no checkpoints: is it another file?")

    def last(self) -> Checkpoint | None:
        """The newest checkpoint in it. Raises StartError."""
        newest = None
        for newest in self:  # noqa: B007
            pass
        return newest

    def add(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Append those that follow its last one, durably; other processes may do the same.

        Raises OSError.
        """
        flags = os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        with os.fdopen(descriptor, "rb+", buffering=0) as file:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            file.seek(self._read_to)
            known = file.read()
            for line in known.splitlines():
                try:
                    self._reached = max(self._reached, from_line(line).number)
                except ValueError:
                    continue
            lines = [c.line + b"\n" for c in checkpoints if c.number > self._reached]
            if known and not known.endswith(b"\n"):
                lines.insert(0, b"\n")
            file.write(b"".join(lines))
            os.fsync(descriptor)
            self._read_to = file.seek(0, os.SEEK_END)
            self._reached = max([self._reached, *(c.number for c in checkpoints)])
