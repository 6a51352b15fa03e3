"""Taking the trail out: bundles for whoever asks, segments that are pruned once they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from authsvc.audit_bundle import BundleReader, BundleWriter
from authsvc.audit_chain import AuditKeys, first_broken
from authsvc.checkpoints import said
from authsvc.clock import Clock
from authsvc.database import Database, Transaction
from authsvc.errors import DamagedError, NotFound
from authsvc.records import EMPTY, Stamp
from authsvc.repositories.activity import ActivityEvents
from authsvc.repositories.audit_pages import last_before, pages
from authsvc.repositories.heads import Heads
from authsvc.repositories.retention import Retention
from authsvc.repositories.tenants import Tenants
from authsvc.services.audit_proof import prove_tenant
from authsvc.services.changes import lock_tenant, record
from authsvc.services.checkpoints import stored_checkpoints
from authsvc.services.tenants import list_tenants

_BY = {"actor": "command", "request_id": None, "ip_address": None, "user_agent": None}
_MOST_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of a tenant's events: those after the first state, up to the second."""

    tenant_id: UUID
    name: str
    after: Stamp
    until: Stamp

    @property
    def events(self) -> int:
        """How many."""
        return self.until.revision - self.after.revision

    @property
    def file_name(self) -> str:
        """What the file of a segment is called; the names of a tenant's segments sort by age."""
        first, last = self.after.revision + 1, self.until.revision
        return f"{self.tenant_id}-{first:012}-{last:012}.jsonl"


async def whole(tx: Transaction, name: str) -> Segment:
    """All events that a tenant has here. Raises NotFound."""
    tenant = await Tenants(tx).named(name)
    if tenant is None:
        raise NotFound("tenant_not_found", f"There is no tenant called '{name}'")
    anchor = await Retention(tx).anchor(tenant.id)
    after = EMPTY if anchor is None else anchor.stamp
    return Segment(tenant.id, name, after, await Heads(tx, tenant.id).current())


async def older_than(tx: Transaction, instant: datetime, tenant: str | None) -> list[Segment]:
    """What can be pruned: of every tenant, or of one, the events before an instant."""
    found = []
    for record_, _ in await list_tenants(tx):
        if tenant is not None and record_.name != tenant:
            continue
        anchor = await Retention(tx).anchor(record_.id)
        after = EMPTY if anchor is None else anchor.stamp
        last = await last_before(tx, record_.id, instant)
        if last is None or last <= after.revision:
            continue
        found += [
            Segment(record_.id, record_.name, after, page[0].event.stamp)
            async for page in pages(tx, record_.id, last - 1, last)
        ]
    if tenant is not None and await Tenants(tx).named(tenant) is None:
        raise NotFound("tenant_not_found", f"There is no tenant called '{tenant}'")
    return found


async def write_bundle(
    database: Database, segment: Segment, path: Path, key: Ed25519PrivateKey | None, clock: Clock
) -> None:
    """Write a segment with every checkpoint that names its tenant to a file of its own.

    Raises StartError, Unavailable.
    """
    writer = BundleWriter(path)
    try:
        async with database.read() as tx:
            writer.begin(segment.tenant_id, segment.name, segment.after, segment.until, clock())
            until = segment.until.revision
            async for page in pages(tx, segment.tenant_id, segment.after.revision, until):
                writer.events(stored.event for stored in page)
            async for checkpoint in stored_checkpoints(tx):
                told = said(checkpoint.body)
                named = told.heads.get(segment.tenant_id)
                if named is not None and named.revision <= until:
                    writer.checkpoint(checkpoint)
        writer.end(key)
    except BaseException:
        writer.give_up()
        raise


async def prune(
    database: Database,
    segment: Segment,
    folder: Path,
    key: Ed25519PrivateKey | None,
    clock: Clock,
) -> Path:
    """Keep a segment in a folder and take it out of the database; the file.

    The tenant's trail is verified first, and so is the file, which a run that was cut off may have
    left. Raises DamagedError, Unavailable, StartError (also where only the tables' owner may).
    """
    async with database.read() as tx:
        await Retention(tx).require_owner()
        proof = await prove_tenant(tx, segment.tenant_id, segment.name, database.audit_keys)
    if proof.problem is not None:
        raise DamagedError(f"The trail of '{segment.name}' is not pruned: {proof.problem}")
    path = folder / segment.file_name
    if not path.exists():
        await write_bundle(database, segment, path, key, clock)
    verify_segment(path, segment)

    async def let_go(tx: Transaction) -> None:
        await lock_tenant(tx, segment.tenant_id)
        await Retention(tx).set_anchor(segment.tenant_id, segment.until, clock())

    await database.write(segment.tenant_id, let_go)
    while await database.write(
        segment.tenant_id, lambda tx: Retention(tx).delete_some(segment.tenant_id, _MOST_AT_ONCE)
    ):
        pass
    return path


async def prune_activity(database: Database, before: datetime) -> int:
    """Delete the activity of before an instant, in portions; how many entries that were."""
    gone = 0
    while some := await database.write(
        "activity", lambda tx: ActivityEvents(tx).delete_before(before, _MOST_AT_ONCE)
    ):
        gone += some
    return gone


def verify_segment(path: Path, segment: Segment) -> None:
    """Raise DamagedError unless the file holds exactly this segment."""
    reader = BundleReader(path)
    same = (reader.tenant_id, reader.after, reader.until) == (
        segment.tenant_id,
        segment.after,
        segment.until,
    )
    found = first_broken(segment.tenant_id, segment.after, reader.events(), segment.until)
    if not same or found is not None:
        raise DamagedError(f"{path} does not hold what is to be pruned: move it away")


async def seal_heads(database: Database, clock: Clock) -> list[str]:
    """Have every trail end with a sealed event, as it does not when the key was set just now.

    A hash covers all before it, so one sealed event proves all. Returns the names of the tenants
    that were given one. Raises Unavailable.
    """
    async with database.read() as tx:
        found = await list_tenants(tx)
    sealed = []
    for tenant, revision in found:
        if revision and await database.write(
            tenant.id,
            lambda tx, tenant_id=tenant.id, name=tenant.name: _seal(  # type: ignore[misc]
                tx, tenant_id, name, database.audit_keys, clock
            ),
        ):
            sealed.append(tenant.name)
    return sealed


async def _seal(tx: Transaction, tenant_id: UUID, name: str, keys: AuditKeys, clock: Clock) -> bool:
    stamp = await lock_tenant(tx, tenant_id)
    async for page in pages(tx, tenant_id, stamp.revision - 1):
        newest = page[-1].event
        if keys.sealed(newest.hash, newest.mac):
            tx.abandon()
            return False
    event = {
        "action": "update",
        "entity_type": "tenant",
        "entity_id": name,
        "details": {"audit_key": "in use"},
    }
    await record(tx, tenant_id, stamp, [event], _BY, clock())
    return True
