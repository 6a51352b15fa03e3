"""``authsvc verify``: what SQL did to the tables is found by replaying the trail."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, insert, select, update

from authsvc import models
from authsvc.credentials import digest_of, new_client_key, new_key_id
from authsvc.database import Database, Transaction
from authsvc.encryption import MEMBER
from authsvc.records import Change
from authsvc.repositories.field_ciphers import cipher_of
from authsvc.services import audit_retention, keys, operator
from authsvc.services.api_keys import add_api_key
from authsvc.services.changes import lock_tenant, record
from authsvc.services.replay_review import Review, review_tenant
from conftest import MakeTenant, Storage, TenantAtWork

TRIALS = 60
POLICY = ("role", "role_permission", "role_parent", "membership", "client_key", "api_key")


def some_changes(dice: random.Random, tenant: TenantAtWork) -> list[Change]:
    """Changes of every kind, most of which can be applied."""
    roles = [f"role{n}" for n in range(8)]
    users = [f"user{n}" for n in range(12)]
    made: list[Change] = []
    for _ in range(dice.randrange(1, 6)):
        role, other, user = dice.choice(roles), dice.choice(roles), dice.choice(users)
        scope = dice.choice(["", "", "eu", "us"]) or None
        end = tenant.clock() + timedelta(days=dice.randrange(1, 9)) if dice.random() < 0.3 else None
        made.append(
            dice.choice(
                [
                    Change("add_role", role=role, description=dice.choice(["", "text"])),
                    Change("grant", role=role, permission=f"p:{dice.randrange(9)}"),
                    Change("grant", role=role, permission=f"p:{dice.randrange(9)}"),
                    Change("revoke", role=role, permission=f"p:{dice.randrange(9)}"),
                    Change("add_member", user=user, role=role, scope=scope, expires_at=end),
                    Change("add_member", user=user, role=role, scope=scope, expires_at=end),
                    Change("remove_member", user=user, role=role, scope=scope),
                    Change("add_parent", role=role, parent=other),
                    Change("remove_parent", role=role, parent=other),
                    Change("remove_user", user=user) if dice.random() < 0.3 else
                    Change("add_role", role=role),
                    Change("remove_role", role=role) if dice.random() < 0.3 else
                    Change("add_role", role=role),
                ]
            )
        )  # fmt: skip
    return made


async def live_through(tenant: TenantAtWork, dice: random.Random, rounds: int = 60) -> None:
    """A random history, with keys of both kinds."""
    from authsvc.errors import AuthsvcError

    for number in range(8):
        await tenant.write(Change("add_role", role=f"role{number}", description=f"d{number}"))
    for _ in range(rounds):
        tenant.clock.advance(dice.randrange(60))
        for change in some_changes(dice, tenant):
            try:
                await tenant.write(change)
            except AuthsvcError:
                continue
    for number in range(5):
        await issued(tenant, f"label {number}")
        await issued_api_key(tenant, f"user{number}")
    # Something of everything is there to be tampered with.
    await tenant.write(
        Change("add_role", role="top"),
        Change("add_role", role="bottom"),
        Change("add_parent", role="top", parent="bottom"),
        *[Change("grant", role="top", permission=f"q:{n}") for n in range(3)],
        *[Change("add_member", user=f"u{n}", role="top", scope="x") for n in range(3)],
    )


async def issued(tenant: TenantAtWork, label: str) -> operator.Issued:
    return await tenant.database.write(
        tenant.id,
        lambda tx: operator.issue_key(tx, "acme", label, ["check"], None, tenant.clock),
    )


async def issued_api_key(tenant: TenantAtWork, user: str) -> None:
    async def work(tx: Transaction) -> None:
        stamp = await lock_tenant(tx, tenant.id)
        mint: keys.Mint = add_api_key(user, "", None, lambda key, secret: (key, secret))
        events, _ = await mint(tx, tenant.id, "", tenant.clock())
        by = {"actor": "tests", "request_id": None, "ip_address": None, "user_agent": None}
        await record(tx, tenant.id, stamp, events, by, tenant.clock())

    await tenant.database.write(tenant.id, work)


# --- What SQL can do ---

Tampering = Callable[[Transaction, UUID, random.Random], Awaitable[str | None]]


async def rows_of(tx: Transaction, tenant_id: UUID, table: Any) -> list[dict[str, Any]]:
    found = await tx.execute(select(table).where(table.c.tenant_id == tenant_id))
    return [dict(row._mapping) for row in found]


def identity(table: Any, row: dict[str, Any]) -> list[Any]:
    return [column == row[column.name] for column in table.primary_key.columns]


async def put_in(tx: Transaction, tenant_id: UUID, dice: random.Random) -> str | None:
    """A row that nobody asked the service for."""
    name = dice.choice(POLICY)
    table = models.metadata.tables[name]
    roles = [row["id"] for row in await rows_of(tx, tenant_id, models.role)]
    there = await rows_of(tx, tenant_id, table)
    row = dict(dice.choice(there))
    if name == "role":
        row |= {"id": 10**6 + dice.randrange(10**6), "name": f"forged{dice.randrange(10**6)}"}
    elif name == "role_permission":
        row |= {"role_id": dice.choice(roles), "permission": f"forged:{dice.randrange(10**6)}"}
    elif name == "role_parent":
        pairs = {(one["role_id"], one["parent_id"]) for one in there}
        free = [(a, b) for a in roles for b in roles if a != b and (a, b) not in pairs]
        row["role_id"], row["parent_id"] = dice.choice(free)
    elif name == "membership":
        row |= {"role_id": dice.choice(roles), "scope": f"forged{dice.randrange(10**6)}"}
    else:
        row |= {"id": new_key_id(), "digest": digest_of(new_client_key())}
    await tx.execute(insert(table), row)
    return name


async def swap(tx: Transaction, tenant_id: UUID, dice: random.Random) -> str | None:
    """Two rows of a table that exchange a value, or one that gets another's."""
    name, column = dice.choice(
        [
            ("role", "description"),
            ("membership", "expires_at"),
            ("membership", "user_id"),
            ("membership", "role_id"),
            ("role_permission", "permission"),
            ("role_permission", "role_id"),
            ("client_key", "digest"),
            ("client_key", "scopes"),
            ("client_key", "label"),
            ("api_key", "digest"),
            ("api_key", "user_id"),
        ]
    )
    table = models.metadata.tables[name]
    there = await rows_of(tx, tenant_id, table)
    one, other = dice.sample(there, 2)
    if one[column] == other[column]:
        return None
    changed = [one | {column: other[column]}, other | {column: one[column]}]
    key = [c.name for c in table.primary_key.columns]
    places = [tuple(row[c] for c in key) for row in changed]
    taken = {tuple(row[c] for c in key) for row in there if row not in (one, other)}
    if len(set(places)) < 2 or taken & set(places):
        return None
    before = {tuple(row[c] for c in key) for row in (one, other)}
    if set(places) == before and column in key:
        return None  # an exchange of everything that makes the rows different
    if column in key:
        for row in (one, other):
            await tx.execute(delete(table).where(*identity(table, row)))
        for row in changed:
            await tx.execute(insert(table), row)
    else:
        if column == "digest":
            aside = {"digest": digest_of(new_client_key())}
            await tx.execute(update(table).where(*identity(table, one)).values(aside))
        for row in reversed(changed):
            values = {column: row[column]}
            await tx.execute(update(table).where(*identity(table, row)).values(values))
    after = await rows_of(tx, tenant_id, table)
    same = sorted(map(repr, after)) == sorted(map(repr, there))
    return None if same else f"{name}.{column}"


