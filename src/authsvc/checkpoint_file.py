"""A file of checkpoints outside the database, one a line, that is only ever added to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from authsvc.checkpoints import Checkpoint, from_line
from authsvc.errors import StartError

_TAIL = 64 * 1024


class CheckpointFile:
    """The file; it is made with mode 0600 when the first line is written."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()

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
        """The newest checkpoint in it, looked for from its end. Raises StartError."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StartError(f"{self.path} cannot be read ({error.strerror})") from None
        with file:
            size, tail = file.seek(0, os.SEEK_END), _TAIL
            while True:
                start = max(0, size - tail)
                file.seek(start)
                lines = file.read(size - start).splitlines()
                # The first one may be cut, unless it is the file's first.
                for line in reversed(lines[1:] if start else lines):
                    try:
                        return from_line(line)
                    except ValueError:
                        continue
                if not start:
                    break
                tail *= 4
        if len(lines) > 1:
            raise StartError(f"{self.path} holds no checkpoints: is it another file?")
        return None

    def add(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Append those that follow its last one, durably; other processes may do the same.

        Raises OSError, StartError.
        """
        flags = os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        with os.fdopen(descriptor, "rb+", buffering=0) as file:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            last = self.last()
            reached = 0 if last is None else last.number
            lines = [c.line + b"\n" for c in checkpoints if c.number > reached]
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    lines.insert(0, b"\n")
            if lines:
                file.write(b"".join(lines))
                os.fsync(descriptor)
