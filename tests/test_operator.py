"""What the operator's commands do to the tables, on both engines."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select

import encrypted
from authsvc import models
from authsvc.credentials import digest_of, new_client_key
from authsvc.database import Database
from authsvc.errors import Conflict, NotFound, Unavailable
from authsvc.records import ApiKey, Change
from authsvc.repositories.api_keys import ApiKeys
from authsvc.repositories.tenants import Tenants
from authsvc.services import operator
from conftest import ControlledClock, MakeTenant, Storage, TenantAtWork


async def filled(tenant: TenantAtWork, users: int = 3) -> None:
    """Give a tenant something of everything that it may have."""
    await tenant.write(
        Change("add_role", role="ops"),
        Change("add_role", role="lead"),
        Change("add_parent", role="lead", parent="ops"),
        Change("grant", role="ops", permission="deploy"),
        *[Change("add_member", user=f"user{n}", role="ops") for n in range(users)],
    )
    key = ApiKey("key_1", "user0", "", "rak_abcdef", tenant.clock(), None, None)
    await tenant.database.write(
        tenant.id,
        lambda tx: ApiKeys(tx, tenant.id).add(key, digest_of(new_client_key())),
    )


async def rows_by_table(database: Database) -> dict[str, int]:
    """How many rows every table has."""
    async with database.read() as tx:
        return {
            table.name: int(
                (await tx.execute(select(func.count()).select_from(table))).scalar_one()
            )
            for table in models.metadata.sorted_tables
        }


async def test_nothing_is_left_of_an_erased_tenant(
    make_tenant: MakeTenant, clock: ControlledClock, storage: Storage
) -> None:
    other = await make_tenant("other")
    await filled(other)
    before = await rows_by_table(other.database)
    tenant = await make_tenant("acme")
    await filled(tenant)
    after = await rows_by_table(other.database)
    owner = storage.open(as_owner=True)
    erased = await operator.erase_tenant(owner, "acme", clock)
    assert await rows_by_table(other.database) == before | {"tenant_erasure": 1}
    # Being disabled first is an event of its own.
    assert erased == sum(after.values()) - sum(before.values()) + 1
    with pytest.raises(NotFound):
        await operator.erase_tenant(owner, "acme", clock)


async def test_an_erasure_that_was_cut_off_can_be_repeated(
    make_tenant: MakeTenant,
    clock: ControlledClock,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tenant = await make_tenant("acme")
    await filled(tenant, users=20)
    owner = storage.open(as_owner=True)
    monkeypatch.setattr(operator, "_MOST_AT_ONCE", 7)
    erase_some, portions = Tenants.erase_some, 0

    async def cut_off(self: Tenants, *given: object) -> int:
        nonlocal portions
        portions += 1
        if portions % 4 == 0:
            raise Unavailable
        return await erase_some(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Tenants, "erase_some", cut_off)
    attempts = 0
    while True:
        attempts += 1
        try:
            await operator.erase_tenant(owner, "acme", clock)
            break
        except Unavailable:
            continue
        except NotFound:
            # Cut off when nothing was left.
            break
    assert attempts > 2
    left = {table: rows for table, rows in (await rows_by_table(owner)).items() if rows}
    # A master key is nobody's.
    assert left == {"tenant_erasure": 1} | ({"master_key": 1} if encrypted.ON else {})


async def test_a_disabled_tenant_is_a_change(tenant: TenantAtWork) -> None:
    database, clock = tenant.database, tenant.clock
    for disabled, changed in ((True, True), (True, False), (False, True), (False, False)):
        done = await database.write(
            "acme",
            lambda tx, disabled=disabled: operator.set_disabled(  # type: ignore[misc]
                tx, "acme", clock, disabled=disabled
            ),
        )
        assert done is changed
        assert await tenant.violations() == []
    with pytest.raises(NotFound):
        await database.write(
            "none", lambda tx: operator.set_disabled(tx, "none", clock, disabled=True)
        )


async def test_keys_of_the_operator_are_changes(tenant: TenantAtWork) -> None:
    database, clock = tenant.database, tenant.clock
    issued = await database.write(
        "acme", lambda tx: operator.issue_key(tx, "acme", "x", ["check"], None, clock)
    )
    rotated = await database.write(
        "acme", lambda tx: operator.rotate(tx, "acme", issued.key.id, timedelta(), clock)
    )
    assert rotated.old_end == clock()
    assert issued.secret != rotated.secret
    assert issued.secret not in repr(issued)
    with pytest.raises(Conflict):
        await database.write(
            "acme", lambda tx: operator.rotate(tx, "acme", issued.key.id, timedelta(), clock)
        )
    async with database.read() as tx:
        found = await operator.list_keys(tx, "acme")
    [first] = [key.id for key in found if "admin" in key.scopes]
    with pytest.raises(Conflict):
        await database.write(
            "acme", lambda tx: operator.revoke(tx, "acme", first, clock, even_last=False)
        )
    for revoked in (True, False):
        done = await database.write(
            "acme", lambda tx: operator.revoke(tx, "acme", first, clock, even_last=True)
        )
        assert done is revoked
    assert await tenant.violations() == []
