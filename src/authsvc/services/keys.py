"""A tenant's client keys as its administrators manage them, and repeats of what minted them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from cryptography.exceptions import InvalidTag

from authsvc.clock import Clock
from authsvc.credentials import digest_of, new_client_key, new_key_id, seal, unseal
from authsvc.database import Transaction
from authsvc.errors import Conflict, IdempotencyMismatch, InputError, NotFound, Unauthorized
from authsvc.records import EMPTY, Caller, ClientKey, Minted, Stamp
from authsvc.repositories.keys import Keys
from authsvc.repositories.minted import MintedOutcomes
from authsvc.repositories.tenants import Tenants
from authsvc.services.changes import key_event, lock_tenant, origin, recheck, record, register
from authsvc.services.tenants import PROVISIONED

REMEMBERED = timedelta(hours=24)
"""How long a request that minted something may be repeated."""
REMEMBERED_ENDED = timedelta(minutes=10)
"""How long a key that a rotation ended may repeat that rotation."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that mints: the credential, the ``Idempotency-Key`` if any, the content."""

    key: str = field(repr=False)
    idempotency_key: str | None
    content: bytes

    @property
    def request_key(self) -> bytes:
        """What the ``Idempotency-Key`` is stored as."""
        return digest_of(self.idempotency_key or "")


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered, now or again: plain JSON values and the revision."""

    data: dict[str, Any] = field(repr=False)
    revision: int


Mint = Callable[[Transaction, UUID, str, datetime], Awaitable[tuple[list[dict[str, Any]], Any]]]


def content_of(path: str, body: dict[str, Any]) -> bytes:
    """The digest of what a request asks for."""
    return digest_of(path + "\n" + json.dumps(body, sort_keys=True))


async def list_keys(tx: Transaction, tenant_id: UUID) -> list[ClientKey]:
    """Every client key of a tenant, ended ones too, oldest first."""
    return await Keys(tx, tenant_id).all()


async def mint(
    tx: Transaction, caller: Caller, request: Request, clock: Clock, work: Mint, *, ends: bool
) -> Answer:
    """Run ``work`` once for a request and its repeats.

    ``work`` writes rows and returns the events and the answer's data. ``ends``: it ends the
    caller's own key. Raises IdempotencyMismatch, Unauthorized and what ``work`` raises.
    """
    tenant_id, key_id = caller.tenant_id, caller.key_id
    events: list[dict[str, Any]] = []
    if tenant_id is None or key_id is None:
        stamp, now = EMPTY, clock()
        tenant_id, key_id, events = await register(tx, caller, now)
    else:
        stamp = await lock_tenant(tx, tenant_id)
        now = clock()
        await recheck(tx, caller, stamp, now)
        if (again := await _again(tx, tenant_id, key_id, request, now)) is not None:
            tx.abandon()
            return again
    made, data = await work(tx, tenant_id, key_id, now)
    stamp = await record(tx, tenant_id, stamp, events + made, origin(caller, key_id), now)
    answer = Answer(data, stamp.revision)
    if request.idempotency_key is not None:
        outcomes = MintedOutcomes(tx, tenant_id, key_id)
        await outcomes.forget_until(now - REMEMBERED)
        text = json.dumps({"data": answer.data, "revision": answer.revision}).encode()
        sealed = seal(request.key, text, request.request_key)
        await outcomes.add(request.request_key, Minted(request.content, sealed, ends, now))
    return answer


async def _again(
    tx: Transaction, tenant_id: UUID, key_id: str, request: Request, now: datetime
) -> Answer | None:
    if request.idempotency_key is None:
        return None
    found = await MintedOutcomes(tx, tenant_id, key_id).find(request.request_key)
    if found is None or now >= found.created_at + REMEMBERED:
        return None
    if found.content != request.content:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used for another request: choose a fresh one"
        )
    return _unsealed(request, found)


def _unsealed(request: Request, found: Minted) -> Answer:
    try:
        stored = json.loads(unseal(request.key, found.sealed, request.request_key))
    except InvalidTag:
        # Sealed for another token of the same key, or for the key itself.
        raise IdempotencyMismatch(
            "This Idempotency-Key was used with another credential: choose a fresh one"
        ) from None
    return Answer(stored["data"], stored["revision"])


async def repeat_ended(tx: Transaction, request: Request, now: datetime) -> Answer:
    """The answer to a rotation, for the key which that rotation ended, ten minutes long.

    Raises Unauthorized for everything else: the key is no credential any more.
    """
    found = await ended_outcome(tx, request, now)
    if found.content != request.content:
        raise Unauthorized(sent=True)
    return _unsealed(request, found)


async def ended_outcome(tx: Transaction, request: Request, now: datetime) -> Minted:
    """The rotation that ended the presented key, if it may be repeated; else raises Unauthorized.

    What the request asks for is not looked at.
    """
    credential = await Tenants(tx).credential(digest_of(request.key))
    if credential is not None and credential.disabled_at is None and request.idempotency_key:
        key = credential.key
        found = await MintedOutcomes(tx, key.tenant_id, key.id).find(request.request_key)
        if found and found.ended_by_it and now < found.created_at + REMEMBERED_ENDED:
            return found
    raise Unauthorized(sent=True)


def add_key(
    label: str, scopes: Sequence[str], expires_at: datetime | None, shown: Callable[..., Any]
) -> Mint:
    """The work of minting a further key; ``shown`` makes the answer's data."""

    async def work(
        tx: Transaction, tenant_id: UUID, _key_id: str, now: datetime
    ) -> tuple[list[dict[str, Any]], Any]:
        if expires_at is not None and expires_at <= now:
            raise InputError.of("expires_at", "This must be in the future.")
        if label == PROVISIONED:
            raise InputError.of("label", "This label belongs to the key of the settings.")
        key = ClientKey(new_key_id(), tenant_id, label, frozenset(scopes), now, expires_at, None)
        secret = new_client_key()
        digest = digest_of(secret)
        await Keys(tx, tenant_id).add(key, digest)
        return [key_event("create", key, digest)], shown(key, secret)

    return work


