"""Keys that a tenant gives to its own users: made, listed, revoked, and asked about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from authsvc.clock import Clock
from authsvc.credentials import digest_of, fingerprint, new_api_key, new_key_id, parse_api_key
from authsvc.database import Transaction
from authsvc.errors import Busy, Conflict, InputError, NotFound
from authsvc.records import EMPTY, ApiKey, Caller, Listing, Page, Stamp
from authsvc.repositories.api_keys import ApiKeys
from authsvc.repositories.heads import Heads
from authsvc.services.changes import lock_tenant, origin, recheck, record
from authsvc.services.checks import Question, check_now
from authsvc.services.current_state import CurrentState
from authsvc.services.keys import Mint
from authsvc.services.listing import Position, list_page

MOST_ACTIVE = 25
"""How many keys of one user may be in force at a time."""
PREFIX_LENGTH = 10
"""How much of a key is kept readable: ``rak_`` and six characters of its 43."""
_ATTEMPTS = 4
_START = datetime(1, 1, 1, tzinfo=UTC)

Refusal = Literal["unknown_key", "revoked", "expired"]


@dataclass(frozen=True, slots=True)
class Validated:
    """What is said about a presented key: the key, or why it is not accepted."""

    stamp: Stamp
    key: ApiKey | None = None
    refusal: Refusal | None = None


def api_key_event(action: str, key: ApiKey, digest: bytes | None = None) -> dict[str, Any]:
    """An event about an API key, which never contains the key or its digest.

    That of a key just made holds the fingerprint of its digest.
    """
    details: dict[str, Any] = {
        "user": key.user,
        "label": key.label,
        "key_prefix": key.prefix,
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
    }
    if digest is not None:
        details["fingerprint"] = fingerprint(digest)
    return {"action": action, "entity_type": "api_key", "entity_id": key.id, "details": details}


def add_api_key(
    user: str, label: str, expires_at: datetime | None, shown: Callable[[ApiKey, str], Any]
) -> Mint:
    """The work of minting a key for a user; ``shown`` makes the answer's data.

    Raises Conflict when the user has as many keys in force as it may have: exact, because the
    tenant is locked.
    """

    async def work(
        tx: Transaction, tenant_id: UUID, _key_id: str, now: datetime
    ) -> tuple[list[dict[str, Any]], Any]:
        if expires_at is not None and expires_at <= now:
            raise InputError.of("expires_at", "This must be in the future.")
        keys = ApiKeys(tx, tenant_id)
        if await keys.count_active(user, now) >= MOST_ACTIVE:
            raise Conflict(f"This user has {MOST_ACTIVE} keys in force: revoke one first")
        secret = new_api_key()
        key = ApiKey(new_key_id(), user, label, secret[:PREFIX_LENGTH], now, expires_at, None)
        digest = digest_of(secret)
        await keys.add(key, digest)
        return [api_key_event("create", key, digest)], shown(key, secret)

    return work


async def list_api_keys(
    tx: Transaction, tenant_id: UUID | None, user: str, page: Page
) -> Listing[ApiKey]:
    """Every key the user ever had, ended ones too, oldest first."""

    async def fetch(position: Position, most: int) -> Sequence[tuple[Position, ApiKey]]:
        if tenant_id is None:
            return []
        after = (datetime.fromisoformat(str(position[0])), str(position[1]))
        found = await ApiKeys(tx, tenant_id).page(user, after, most)
        return [((key.created_at.isoformat(), key.id), key) for key in found]

    stamp = await Heads(tx, tenant_id).current() if tenant_id else EMPTY
    return await list_page(["apikeys", user], page, (_START.isoformat(), ""), stamp, fetch)


async def revoke_api_key(
    tx: Transaction, caller: Caller, user: str, key_id: str, clock: Clock
) -> tuple[bool, Stamp]:
    """End a user's key at once and for good; False if it had been revoked before.

    Raises NotFound, also for the key of another user.
    """
    if caller.tenant_id is None:
        raise _no_such_key()
    stamp = await lock_tenant(tx, caller.tenant_id)
    now = clock()
    await recheck(tx, caller, stamp, now)
    keys = ApiKeys(tx, caller.tenant_id)
    key = await keys.find(user, key_id)
    if key is None:
        raise _no_such_key()
    if key.revoked_at is not None:
        tx.abandon()
        return False, stamp
    await keys.revoke([key_id], now)
    by = origin(caller, caller.key_id)
    stamp = await record(tx, caller.tenant_id, stamp, [api_key_event("delete", key)], by, now)
    return True, stamp


def _no_such_key() -> NotFound:
    return NotFound("key_not_found", "There is no such key")


async def validate(
    current: CurrentState, tenant_id: UUID | None, text: str, now: datetime
) -> Validated:
    """What a presented text is worth as an API key of the tenant, now."""
    secret = parse_api_key(text)
    if tenant_id is None:
        return Validated(EMPTY, refusal="unknown_key")
    # A text of another form costs as much as an unknown key: nothing is told apart by time.
    found, stamp = await current.api_key(tenant_id, digest_of(secret or "no key"))
    if found is None:
        return Validated(stamp, refusal="unknown_key")
    if found.revoked_at is not None:
        return Validated(stamp, refusal="revoked")
    if not found.is_active(now):
        return Validated(stamp, refusal="expired")
    return Validated(stamp, found)


async def check_permission(
    current: CurrentState, caller: Caller, text: str, permission: str, now: datetime
) -> tuple[Validated, bool]:
    """As ``validate``, and whether the key's user has a permission: both at one revision."""
    for _ in range(_ATTEMPTS):
        validated = await validate(current, caller.tenant_id, text, now)
        if validated.key is None:
            return validated, False
        question = Question(validated.key.user, permission)
        answers, stamp = await check_now(current, caller, [question], now)
        if stamp == validated.stamp:
            return validated, answers[0]
    raise Busy("This tenant is changing too fast to be read; ask again")
