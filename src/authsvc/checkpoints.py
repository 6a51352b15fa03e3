"""Checkpoints: signed lists of tenants' heads, each naming the one before. Pure.

A checkpoint's body is canonical JSON:

    {"version": 1, "number": n, "at": ISO 8601, "previous": SHA-256 of the one before,
     "heads": {tenant: [revision, head]}, "anchors": {tenant: [seq, hash]},
     "erased": {tenant: [revision, head]}}

with hashes in hexadecimal. The signature is Ed25519 (RFC 8032) of the body. One line of a file of
checkpoints is ``{"checkpoint": body as text, "signature": hexadecimal}``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from authsvc.audit_chain import canonical
from authsvc.records import Stamp

NOTHING_BEFORE = bytes(32)
"""What the first checkpoint says of the one before it."""

States = Mapping[UUID, Stamp]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint as it is stored: what it says is read by ``said``."""

    number: int
    at: datetime
    body: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def hash(self) -> bytes:
        """What the next one names this one by."""
        return hashlib.sha256(self.body + self.signature).digest()

    @property
    def line(self) -> bytes:
        """This checkpoint as a line of a file, without the end of the line."""
        return canonical({"checkpoint": self.body.decode(), "signature": self.signature.hex()})


@dataclass(frozen=True, slots=True)
class Said:
    """What a checkpoint says."""

    number: int
    previous: bytes
    heads: dict[UUID, Stamp]
    anchors: dict[UUID, Stamp]
    erased: dict[UUID, Stamp]


def signed(
    key: Ed25519PrivateKey,
    before: Checkpoint | None,
    at: datetime,
    heads: States,
    anchors: States,
    erased: States,
) -> Checkpoint:
    """The checkpoint that follows ``before`` (None: the first)."""
    number = 1 if before is None else before.number + 1
    previous = NOTHING_BEFORE if before is None else before.hash
    body = canonical(
        {
            "version": 1,
            "number": number,
            "at": at.isoformat(),
            "previous": previous.hex(),
            "heads": _written(heads),
            "anchors": _written(anchors),
            "erased": _written(erased),
        }
    )
    return Checkpoint(number, at, body, key.sign(body))


def _written(states: States) -> dict[str, list[object]]:
    return {str(tenant): [stamp.revision, stamp.head.hex()] for tenant, stamp in states.items()}


def said(body: bytes) -> Said:
    """Read a body. Raises ValueError if it is none."""
    try:
        found = json.loads(body)
        if found["version"] != 1:
            raise ValueError("a checkpoint of a version that is not known")
        return Said(
            int(found["number"]),
            bytes.fromhex(found["previous"]),
            _read(found["heads"]),
            _read(found["anchors"]),
            _read(found["erased"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a checkpoint") from error


def _read(states: Mapping[str, list[object]]) -> dict[UUID, Stamp]:
    return {
        UUID(tenant): Stamp(int(str(revision)), bytes.fromhex(str(head)))
        for tenant, (revision, head) in states.items()
    }


def is_signed(checkpoint: Checkpoint, key: Ed25519PublicKey) -> bool:
    """Whether the signature is that key's."""
    try:
        key.verify(checkpoint.signature, checkpoint.body)
    except InvalidSignature:
        return False
    return True


def from_line(line: bytes) -> Checkpoint:
    """Read a line of a file of checkpoints. Raises ValueError if it is none."""
    try:
        found = json.loads(line)
        body = found["checkpoint"].encode()
        at = datetime.fromisoformat(json.loads(body)["at"])
        return Checkpoint(said(body).number, at, body, bytes.fromhex(found["signature"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a checkpoint") from error


def first_broken(checkpoints: Iterable[Checkpoint], key: Ed25519PublicKey | None) -> str | None:
    """What is wrong with a run of checkpoints, None if nothing is.

    They must follow each other without a gap; the run may begin anywhere. Without a key signatures
    are not looked at.
    """
    before: Checkpoint | None = None
    for checkpoint in checkpoints:
        number = checkpoint.number
        try:
            words = said(checkpoint.body)
        except ValueError:
            return f"checkpoint {number} cannot be read"
        if words.number != number:
            return f"checkpoint {number} says that it is number {words.number}"
        if key is not None and not is_signed(checkpoint, key):
            return f"checkpoint {number} is not signed with this key"
        if before is not None and number != before.number + 1:
            return f"checkpoint {before.number + 1} is missing"
        expected = NOTHING_BEFORE if number == 1 else None if before is None else before.hash
        if expected is not None and words.previous != expected:
            return f"checkpoint {number} does not follow the one before it"
        before = checkpoint
    return None
