"""A tenant's trail in a file that proves itself: written here, read by ``verify_bundle.py``.

JSON lines. The first says whose events they are and what they follow, one line for each event
follows, then one for each checkpoint, and the last holds the SHA-256 of all before it, signed with
the key of checkpoints where there is one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from authsvc.audit_chain import canonical
from authsvc.checkpoints import Checkpoint
from authsvc.errors import InputError, StartError
from authsvc.records import AuditEvent, Stamp

FORMAT = "authsvc audit bundle"
VERSION = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class BundleWriter:
    """Writes one bundle to a file that is not there yet, mode 0600; complete or absent."""

    def __init__(self, path: Path) -> None:
        """Raises StartError if the file is there or cannot be made."""
        self.path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._digest = hashlib.sha256()
        if path.exists():
            raise StartError(f"{path} is there already and was left as it is")
        try:
            flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file: BinaryIO = os.fdopen(os.open(self._partial, flags, 0o600), "wb")
        except OSError as error:
            raise StartError(f"{path} cannot be made ({error.strerror})") from None

    def begin(self, tenant_id: UUID, name: str, after: Stamp, until: Stamp, now: datetime) -> None:
        """Say whose events follow, and between which states."""
        self._line(
            {
                "format": FORMAT,
                "version": VERSION,
                "tenant": str(tenant_id),
                "name": name,
                "after": [after.revision, after.head.hex()],
                "until": [until.revision, until.head.hex()],
                "exported_at": now.isoformat(),
            }
        )

    def events(self, events: Iterable[AuditEvent]) -> None:
        """Write events in order."""
        for event in events:
            self._line(
                {
                    "seq": event.seq,
                    "at": (event.at - _EPOCH) // _MICROSECOND,
                    "payload": base64.b64encode(event.payload).decode(),
                    "payload_hash": event.payload_hash.hex(),
                    "hash": event.hash.hex(),
                    "mac": None if event.mac is None else event.mac.hex(),
                }
            )

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, which proves the events up to what it names."""
        self._write(checkpoint.line + b"\n")

    def end(self, key: Ed25519PrivateKey | None) -> None:
        """Sign what was written and put the file in its place, durably. Raises StartError."""
        digest = self._digest.digest()
        self._line(
            {
                "sha256": digest.hex(),
                "signature": None if key is None else key.sign(digest).hex(),
            }
        )
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.link(self._partial, self.path)
            os.unlink(self._partial)
            folder = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except OSError as error:
            raise StartError(f"{self.path} cannot be written ({error.strerror})") from None

    def give_up(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _line(self, content: dict[str, object]) -> None:
        self._write(canonical(content) + b"\n")

    def _write(self, line: bytes) -> None:
        self._digest.update(line)
        try:
            self._file.write(line)
        except OSError as error:
            raise StartError(f"{self.path} cannot be written ({error.strerror})") from None


class BundleReader:
    """Reads the events of a bundle. Raises InputError for a file that is none.

    ``tenant_id``, ``after`` and ``until`` are what its first line says; nothing is verified here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            first = file.readline()
        try:
            head = json.loads(first)
            known = (head["format"], head["version"]) == (FORMAT, VERSION)
            self.tenant_id = UUID(head["tenant"])
            self.after = Stamp(head["after"][0], bytes.fromhex(head["after"][1]))
            self.until = Stamp(head["until"][0], bytes.fromhex(head["until"][1]))
        except (ValueError, KeyError, TypeError, IndexError):
            known = False
        if not known:
            raise InputError(f"{path} is no audit bundle of this version")

    def events(self) -> Iterator[AuditEvent]:
        """Its events in order. Raises InputError for a line that cannot be read."""
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                try:
                    said = json.loads(line)
                    if "seq" not in said:
                        return
                    yield AuditEvent(
                        said["seq"],
                        _EPOCH + said["at"] * _MICROSECOND,
                        bytes.fromhex(said["payload_hash"]),
                        bytes.fromhex(said["hash"]),
                        base64.b64decode(said["payload"]),
                        None if said["mac"] is None else bytes.fromhex(said["mac"]),
                    )
                except (ValueError, KeyError, TypeError):
                    raise InputError(f"{self.path} cannot be read: a line is damaged") from None
