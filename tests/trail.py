"""A trail to ask questions about, and the answers a plain list gives."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert

import encrypted
from authsvc import models
from authsvc.audit_chain import read_payload
from authsvc.audit_entries import Selection
from authsvc.database import Database
from authsvc.records import Change
from authsvc.repositories.audit import Audit
from authsvc.services.changes import apply_changes
from authsvc.time_ids import new_time_id
from conftest import Storage, TenantAtWork
from http_api import instant

ACTORS = ("key_a", "key_b", "command")
ADDRESSES = ("203.0.113.7", "2001:db8::7")
_USERS = ("mallory", "alice", "admin")
_ROLES = ("admin", "ops")
_ACTIVITY = (
    ("check", "permission", "deploy"),
    ("auth_failure", "credential", "unknown_key"),
    ("issue", "token", "fam_1"),
)


def storage_settings(storage: Storage) -> dict[str, str]:
    """What the environment names a test's database by."""
    if storage.path is not None:
        return {"AUTH_SQLITE_PATH": str(storage.path), **encrypted.ENVIRONMENT}
    return {"AUTH_POSTGRESQL_URL": storage.url, **encrypted.ENVIRONMENT}


async def act(
    tenant: TenantAtWork, actor: str, address: str | None, *changes: Change, agent: str = "curl"
) -> None:
    """Apply changes in the name of a key, from an address."""
    caller = replace(
        await tenant.caller(),
        key_id=actor,
        address=address,
        user_agent=agent,
        request_id=f"r-{actor}",
    )
    await tenant.database.write(
        tenant.id, lambda tx: apply_changes(tx, caller, changes, tenant.clock)
    )


async def add_activity(
    database: Database, at: datetime, tenant_id: UUID | None, **values: Any
) -> dict[str, Any]:
    """Insert an activity row as its writer does; the row."""
    row: dict[str, Any] = {
        "id": new_time_id(at),
        "tenant_id": tenant_id,
        "at": at,
        "action": "check",
        "entity_type": "permission",
        "entity_id": "deploy",
        "actor": None,
        "ip_address": None,
        "user_agent": None,
        "request_id": None,
        "success": True,
        "details": {},
    } | values

    async def work(tx: Any) -> None:
        await tx.execute(insert(models.activity_event), row)

    await database.write("activity", work)
    return row


async def busy_days(
    tenants: Sequence[TenantAtWork], chance: random.Random, number: int
) -> list[dict[str, Any]]:
    """Let tenants do things at random while time passes; the activity rows there are then."""
    activity = []
    for tenant in tenants:
        await act(tenant, "key_a", None, *(Change("add_role", role=role) for role in _ROLES))
    for _ in range(number):
        tenant = chance.choice(tenants)
        tenant.clock.advance(chance.choice((0, 0.5, 60, 3600)))
        role, user = chance.choice(_ROLES), chance.choice(_USERS)
        actor, address = chance.choice(ACTORS), chance.choice(ADDRESSES)
        change = chance.choice(
            (
                Change("add_member", user=user, role=role, scope=chance.choice((None, "s"))),
                Change("remove_member", user=user, role=role),
                Change("grant", role=role, permission=user),
                Change("revoke", role=role, permission=user),
            )
        )
        await act(tenant, actor, address, change)
        if chance.random() < 0.5:
            action, entity_type, entity_id = chance.choice(_ACTIVITY)
            row = await add_activity(
                tenant.database,
                tenant.clock(),
                chance.choice((tenants[0].id, tenants[0].id, tenants[-1].id, None)),
                action=action,
                entity_type=entity_type,
                entity_id=entity_id,
                actor=chance.choice((*ACTORS, None)),
                ip_address=address,
                success=chance.random() < 0.5,
            )
            activity.append(row)
    return activity


