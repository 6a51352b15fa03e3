"""Whether the audit trail is what was written: the chain, its seals, and what was signed of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from authsvc.audit_chain import AuditKeys, event_hash, read_payload
from authsvc.checkpoints import Checkpoint, first_broken, said
from authsvc.database import Transaction
from authsvc.encryption import Unreadable
from authsvc.records import EMPTY, Stamp
from authsvc.repositories.audit_pages import SEARCHED, Stored, pages
from authsvc.repositories.heads import Heads
from authsvc.repositories.retention import Anchor, Erasure, Retention, is_sealed
from authsvc.services.checkpoints import stored_checkpoints
from authsvc.services.tenants import list_tenants

Marks = Mapping[int, bytes]
"""Number of an event -> the hash that a checkpoint says it has."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found about one tenant's trail.

    ``first_broken`` is the number of the first event that is not what was written, None if there is
    none; ``problem`` says it in a sentence. ``lacking`` names what was needed and not there, so
    that nothing can be said about a part. ``sealed`` events of ``checked`` carry a seal; ``pruned``
    is the number up to which events were taken out.
    """

    tenant_id: UUID
    name: str
    checked: int
    sealed: int = 0
    pruned: int = 0
    first_broken: int | None = None
    problem: str | None = None
    lacking: tuple[str, ...] = ()
    end: Stamp = EMPTY


class _Broken(Exception):
    def __init__(self, seq: int, problem: str) -> None:
        super().__init__(problem)
        self.seq = seq
        self.problem = problem


@dataclass(slots=True)
class _Walk:
    """The walk along one chain."""

    tenant_id: UUID
    keys: AuditKeys
    marks: Marks
    reached: Stamp
    checked: int = 0
    sealed: int = 0
    sealed_last: bool = False

    def step(self, stored: Stored) -> None:
        event, seq = stored.event, self.reached.revision + 1
        if event.seq != seq:
            raise _Broken(seq, f"event {seq} is missing")
        if hashlib.sha256(event.payload).digest() != event.payload_hash:
            raise _Broken(seq, f"event {seq} does not say what was written")
        follows = event_hash(self.tenant_id, seq, event.at, self.reached.head, event.payload_hash)
        if follows != event.hash:
            raise _Broken(seq, f"event {seq} does not follow from those before it")
        try:
            payload = read_payload(event)
        except ValueError:
            raise _Broken(seq, f"event {seq} cannot be read") from None
        if tuple(payload.get(name) for name in SEARCHED) != stored.searched:
            raise _Broken(seq, f"event {seq} is stored under other words than it says")
        self._check_seal(seq, event.hash, event.mac)
        if self.marks.get(seq, event.hash) != event.hash:
            raise _Broken(seq, f"event {seq} is another one than a checkpoint was signed over")
        self.reached = event.stamp
        self.checked += 1

    def _check_seal(self, seq: int, digest: bytes, mac: bytes | None) -> None:
        if mac is None:
            if self.sealed_last and self.keys.all:
                raise _Broken(seq, f"event {seq} carries no seal, and those before it do")
            return
        self.sealed += 1
        self.sealed_last = True
        if self.keys.all and not self.keys.sealed(digest, mac):
            raise _Broken(seq, f"event {seq} is sealed with another key than AUTH_AUDIT_KEY")


async def prove_tenant(
    tx: Transaction, tenant_id: UUID, name: str, keys: AuditKeys, marks: Marks | None = None
) -> Proof:
    """Walk a tenant's chain from its anchor to its head, in one read transaction."""
    marks = marks or {}
    anchor = await Retention(tx).anchor(tenant_id)
    start = EMPTY if anchor is None else anchor.stamp
    end = await Heads(tx, tenant_id).current()
    walk = _Walk(tenant_id, keys, marks, start)
    lacking: list[str] = []
    try:
        if anchor is not None:
            lacking += _anchored(anchor, keys, marks)
        async for page in pages(tx, tenant_id, start.revision):
            for stored in page:
                walk.step(stored)
            # A long trail lets others have their turn.
            await asyncio.sleep(0)
        _check_end(walk, end)
    except _Broken as broken:
        seq, problem = broken.seq, broken.problem
        return Proof(tenant_id, name, walk.checked, walk.sealed, start.revision, seq, problem)
    except Unreadable as error:
        # The data key itself: nothing that follows can be looked at.
        seq, problem = walk.reached.revision + 1, error.message
        return Proof(tenant_id, name, walk.checked, walk.sealed, start.revision, seq, problem)
    if walk.sealed and not keys.all:
        lacking.append("seals were not looked at: set AUTH_AUDIT_KEY")
    if walk.checked and keys.key is not None and not walk.sealed_last:
        lacking.append("no event is sealed yet: run 'authsvc audit seal' after setting the key")
    return Proof(
        tenant_id, name, walk.checked, walk.sealed, start.revision, None, None, tuple(lacking), end
    )


