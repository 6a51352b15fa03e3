"""The hash chain of a tenant's policy events. Pure.

``hash = SHA-256(version, tenant, seq, time in microseconds, previous hash, payload hash)``, each
field preceded by its length, and ``payload hash = SHA-256(16 random bytes, canonical JSON)``. The
random bytes keep a payload from being guessed out of its hash once the payload itself is gone, so
the chain outlives what it is about.

The chain alone proves order and wholeness to whoever trusts its end. An HMAC of each hash under the
audit key proves that the service wrote it; since a hash covers all before it, so does its HMAC.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from authsvc.records import AuditEvent, Stamp

_VERSION = b"\x01"
_SALT_BYTES = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PURPOSE = b"authsvc audit v1\x00"


@dataclass(frozen=True, slots=True)
class AuditKeys:
    """The audit key, which seals, and those of before, which verify. Without it nothing is sealed.

    A seal is HMAC-SHA256 (RFC 2104) of what it is for and the bytes that it is about.
    """

    key: bytes | None = field(default=None, repr=False)
    old: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def all(self) -> tuple[bytes, ...]:
        """Every key that verifies."""
        return self.old if self.key is None else (self.key, *self.old)

    def seal(self, digest: bytes, purpose: bytes = b"event") -> bytes | None:
        """The seal, 32 bytes; None without a key."""
        if self.key is None:
            return None
        return hmac.digest(self.key, _PURPOSE + purpose + digest, "sha256")

    def sealed(self, digest: bytes, mac: bytes | None, purpose: bytes = b"event") -> bool:
        """Whether this is the seal of that hash under any of the keys."""
        return mac is not None and any(
            hmac.compare_digest(hmac.digest(key, _PURPOSE + purpose + digest, "sha256"), mac)
            for key in self.all
        )


NO_KEYS = AuditKeys()


def canonical(payload: dict[str, Any]) -> bytes:
    """The one spelling of a payload: JSON, sorted keys, no blanks, UTF-8."""
    return json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def event_hash(
    tenant_id: UUID, seq: int, at: datetime, previous: bytes, payload_hash: bytes
) -> bytes:
    """The hash of one event, 32 bytes."""
    micros = (at - _EPOCH) // _MICROSECOND
    parts = (
        _VERSION,
        tenant_id.bytes,
        seq.to_bytes(8, "big"),
        micros.to_bytes(8, "big", signed=True),
        previous,
        payload_hash,
    )
    return hashlib.sha256(b"".join(bytes((len(part),)) + part for part in parts)).digest()


def extend(
    tenant_id: UUID,
    stamp: Stamp,
    at: datetime,
    payloads: Sequence[dict[str, Any]],
    keys: AuditKeys = NO_KEYS,
) -> list[AuditEvent]:
    """The events that follow ``stamp``, one per payload, chained, and sealed if there is a key."""
    events = []
    seq, head = stamp.revision, stamp.head
    salts = secrets.token_bytes(_SALT_BYTES * len(payloads))
    for index, payload in enumerate(payloads):
        seq += 1
        salt = salts[index * _SALT_BYTES : (index + 1) * _SALT_BYTES]
        stored = salt + canonical(payload)
        payload_hash = hashlib.sha256(stored).digest()
        head = event_hash(tenant_id, seq, at, head, payload_hash)
        events.append(AuditEvent(seq, at, payload_hash, head, stored, keys.seal(head)))
    return events


def read_payload(event: AuditEvent) -> dict[str, Any]:
    """What an event says."""
    payload: dict[str, Any] = json.loads(event.payload[_SALT_BYTES:])
    return payload


def first_broken(
    tenant_id: UUID, start: Stamp, events: Iterable[AuditEvent], end: Stamp
) -> int | None:
    """The number of the first event that does not follow from ``start``, None if all do.

    The events must lead to ``end`` exactly; a missing tail is reported as the first missing number.
    """
    seq, head = start.revision, start.head
    for event in events:
        seq += 1
        intact = (
            event.seq == seq
            and hashlib.sha256(event.payload).digest() == event.payload_hash
            and event_hash(tenant_id, seq, event.at, head, event.payload_hash) == event.hash
        )
        if not intact:
            return seq
        head = event.hash
    if seq != end.revision:
        return seq + 1
    return None if head == end.head else seq
