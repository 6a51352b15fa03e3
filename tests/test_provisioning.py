"""The client key that the settings provide, on both databases."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from authsvc import models
from authsvc.credentials import digest_of, new_client_key
from authsvc.database import Database
from authsvc.errors import SettingsError, Unauthorized
from authsvc.records import Caller
from authsvc.repositories.keys import Keys
from authsvc.repositories.tenants import find_credential
from authsvc.services.tenants import DEFAULT_TENANT, list_tenants, provision_key
from conftest import ControlledClock, MakeTenant, Storage, authenticate
from replay import violations

DAY = 24 * 60 * 60


async def provide(database: Database, key: str, clock: ControlledClock) -> None:
    """What the start of a replica does."""
    await database.write(DEFAULT_TENANT, lambda tx: provision_key(tx, key, clock()))


async def accepted(database: Database, key: str, clock: ControlledClock) -> Caller:
    """The caller behind a key; Unauthorized for a key that is not accepted."""
    return await authenticate(database, [f"Bearer {key}"], clock(), registration_open=False)


async def end(database: Database, key: str) -> datetime | None:
    """When a key ends."""
    found = await find_credential(database, digest_of(key))
    assert found is not None
    return found.key.expires_at


async def revision(database: Database) -> int:
    """The revision of the one tenant there is, of which nothing may be wrong."""
    async with database.read() as tx:
        ((tenant, now),) = await list_tenants(tx)
        assert tenant.name == DEFAULT_TENANT
        assert await violations(tx, tenant.id) == []
    return now


async def test_a_key_provided_again_changes_nothing(
    database: Database, clock: ControlledClock
) -> None:
    key = new_client_key()
    await provide(database, key, clock)
    before = await revision(database)
    clock.advance(DAY)
    await provide(database, key, clock)
    assert await revision(database) == before
    assert await end(database, key) is None
    assert (await accepted(database, key, clock)).scopes


async def test_a_replaced_key_ends_a_day_later(database: Database, clock: ControlledClock) -> None:
    old, new, newest = new_client_key(), new_client_key(), new_client_key()
    await provide(database, old, clock)
    await provide(database, new, clock)
    until = clock() + timedelta(days=1)
    assert (await end(database, old), await end(database, new)) == (until, None)

    clock.advance(DAY / 2)
    await provide(database, newest, clock)
    assert await end(database, old) == until, "an end is not put off"
    assert await end(database, new) == until + timedelta(days=0.5)

    clock.advance(DAY / 2 - 1)
    await accepted(database, old, clock)
    clock.advance(1)
    with pytest.raises(Unauthorized):
        await accepted(database, old, clock)
    with pytest.raises(SettingsError, match="AUTH_CLIENT_KEY was revoked or has expired"):
        await provide(database, old, clock)
    assert await revision(database)


async def test_a_key_that_comes_back_in_time_stays(
    database: Database, clock: ControlledClock
) -> None:
    old, new = new_client_key(), new_client_key()
    for key in (old, new, old):
        await provide(database, key, clock)
    assert await end(database, old) is None
    assert await end(database, new) == clock() + timedelta(days=1)
    assert await revision(database)


async def test_a_key_of_another_tenant_is_refused(
    database: Database, make_tenant: MakeTenant, clock: ControlledClock
) -> None:
    acme = await make_tenant("acme")
    for _ in range(2):
        with pytest.raises(SettingsError, match="belongs to another tenant") as refused:
            await provide(database, acme.key, clock)
        assert acme.key not in str(refused.value)
        # Once without the tenant of the settings, once with it.
        await provide(database, new_client_key(), clock)
    assert (await accepted(database, acme.key, clock)).tenant_id == acme.id
    assert await acme.violations() == []


async def test_a_revoked_key_is_refused(database: Database, clock: ControlledClock) -> None:
    key = new_client_key()
    await provide(database, key, clock)
    found = await find_credential(database, digest_of(key))
    assert found is not None
    tenant_id, key_id = found.key.tenant_id, found.key.id
    await database.write(DEFAULT_TENANT, lambda tx: Keys(tx, tenant_id).revoke(key_id, clock()))
    with pytest.raises(SettingsError, match="was revoked"):
        await provide(database, key, clock)


@pytest.mark.parametrize("same", [True, False], ids=["same key", "a key each"])
async def test_replicas_that_start_at_once(
    storage: Storage, clock: ControlledClock, same: bool
) -> None:
    replicas = [storage.open() for _ in range(4)]
    for database in replicas:
        await database.refuse_unless_primary()
    one = new_client_key()
    keys = [one if same else new_client_key() for _ in replicas]
    await asyncio.gather(
        *(provide(database, key, clock) for database, key in zip(replicas, keys, strict=True))
    )
    for key in keys:
        await accepted(replicas[0], key, clock)
    assert await revision(replicas[0])
    found = await replicas[0].rows(
        select(models.client_key.c.id).where(models.client_key.c.expires_at.is_(None)), {}
    )
    assert len(found) == 1