async def roll_back(tx: Transaction, tenant_id: UUID, dice: random.Random) -> str | None:
    """A row as it was before some change: gone, or back, or without its end."""
    name = dice.choice(["role_permission", "role_parent", "membership", "client_key", "api_key"])
    table = models.metadata.tables[name]
    row = dice.choice(await rows_of(tx, tenant_id, table))
    if name in ("client_key", "api_key") and dice.random() < 0.7:
        ended = None if row["revoked_at"] is not None else row["created_at"]
        values = {"revoked_at": ended}
        await tx.execute(update(table).where(*identity(table, row)).values(values))
        return f"{name}.revoked_at"
    if name == "client_key":
        # Others may refer to it.
        end = row["created_at"] if row["expires_at"] is None else None
        await tx.execute(update(table).where(*identity(table, row)).values(expires_at=end))
        return f"{name}.expires_at"
    await tx.execute(delete(table).where(*identity(table, row)))
    return name


async def found_after(
    owner: Database, tenant: TenantAtWork, tampering: Tampering, seed: int
) -> tuple[str | None, Review]:
    """What was done and what is found of it; nothing of it stays."""
    seen: list[tuple[str | None, Review]] = []

    async def work(tx: Transaction) -> None:
        tx.abandon()
        dice = random.Random(seed)
        done = None
        while done is None:
            done = await tampering(tx, tenant.id, dice)
        seen.append((done, await review_tenant(tx, tenant.id)))

    await owner.write("tampering", work)
    return seen[0]