def rotate_key(overlap: timedelta, shown: Callable[..., Any]) -> Mint:
    """The work of replacing the caller's own key by a fresh one with its label and scopes."""

    async def work(
        tx: Transaction, tenant_id: UUID, key_id: str, now: datetime
    ) -> tuple[list[dict[str, Any]], Any]:
        keys = Keys(tx, tenant_id)
        old = next(key for key in await keys.all() if key.id == key_id)
        label = old.label
        if label == PROVISIONED:
            # From here on both are keys like others: a start with the old one in the settings
            # must not take the end away that is given to it here.
            label = f"was {PROVISIONED}"
            await keys.label(old.id, label)
            old = replace(old, label=label)
        key = ClientKey(new_key_id(), tenant_id, label, old.scopes, now, None, None)
        secret = new_client_key()
        digest = digest_of(secret)
        await keys.add(key, digest)
        if not overlap:
            await keys.revoke(old.id, now)
            ended, end = key_event("delete", old), now
        else:
            end = min(now + overlap, old.expires_at or now + overlap)
            await keys.set_end(old.id, end)
            ended = key_event("update", replace(old, expires_at=end))
        return [key_event("create", key, digest), ended], shown(key, secret, end)

    return work


async def revoke_key(
    tx: Transaction, caller: Caller, key_id: str, clock: Clock
) -> tuple[bool, Stamp]:
    """End a key at once and for good; False if it had been revoked before.

    Raises NotFound, and Conflict for the last key that can administer the tenant as long as it.
    """
    if caller.tenant_id is None:
        raise no_such_key()
    stamp = await lock_tenant(tx, caller.tenant_id)
    now = clock()
    await recheck(tx, caller, stamp, now)
    ended = await end_key(tx, caller.tenant_id, key_id, now)
    if ended is None:
        tx.abandon()
        return False, stamp
    by = origin(caller, caller.key_id)
    return True, await record(tx, caller.tenant_id, stamp, [ended], by, now)


async def end_key(
    tx: Transaction, tenant_id: UUID, key_id: str, now: datetime, *, even_last: bool = False
) -> dict[str, Any] | None:
    """Revoke a key of a locked tenant; the event, or None if it had been revoked before.

    Raises NotFound, and Conflict for the last key that can administer the tenant as long as it,
    unless ``even_last``.
    """
    keys = Keys(tx, tenant_id)
    stored = await keys.all()
    wanted = next((key for key in stored if key.id == key_id), None)
    if wanted is None:
        raise no_such_key()
    if wanted.revoked_at is not None:
        return None
    is_last = _administers(wanted, now) and not any(
        other.id != key_id and _administers(other, now) and _outlasts(other, wanted)
        for other in stored
    )
    if is_last and not even_last:
        raise Conflict(
            "This is the last key that can administer the tenant: rotate it, or make another first"
        )
    await keys.revoke(key_id, now)
    return key_event("delete", wanted)


def _administers(key: ClientKey, now: datetime) -> bool:
    alive = key.revoked_at is None and (key.expires_at is None or now < key.expires_at)
    return alive and "admin" in key.scopes


def _outlasts(other: ClientKey, key: ClientKey) -> bool:
    if other.expires_at is None:
        return True
    return key.expires_at is not None and other.expires_at >= key.expires_at


def no_such_key() -> NotFound:
    """What is said of a key that is not there, or is another tenant's."""
    return NotFound("key_not_found", "There is no such key")
