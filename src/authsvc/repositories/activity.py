"""What happened without changing anything: written in batches, deleted when it is old."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Row, delete, insert, select

from authsvc import models
from authsvc.database import Transaction
from authsvc.encryption import ACTIVITY_DETAILS, ACTIVITY_SUBJECT, FieldCipher
from authsvc.errors import Unavailable
from authsvc.records import Happening
from authsvc.repositories.field_ciphers import Ciphers, ciphers_of, held_ciphers
from authsvc.time_ids import first_id_of, new_time_id

_event = models.activity_event
_INSERT = insert(_event)
_NAMES_NOBODY = "auth_failure"
_ENCRYPTED = "encrypted"
NO_KEY = "(no key)"
"""In the place of what is not written, because the tenant's key does not open or is gone."""
DOES_NOT_OPEN = "(does not open)"
"""In the place of what was changed in the database, or whose tenant was erased."""


class Told(NamedTuple):
    """A row, with what it is about as it was written."""

    row: Row[Any]
    entity_id: str
    details: dict[str, Any]


class ActivityEvents:
    """The activity of all tenants, and of none."""

    def __init__(self, transaction: Transaction) -> None:
        self._tx = transaction

    async def add(self, happenings: Sequence[Happening]) -> None:
        """Write these, in one statement."""
        tenants = {
            one.tenant_id
            for one in happenings
            if one.tenant_id is not None and one.action != _NAMES_NOBODY
        }
        if self._tx.data_keys.master.all:
            ciphers = await held_ciphers(self._tx, tenants)
        else:
            ciphers = {tenant_id: FieldCipher(tenant_id) for tenant_id in tenants}
        await self._tx.execute(_INSERT, [_row(one, ciphers) for one in happenings])

    async def delete_before(self, instant: datetime, most: int) -> int:
        """Delete at most so many that are older; how many."""
        old = select(_event.c.id).where(_event.c.id < first_id_of(instant)).limit(most)
        gone = await self._tx.execute(delete(_event).where(_event.c.id.in_(old)))
        return int(gone.rowcount)


def _row(one: Happening, ciphers: Mapping[UUID, FieldCipher]) -> dict[str, Any]:
    row = {
        "id": new_time_id(one.at),
        "tenant_id": one.tenant_id,
        "at": one.at,
        "action": one.action,
        "entity_type": one.entity_type,
        "entity_id": one.entity_id,
        "actor": one.actor,
        "ip_address": one.address,
        "user_agent": one.user_agent,
        "request_id": one.request_id,
        "success": one.success,
        "details": one.details,
        "generation": None,
    }
    if one.tenant_id is None or one.action == _NAMES_NOBODY:
        return row
    cipher = ciphers.get(one.tenant_id)
    if cipher is None:
        return row | {"entity_id": NO_KEY, "details": {}}
    if cipher.is_plain:
        return row
    return row | {
        "entity_id": cipher.seal(ACTIVITY_SUBJECT, one.entity_id),
        "details": {_ENCRYPTED: cipher.seal(ACTIVITY_DETAILS, json.dumps(one.details))},
        "generation": cipher.generation,
    }


async def told(tx: Transaction, rows: Iterable[Row[Any]]) -> list[Told]:
    """Rows of ``activity_event`` as they were written; what does not open is said to."""
    found = list(rows)
    generations: dict[UUID, set[int | None]] = {}
    for row in found:
        if row.generation is not None:
            generations.setdefault(row.tenant_id, set()).add(row.generation)
    ciphers: dict[UUID, Ciphers] = {}
    for tenant_id, wanted in generations.items():
        try:
            ciphers[tenant_id] = await ciphers_of(tx, tenant_id, wanted)
        except Unavailable:
            ciphers[tenant_id] = {}
    return [_opened(row, ciphers) for row in found]


def _opened(row: Row[Any], ciphers: Mapping[UUID, Ciphers]) -> Told:
    if row.generation is None:
        return Told(row, row.entity_id, row.details)
    try:
        cipher = ciphers[row.tenant_id][row.generation]
        details = json.loads(cipher.open(ACTIVITY_DETAILS, row.details[_ENCRYPTED]))
        return Told(row, cipher.open(ACTIVITY_SUBJECT, row.entity_id), details)
    except (KeyError, TypeError, Unavailable):
        return Told(row, DOES_NOT_OPEN, {})