@pytest.mark.parametrize("tampering", [put_in, swap, roll_back])
async def test_rows_past_the_service_are_found(
    storage: Storage, tenant: TenantAtWork, tampering: Tampering
) -> None:
    await live_through(tenant, random.Random(1))
    owner = storage.open(as_owner=True)
    places = set()
    for seed in range(TRIALS):
        done, review = await found_after(owner, tenant, tampering, seed)
        assert review.findings, (seed, done)
        assert review.lacking is None
        places.add(done)
    assert len(places) >= 4


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_found_where_nothing_was_done(tenant: TenantAtWork, seed: int) -> None:
    await live_through(tenant, random.Random(seed), rounds=40)
    async with tenant.database.read() as tx:
        assert (await review_tenant(tx, tenant.id)).findings == []


async def test_findings_say_what_is_where(storage: Storage, tenant: TenantAtWork) -> None:
    await tenant.write(
        Change("add_role", role="admin"),
        Change("add_member", user="alice", role="admin"),
        Change("grant", role="admin", permission="all"),
    )
    table = models.membership
    async with tenant.database.read() as tx:
        (row,) = await rows_of(tx, tenant.id, table)
        mallory = (await cipher_of(tx, tenant.id)).seal(MEMBER, "mallory")
    await storage.forge(
        lambda connection: connection.execute(insert(table), row | {"user_id": mallory})
    )
    await storage.forge(lambda connection: connection.execute(delete(models.role_permission)))
    async with tenant.database.read() as tx:
        review = await review_tenant(tx, tenant.id)
    assert review.findings == [
        "grant admin -> all is not in the table, and no event took it away",
        "membership of 'mallory' in 'admin', everywhere is in the table, and no event tells of it",
    ]


async def test_a_token_family_that_was_revived_is_found(
    storage: Storage, make_tenant: MakeTenant
) -> None:
    from authsvc.repositories.tokens import TokenFamilies

    tenant = await make_tenant("acme")
    caller = await tenant.caller()
    now = tenant.clock()

    async def begin(tx: Transaction) -> None:
        await TokenFamilies(tx, tenant.id).add(
            "fam_1",
            caller.key_id or "",
            handle=bytes(32),
            current=bytes(32),
            scopes=frozenset({"check"}),
            at=now,
            expires_at=now + timedelta(days=1),
        )

    await tenant.database.write(tenant.id, begin)
    table = models.token_family
    for values, problem in (
        ({"revoked_at": now}, "has ended, and no event ended it"),
        ({"revoked_at": None}, None),
    ):
        await storage.forge(
            lambda connection, values=values: connection.execute(  # type: ignore[misc]
                update(table).values(values)
            )
        )
        async with tenant.database.read() as tx:
            review = await review_tenant(tx, tenant.id)
        assert (problem is None) == (review.findings == [])
        assert problem is None or problem in review.findings[0]


async def test_a_pruned_trail_is_replayed_from_its_segments(
    storage: Storage, tenant: TenantAtWork, tmp_path: Path
) -> None:
    await live_through(tenant, random.Random(3), rounds=20)
    owner = storage.open(as_owner=True)
    key = Ed25519PrivateKey.generate()
    for _ in range(2):
        async with owner.read() as tx:
            segment = await audit_retention.whole(tx, "acme")
        await audit_retention.prune(owner, segment, tmp_path, key, tenant.clock)
        await tenant.write(Change("add_role", role=f"later{segment.until.revision}"))
    async with tenant.database.read() as tx:
        assert "were pruned" in str((await review_tenant(tx, tenant.id)).lacking)
        review = await review_tenant(tx, tenant.id, tmp_path)
    assert review.findings == []
    assert review.lacking is None
    for path in sorted(tmp_path.glob("*.jsonl"))[:1]:
        path.write_bytes(path.read_bytes().replace(b'"seq":5', b'"seq":6', 1))
    async with tenant.database.read() as tx:
        assert "is not what was pruned" in str(
            (await review_tenant(tx, tenant.id, tmp_path)).lacking
        )
