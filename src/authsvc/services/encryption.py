"""Encryption of names at rest, switched on and off and given other keys while it is served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from authsvc.clock import Clock
from authsvc.database import Database, Transaction
from authsvc.encryption import PLAIN, FieldCipher
from authsvc.errors import Conflict, SettingsError, StartError, Unavailable
from authsvc.records import Tenant
from authsvc.repositories.field_ciphers import cipher_of
from authsvc.repositories.heads import Heads
from authsvc.repositories.reencryption import (
    Forms,
    Reencryption,
    event_forms,
    forms,
    rows_of_tenants,
)
from authsvc.repositories.tenant_keys import TenantKeys, WrappedKey, registered_master_keys
from authsvc.repositories.tenants import Tenants
from authsvc.services.changes import record

IDLE_SECONDS = 60
"""How long the work on one tenant may think between two statements."""
_TOGETHER = 100
_BY: dict[str, Any] = {
    "actor": "command",
    "request_id": None,
    "ip_address": None,
    "user_agent": None,
}


class Aim(Enum):
    """What is to become of tenants' names."""

    ENABLE = "enable"
    DISABLE = "disable"
    RESEAL = "reseal"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tenant there is work to do on, and how many rows that are."""

    tenant: Tenant
    rows: int


async def require_master_keys(database: Database) -> None:
    """Raise SettingsError, naming the setting, if a master key in use is not in the ring."""
    missing = await missing_master_keys(database)
    if not missing:
        return
    named = " and ".join(short(one) for one in missing)
    if not database.data_keys.master.all:
        raise SettingsError(
            "AUTH_ENCRYPTION_KEY: must be set, because names in this database are encrypted under"
            f" the key with the check value {named}"
        )
    raise SettingsError(
        f"AUTH_ENCRYPTION_OLD_KEYS: lacks the key with the check value {named}, under which names"
        " in this database are encrypted. A new AUTH_ENCRYPTION_KEY does not replace the old one:"
        " keep that in AUTH_ENCRYPTION_OLD_KEYS until 'authsvc keys rewrap' says that it may go"
    )


async def missing_master_keys(database: Database) -> list[str]:
    """The registered master keys that this process does not have."""
    registered = await registered_master_keys(database)
    return sorted(set(registered) - database.data_keys.master.ids)


async def review_encryption(database: Database) -> list[str]:
    """What is doubtful about the way names are stored, in sentences for the operator."""
    async with database.read() as tx:
        plain = await Tenants(tx).count_plain()
    if plain and database.data_keys.for_new:
        return [
            f"AUTH_ENABLE_ENCRYPTION: the names of {plain} tenant{'s' * (plain != 1)} are not"
            " encrypted yet: run 'authsvc encryption enable'"
        ]
    return []


def short(master_key: str) -> str:
    """A check value as people are shown it."""
    return master_key[:8]


async def candidates(tx: Transaction, aim: Aim, name: str | None = None) -> list[Candidate]:
    """The tenants that are not as aimed at, the one of that name or all. Raises Conflict."""
    rows = await rows_of_tenants(tx)
    tenants = Tenants(tx)
    generations = await tenants.generations()
    found = [
        Candidate(tenant, rows.get(tenant.id, 0))
        for tenant, _revision in await tenants.all()
        if name in (None, tenant.name)
        and (generations.get(tenant.id, PLAIN) == PLAIN) == (aim is Aim.ENABLE)
    ]
    if name is not None and not found:
        if await tenants.named(name) is None:
            raise Conflict(f"There is no tenant called '{name}': see 'authsvc tenants list'")
        if aim is Aim.RESEAL:
            raise Conflict(
                f"The names of '{name}' are not encrypted: run 'authsvc encryption enable'"
            )
    return found


async def change_tenant(tx: Transaction, tenant: Tenant, aim: Aim, clock: Clock) -> bool:
    """Do to a tenant what is aimed at, in this one transaction; False if there is nothing to do.

    Until it ends, checks are answered from before it and the tenant's writes wait. Earlier events
    stay as they were written. Raises KeyMissing, Unreadable.
    """
    tenant_id = tenant.id
    stamp = await Heads(tx, tenant_id).lock()
    old = FieldCipher(tenant_id) if stamp is None else await cipher_of(tx, tenant_id)
    if stamp is None or old.is_plain != (aim is Aim.ENABLE):
        tx.abandon()
        return False
    keys = TenantKeys(tx)
    await keys.hold(tenant_id)
    now = clock()
    new = FieldCipher(tenant_id) if aim is Aim.DISABLE else await keys.begin(tenant_id, now)
    await Reencryption(tx, tenant_id).change(old, new)
    await keys.set_generation(tenant_id, new)
    event = {
        "action": "update",
        "entity_type": "tenant",
        "entity_id": tenant.name,
        "details": {"encryption": aim.value, "generation": new.generation},
    }
    await record(tx, tenant_id, stamp, [event], _BY, now)
    return True


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """What came of the data keys: ``left`` are under another key than the one that wraps now.

    ``unreadable`` cannot be opened with any key of the ring; ``free`` are master keys that nothing
    is under any more.
    """

    changed: int
    total: int
    left: int
    unreadable: Sequence[str] = ()
    free: Sequence[str] = ()


async def rewrap(database: Database, clock: Clock, told: Callable[[int], object]) -> Rewrapped:
    """Put every data key under the master key that wraps now, then count what is under others.

    ``told`` is called with how many have been looked at. No row of policy is touched, and nothing
    is locked for longer than one statement.
    """
    changed, looked_at = 0, 0
    after: WrappedKey | None = None
    while True:
        work = partial(_rewrap_some, after=after, clock=clock)
        count, page = await database.write("data keys", work, idle_seconds=IDLE_SECONDS)
        changed += count
        looked_at += len(page)
        told(looked_at)
        if len(page) < _TOGETHER:
            break
        after = page[-1]
    return await _verified(database, changed)


async def _rewrap_some(
    tx: Transaction, after: WrappedKey | None, clock: Clock
) -> tuple[int, list[WrappedKey]]:
    """One portion: how many were rewrapped, and which were looked at."""
    keys = TenantKeys(tx)
    page = await keys.page(after, _TOGETHER)
    count = 0
    for one in page:
        count += await _rewrapped(tx, keys, one, clock)
    if not count:
        tx.abandon()
    return count, page


async def _rewrapped(tx: Transaction, keys: TenantKeys, one: WrappedKey, clock: Clock) -> bool:
    active = tx.data_keys.master.key
    found: WrappedKey | None = one
    while found is not None and active is not None:
        if found.master_key == active.id and active.decrypt(found.wrapped) is not None:
            return False
        try:
            if await keys.rewrap(found, clock()):
                return True
        except Unavailable:
            # Counted, and told, at the end.
            return False
        # Another was quicker, or its tenant is gone.
        found = await keys.find(one.tenant_id, one.generation)
    return False


async def _verified(database: Database, changed: int) -> Rewrapped:
    """Open every data key, first with the key that wraps now alone."""
    active = database.data_keys.master.key
    total, left = 0, 0
    after: WrappedKey | None = None
    unreadable: list[str] = []
    async with database.read() as tx:
        while True:
            page = await TenantKeys(tx).page(after, 10 * _TOGETHER)
            for one in page:
                if active is not None and active.decrypt(one.wrapped) is None:
                    left += 1
                try:
                    tx.data_keys.master.unwrap(one.tenant_id, one.generation, one.wrapped)
                except Unavailable:
                    unreadable.append(f"tenant {one.tenant_id}, generation {one.generation}")
            total += len(page)
            if len(page) < 10 * _TOGETHER:
                break
            after = page[-1]
    free: list[str] = []
    if active is not None and not left:
        keep = active.id

        async def work(tx: Transaction) -> list[str]:
            return await TenantKeys(tx).forget_unused(keep)

        free = await database.write("data keys", work)
    return Rewrapped(changed, total, left, unreadable, free)


@dataclass(frozen=True, slots=True)
class Status:
    """``tenants`` by whether their names are encrypted, ``master_keys`` with their data keys."""

    encrypted_tenants: int
    plain_tenants: int
    columns: list[Forms]
    events: list[Forms]
    master_keys: dict[str, int]
    missing: list[str] = field(default_factory=list)

    @property
    def astray(self) -> int:
        """Values in another form than their tenant's."""
        return sum(one.astray for one in self.columns)


async def status(database: Database) -> Status:
    """How everything that can be encrypted is stored; walks through all of it."""
    missing = await missing_master_keys(database)
    async with database.read() as tx:
        generations = await Tenants(tx).generations()
        encrypted = sum(generation != PLAIN for generation in generations.values())
        return Status(
            encrypted,
            len(generations) - encrypted,
            await forms(tx),
            await event_forms(tx),
            await TenantKeys(tx).counts(),
            missing,
        )


def require_key(database: Database) -> None:
    """Raise StartError where there is no key to encrypt with."""
    if database.data_keys.master.key is None:
        raise StartError(
            "AUTH_ENCRYPTION_KEY is not set: set it here and for every process of the service first"
        )
