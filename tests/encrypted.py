"""The whole suite with the names encrypted: ``make test-encrypted``, which sets what this reads."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from cryptography.fernet import Fernet, MultiFernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Row, select

from authsvc import models
from authsvc.database import Transaction
from authsvc.encryption import DataKeys, MasterKey, MasterKeys

ON = os.environ.get("AUTHSVC_TEST_ENCRYPTION") == "on"
KEY = "Ks0X2qbB1Zr8mJv5HkYw3TnLq7Fd4Gc6Pa9Re1Ui0Oo="
"""A master key of the tests, which opens nothing else."""
NEXT_KEY = "Zz1yXw3vUt5sRq7pOn9mLk2jIh4gFe6dCb8aZy0xWv0="
"""The one that follows it."""
SETTINGS: dict[str, Any] = {"enable_encryption": True, "encryption_key": KEY} if ON else {}
ENVIRONMENT = {"AUTH_ENABLE_ENCRYPTION": "true", "AUTH_ENCRYPTION_KEY": KEY} if ON else {}


def data_keys() -> DataKeys:
    """What a service with these settings has."""
    return ring(KEY) if ON else ring()


def ring(*keys: str) -> DataKeys:
    """What a process with these keys has, the first one wrapping; new tenants are encrypted."""
    if not keys:
        return DataKeys()
    old = tuple(MasterKey(key) for key in keys[1:])
    return DataKeys(MasterKeys(MasterKey(keys[0]), old), for_new=True)


class Opener:
    """Opens what one tenant has stored, written from the description and not from our code."""

    def __init__(self, tenant_id: UUID, wrapped: dict[int, str]) -> None:
        keys = (KEY, NEXT_KEY)
        self._tenant = tenant_id
        self._keys = {
            generation: MultiFernet(list(map(Fernet, keys))).decrypt(token)[-32:]
            for generation, token in wrapped.items()
        }

    def data(self, path: str, stored: bytes, generation: int | None) -> bytes:
        """Bytes of a column, plain where there is no generation."""
        if not generation:
            return stored
        about = b"authsvc field v1\x00" + self._tenant.bytes + generation.to_bytes(8, "big")
        about += path.encode()
        derived = HKDF(hashes.SHA256(), 64, None, about).derive(self._keys[generation])
        return AESSIV(derived).decrypt(stored, [about])

    def text(self, path: str, stored: str) -> str:
        """Text of a column, which says itself what it is."""
        if not stored.startswith("~"):
            return stored
        generation, _, body = stored[1:].partition(".")
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        return self.data(path, raw, int(generation, 16)).decode()


async def opener(tx: Transaction, tenant_id: UUID) -> Opener:
    """What opens the tenant's names, whether they are encrypted or not."""
    table = models.tenant_key
    rows = await tx.execute(select(table).where(table.c.tenant_id == tenant_id))
    return Opener(tenant_id, {row.generation: row.wrapped for row in rows})


async def activity(tx: Transaction, rows: Sequence[Row[Any]]) -> list[SimpleNamespace]:
    """Rows of the activity as they were noted."""
    found = []
    for row in rows:
        said = SimpleNamespace(**row._mapping)
        if row.generation:
            opens = await opener(tx, row.tenant_id)
            said.entity_id = opens.text("activity_event.entity_id", row.entity_id)
            details = opens.text("activity_event.details", row.details["encrypted"])
            said.details = json.loads(details)
        found.append(said)
    return found


async def messages(tx: Transaction) -> list[dict[str, Any]]:
    """The messages that wait to be sent, the oldest first."""
    table = models.outgoing
    found = []
    for row in (await tx.execute(select(table).order_by(table.c.id))).all():
        body = row.body
        if row.generation:
            opens = await opener(tx, row.tenant_id)
            body = opens.data("outgoing.body", body, row.generation)
        found.append(json.loads(body))
    return found