def _anchored(anchor: Anchor, keys: AuditKeys, marks: Marks) -> list[str]:
    """What is lacking to prove that events were taken out by right; raises _Broken."""
    seq, head = anchor.stamp
    if marks.get(seq, head) != head:
        raise _Broken(seq, "a checkpoint was signed over another event than the anchor")
    if seq in marks or is_sealed(keys, b"anchor", anchor):
        return []
    if keys.all:
        raise _Broken(seq, "the retention anchor is not sealed with the key")
    return ["nothing proves the retention anchor: set AUTH_AUDIT_KEY"]


def _check_end(walk: _Walk, end: Stamp) -> None:
    if walk.reached.revision != end.revision:
        missing = min(walk.reached.revision, end.revision) + 1
        raise _Broken(missing, f"the trail ends at {walk.reached.revision}, the tenant is at"
                      f" {end.revision}")  # fmt: skip
    if walk.reached.head != end.head:
        raise _Broken(end.revision, "the tenant's head is not its newest event")
    beyond = [seq for seq in walk.marks if seq > end.revision]
    if beyond:
        raise _Broken(
            end.revision + 1,
            f"a checkpoint was signed over event {max(beyond)}, and the trail ends at"
            f" {end.revision}: its end was cut, or an older copy was put in its place",
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about the whole trail; ``checkpoints`` were looked at."""

    proofs: list[Proof]
    checkpoints: int
    problems: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)

    @property
    def tampered(self) -> bool:
        """Whether anything is not what was written."""
        return bool(self.problems) or any(proof.problem for proof in self.proofs)

    @property
    def incomplete(self) -> bool:
        """Whether something could not be looked at."""
        return bool(self.lacking) or any(proof.lacking for proof in self.proofs)


@dataclass(slots=True)
class Signed:
    """What checkpoints say, put together."""

    heads: dict[UUID, dict[int, bytes]] = field(default_factory=dict)
    erased: dict[UUID, Stamp] = field(default_factory=dict)
    count: int = 0

    def take(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Add what these say."""
        for checkpoint in checkpoints:
            told = said(checkpoint.body)
            self.count += 1
            for states in (told.heads, told.anchors):
                for tenant, stamp in states.items():
                    self.heads.setdefault(tenant, {})[stamp.revision] = stamp.head
            self.erased |= told.erased


async def prove_all(
    tx: Transaction,
    keys: AuditKeys,
    *,
    tenant: str | None = None,
    outside: Iterable[Checkpoint] = (),
    public_key: Ed25519PublicKey | None = None,
) -> Verdict:
    """Verify every tenant's trail, or one tenant's, with the checkpoints of the database and those
    from ``outside`` it. Without the public key signatures are not looked at, and that is said.
    """
    problems, lacking = [], []
    inside = [checkpoint async for checkpoint in stored_checkpoints(tx)]
    brought = list(outside)
    for place, found in (("the database", inside), ("the file", brought)):
        if (wrong := first_broken(found, public_key)) is not None:
            problems.append(f"{wrong}, in {place}")
    by_number = {checkpoint.number: checkpoint for checkpoint in inside}
    for checkpoint in brought:
        if (same := by_number.get(checkpoint.number)) is None:
            problems.append(f"checkpoint {checkpoint.number} is gone from the database")
        elif same.hash != checkpoint.hash:
            problems.append(f"checkpoint {checkpoint.number} is another one in the database")
    if (inside or brought) and public_key is None:
        lacking.append("signatures of checkpoints were not looked at: give the public key")
    # A checkpoint that is not signed with the key is told above; what it says counts all the same.
    told = Signed()
    told.take(brought)
    told.take(c for c in inside if c.number not in {other.number for other in brought})
    found_tenants = [
        (record.id, record.name)
        for record, _ in await list_tenants(tx)
        if tenant is None or record.name == tenant
    ]
    erased = {erasure.tenant_id: erasure for erasure in await Retention(tx).erasures()}
    if tenant is None:
        there = {tenant_id for tenant_id, _ in found_tenants}
        problems += _missing(told, there, erased, keys)
    lacking += [
        f"tenant '{n}' is being erased" for tenant_id, n in found_tenants if tenant_id in erased
    ]
    proofs = [
        await prove_tenant(tx, tenant_id, name, keys, told.heads.get(tenant_id))
        for tenant_id, name in found_tenants
        if tenant_id not in erased
    ]
    return Verdict(proofs, told.count, problems, lacking)


def _missing(
    told: Signed, there: set[UUID], erased: Mapping[UUID, Erasure], keys: AuditKeys
) -> list[str]:
    """Tenants that a checkpoint knows and that are gone without a trace, and forged traces."""
    problems = [
        f"tenant {tenant_id} stands in a checkpoint and is gone, with no record of its erasure"
        for tenant_id in told.heads
        if tenant_id not in there and tenant_id not in erased
    ]
    for tenant_id, erasure in erased.items():
        in_checkpoint = told.erased.get(tenant_id) == erasure.stamp
        if keys.all and not in_checkpoint and not is_sealed(keys, b"erasure", erasure):
            problems.append(f"the record that tenant {tenant_id} was erased is not sealed")
        last = max(told.heads.get(tenant_id, {0: b""}))
        if last > erasure.stamp.revision:
            problems.append(f"tenant {tenant_id} was erased in an older state than was signed")
    return problems
