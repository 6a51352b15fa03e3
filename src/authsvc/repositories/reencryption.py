"""Every value of a tenant that follows its data key, rewritten under another one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Column, bindparam, func, select, text, union_all

from authsvc import models
from authsvc.column_types import TextList
from authsvc.database import Transaction
from authsvc.encryption import (
    CLIENT_KEY_LABEL,
    DESCRIPTION,
    GRANT,
    GRANT_USED,
    KEY_LABEL,
    KEY_USER,
    MEMBER,
    Field,
    FieldCipher,
)

_MOST_TOGETHER = 5_000

# Names are looked for by themselves, texts by the id of their row.
_BY_VALUE = (
    (models.membership.c.user_id, MEMBER),
    (models.role_permission.c.permission, GRANT),
    (models.grant_use.c.permission, GRANT_USED),
    (models.api_key.c.user_id, KEY_USER),
)
_BY_ID = (
    (models.role.c.description, DESCRIPTION),
    (models.client_key.c.label, CLIENT_KEY_LABEL),
    (models.api_key.c.label, KEY_LABEL),
)
TABLES = (
    models.membership,
    models.role_permission,
    models.grant_use,
    models.api_key,
    models.role,
    models.client_key,
)

# The words put in are names of our own tables and columns; all values are bound.
_POSTGRESQL = (
    "UPDATE {table} SET {column} = changed.new"
    " FROM unnest(CAST(:old AS text[]), CAST(:new AS text[])) AS changed (old, new)"
    " WHERE tenant_id = :tenant AND {key} = {old}"
)
# Materialized: otherwise every row of the tenant is compared with every change.
_SQLITE = (
    "WITH changed AS MATERIALIZED (SELECT key, value FROM json_each(:changes))"
    " UPDATE {table} SET {column} = changed.value FROM changed"
    " WHERE tenant_id = :tenant AND {key} = {old}"
)


@dataclass(frozen=True, slots=True)
class _Rewrite:
    """How one column is rewritten: rows are found by ``key``, the column itself or the id."""

    column: Column[Any]
    key: Column[Any]
    place: Field

    def statement(self, engine_name: str) -> Any:
        """One statement for many values."""
        form, old = (
            (_SQLITE, "changed.key") if engine_name == "sqlite" else (_POSTGRESQL, "changed.old")
        )
        if self.key is models.role.c.id:
            old = f"CAST({old} AS bigint)"
        words = {"table": self.column.table.name, "column": self.column.name}
        made = text(form.format(**words, key=self.key.name, old=old)).bindparams(
            bindparam("tenant", type_=self.column.table.c.tenant_id.type)
        )
        if engine_name == "sqlite":
            return made
        return made.bindparams(bindparam("old", type_=TextList), bindparam("new", type_=TextList))


REWRITES = (
    *(_Rewrite(column, column, place) for column, place in _BY_VALUE),
    *(_Rewrite(column, column.table.c.id, place) for column, place in _BY_ID),
)


class Reencryption:
    """The rows of one locked tenant."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def change(self, old: FieldCipher, new: FieldCipher) -> int:
        """Rewrite every value; how many different ones there were. Raises Unreadable.

        No value can be met twice: what one key made is nothing that another key, or nobody, made.
        """
        count = 0
        for rewrite in REWRITES:
            found = await self._values(rewrite)
            for start in range(0, len(found), _MOST_TOGETHER):
                some = found[start : start + _MOST_TOGETHER]
                changes = {
                    key: new.seal(rewrite.place, old.open(rewrite.place, value))
                    for key, value in some
                }
                await self._rewrite(rewrite, changes)
            count += len(found)
        return count

    async def _values(self, rewrite: _Rewrite) -> Sequence[tuple[str, str]]:
        table = rewrite.column.table
        found: Iterable[Any] = await self._tx.execute(
            select(rewrite.key, rewrite.column).where(table.c.tenant_id == self._tenant).distinct()
        )
        return [(str(row[0]), row[1]) for row in found]

    async def _rewrite(self, rewrite: _Rewrite, changes: dict[str, str]) -> None:
        engine = self._tx.engine_name
        given: dict[str, Any] = {"tenant": self._tenant}
        if engine == "sqlite":
            given["changes"] = json.dumps(changes)
        else:
            given |= {"old": list(changes), "new": list(changes.values())}
        await self._tx.execute(rewrite.statement(engine), given)


async def rows_of_tenants(tx: Transaction) -> dict[UUID, int]:
    """Tenant -> how many of its rows hold something that can be encrypted."""
    parts = [
        select(table.c.tenant_id, func.count().label("number")).group_by(table.c.tenant_id)
        for table in TABLES
    ]
    every = union_all(*parts).subquery()
    found: Iterable[Any] = await tx.execute(
        select(every.c.tenant_id, func.sum(every.c.number)).group_by(every.c.tenant_id)
    )
    return {row[0]: int(row[1]) for row in found}


@dataclass(frozen=True, slots=True)
class Forms:
    """In which form the values of one column are, in all tenants.

    ``astray``: in another form than their tenant's other values, which no command of ours leaves.
    """

    column: str
    encrypted: int
    plain: int
    astray: int


_FORM = {
    "sqlite": "printf('~%x.', h.generation)",
    "postgresql": "'~' || to_hex(h.generation) || '.'",
}


async def forms(tx: Transaction) -> list[Forms]:
    """The live values by their form; walks through all of them."""
    beginning = _FORM[tx.engine_name]
    found = []
    for rewrite in REWRITES:
        table, column = rewrite.column.table.name, rewrite.column.name
        right = (
            f"substr(t.{column}, 1, length({beginning})) = {beginning}"
            if rewrite.place.is_name
            else f"(h.generation = 0 OR substr(t.{column}, 1, length({beginning})) = {beginning})"
        )
        wrong = f"h.generation > 0 AND NOT ({right})"
        if rewrite.place.is_name:
            wrong += f" OR h.generation = 0 AND substr(t.{column}, 1, 1) = '~'"
        # Names of our own tables and columns, and no value.
        statement = text(
            "SELECT coalesce(sum(CASE WHEN h.generation > 0 THEN 1 ELSE 0 END), 0),"  # noqa: S608
            " coalesce(sum(CASE WHEN h.generation = 0 THEN 1 ELSE 0 END), 0),"
            f" coalesce(sum(CASE WHEN {wrong} THEN 1 ELSE 0 END), 0)"
            f" FROM {table} t JOIN tenant_head h ON h.tenant_id = t.tenant_id"
        )
        row: Any = (await tx.execute(statement)).one()
        found.append(Forms(rewrite.place.path, int(row[0]), int(row[1]), int(row[2])))
    return found


async def event_forms(tx: Transaction) -> list[Forms]:
    """Events by their form: each stays in the one it was written in."""
    found = []
    for table in (models.audit_event, models.activity_event):
        counted = select(func.count(table.c.generation), func.count()).select_from(table)
        row: Any = (await tx.execute(counted)).one()
        found.append(Forms(table.name, row[0], row[1] - row[0], 0))
    return found
