"""When grants last let a check through."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite

from authsvc import models
from authsvc.column_types import UtcDateTime
from authsvc.database import Transaction
from authsvc.encryption import GRANT_USED
from authsvc.repositories.field_ciphers import cipher_of, held_ciphers

_use = models.grant_use


class GrantUses:
    """The uses of one tenant's grants."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def write(self, grants: Iterable[tuple[int, str]], at: datetime) -> None:
        """Store that these grants, role id and permission, were used by an instant."""
        on_conflict = postgresql if self._tx.engine_name == "postgresql" else sqlite
        adding = on_conflict.insert(_use).values(
            tenant_id=bindparam("tenant", type_=_use.c.tenant_id.type),
            role_id=bindparam("role"),
            permission=bindparam("name"),
            used_at=bindparam("at", type_=UtcDateTime),
        )
        cipher = (await held_ciphers(self._tx, [self._tenant])).get(self._tenant)
        if cipher is None:
            return
        # In one order, so that two processes never wait for each other in a circle.
        rows = [
            {"tenant": self._tenant, "role": role, "name": permission, "at": at}
            for role, permission in sorted(
                (role, cipher.seal(GRANT_USED, permission)) for role, permission in grants
            )
        ]
        if rows:
            await self._tx.execute(
                adding.on_conflict_do_update(
                    index_elements=["tenant_id", "role_id", "permission"],
                    set_={"used_at": adding.excluded.used_at},
                ),
                rows,
            )

    async def all(self) -> dict[tuple[int, str], datetime]:
        """Role id and permission -> when it was used last."""
        found = await self._tx.execute(select(_use).where(_use.c.tenant_id == self._tenant))
        cipher = await cipher_of(self._tx, self._tenant)
        return {(r.role_id, cipher.open(GRANT_USED, r.permission)): r.used_at for r in found}


async def recorded_since(tx: Transaction) -> datetime | None:
    """The earliest use that any tenant has on record, None if there is none."""
    found = await tx.execute(select(func.min(_use.c.used_at)))
    earliest: datetime | None = found.scalar_one()
    return earliest