async def policy_entries(tenant: TenantAtWork) -> list[dict[str, Any]]:
    """All policy events of a tenant as answers show them, the oldest first."""
    async with tenant.database.read() as tx:
        events = await Audit(tx, tenant.id).after(0, 100_000)
    made = []
    for event in events:
        said = read_payload(event)
        made.append(
            {
                "seq": event.seq,
                "timestamp": instant(event.at),
                "action": said["action"],
                "entity_type": said["entity_type"],
                "entity_id": said["entity_id"],
                "details": said["details"],
                "actor": said["actor"],
                "ip_address": said["ip_address"],
                "user_agent": said["user_agent"],
                "request_id": said["request_id"],
                "success": True,
                "hash": event.hash.hex(),
            }
        )
    return made


def activity_entries(rows: Sequence[dict[str, Any]], *whose: UUID | None) -> list[dict[str, Any]]:
    """Activity rows of these tenants as answers show them, the oldest first."""
    return [
        {
            "seq": None,
            "timestamp": instant(row["at"]),
            "action": row["action"],
            "entity_type": row["entity_type"],
            "entity_id": row["entity_id"],
            "details": row["details"],
            "actor": row["actor"],
            "ip_address": row["ip_address"],
            "user_agent": row["user_agent"],
            "request_id": row["request_id"],
            "success": row["success"],
            "hash": None,
        }
        for row in sorted(rows, key=lambda row: bytes(row["id"]))
        if row["tenant_id"] in whose
    ]


def matching(
    entries: Sequence[dict[str, Any]], wanted: Selection, now: datetime
) -> list[dict[str, Any]]:
    """Those entries that are selected, in the order wanted."""
    since = wanted.since
    if wanted.hours is not None:
        since = now - timedelta(hours=wanted.hours)

    def fits(entry: dict[str, Any]) -> bool:
        return (
            all(
                value is None or entry[name] == value
                for name, value in (
                    ("action", wanted.action),
                    ("entity_type", wanted.entity_type),
                    ("entity_id", wanted.entity_id),
                    ("actor", wanted.actor),
                    ("ip_address", wanted.ip),
                )
            )
            and (wanted.outcome is None or entry["success"] == (wanted.outcome == "success"))
            and (since is None or entry["timestamp"] >= instant(since))
            and (wanted.until is None or entry["timestamp"] < instant(wanted.until))
        )

    kept = [entry for entry in entries if fits(entry)]
    return kept if wanted.oldest_first else kept[::-1]


def at_random(chance: random.Random, entries: Sequence[dict[str, Any]]) -> Selection:
    """A selection with any number of filters, bounded by moments at which something happened."""
    moments = sorted({datetime.fromisoformat(entry["timestamp"]) for entry in entries})
    nearby = (timedelta(0), timedelta(0), timedelta(microseconds=1), timedelta(minutes=-7))

    def maybe(*values: Any) -> Any:
        return chance.choice(values) if chance.random() < 0.3 else None

    since = maybe(chance.choice(moments) + chance.choice(nearby))
    until = maybe(chance.choice(moments) + chance.choice(nearby), moments[-1] + timedelta(days=1))
    if since is not None and until is not None and until <= since:
        since, until = until, since + timedelta(microseconds=1)
    hours = None if since is not None or until is not None else maybe(1, 5, 24)
    return Selection(
        stream=chance.choice(("policy", "policy", "activity")),
        action=maybe("add", "remove", "grant", "check", "auth_failure", "none"),
        entity_type=maybe("membership", "permission", "credential"),
        entity_id=maybe("mallory", "admin", "deploy", "Admin"),
        actor=maybe(*ACTORS),
        ip=maybe(*ADDRESSES),
        outcome=maybe("success", "failure"),
        hours=hours,
        since=since,
        until=until,
        oldest_first=chance.random() < 0.5,
    )


def as_query(wanted: Selection) -> dict[str, str]:
    """A selection as the parameters of a request."""
    given = {
        "stream": wanted.stream,
        "action": wanted.action,
        "entity_type": wanted.entity_type,
        "entity_id": wanted.entity_id,
        "actor": wanted.actor,
        "ip": wanted.ip,
        "outcome": wanted.outcome,
        "hours": wanted.hours,
        "since": wanted.since and instant(wanted.since),
        "until": wanted.until and instant(wanted.until),
        "order": "asc" if wanted.oldest_first else "desc",
    }
    return {name: str(value) for name, value in given.items() if value is not None}
