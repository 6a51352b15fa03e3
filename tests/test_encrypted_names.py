"""Names in an encrypted database: found, listed, never in the clear, and refused where moved."""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Table, delete, insert, select, update

import encrypted
from authsvc import models
from authsvc.app import create_app
from authsvc.audit_entries import Selection
from authsvc.database import Database, Transaction
from authsvc.encryption import KEY_LABEL, KEY_USER, LIVE, MEMBER, Field, KeyMissing, Unreadable
from authsvc.errors import CursorExpired, SettingsError, Unavailable
from authsvc.records import Change, Listing, Page
from authsvc.repositories.access import Access
from authsvc.repositories.field_ciphers import cipher_of
from authsvc.repositories.grant_use import GrantUses
from authsvc.repositories.keys import Keys
from authsvc.services import audit_search, encryption, operator, roles
from authsvc.services.activity import Activity
from authsvc.services.alerts import Alerts
from authsvc.services.audit_proof import prove_tenant
from authsvc.services.checks import Question, check
from authsvc.services.encryption import Aim, Candidate
from authsvc.services.grant_use import GrantUse
from authsvc.services.memberships import Questions
from authsvc.services.replay_review import review_tenant
from authsvc.services.tenants import create_tenant
from conftest import ControlledClock, Storage, TenantAtWork
from http_api import Api, served, settings_for
from test_alerts import RULES, alerts_in
from test_replay_review import issued, issued_api_key

SETTINGS = {"enable_encryption": True, "encryption_key": encrypted.KEY}


@dataclass
class Encrypted:
    """A database whose new tenants are encrypted, whatever the rest of the suite does."""

    storage: Storage
    clock: ControlledClock

    def process(self, *keys: str) -> Database:
        """What another process with these keys has."""
        database = self.storage.open()
        database.data_keys = encrypted.ring(*keys)
        return database

    async def make(self, name: str, database: Database | None = None) -> TenantAtWork:
        used = database or self.process(encrypted.KEY)
        made = await used.write(
            name, lambda tx: create_tenant(tx, name, self.clock(), actor="tests")
        )
        return TenantAtWork(used, self.clock, made.id, made.key)


@pytest.fixture
def here(storage: Storage, clock: ControlledClock) -> Encrypted:
    """A database for encrypted tenants."""
    return Encrypted(storage, clock)


async def furnish(tenant: TenantAtWork, users: int = 3) -> None:
    """Two roles, their grants, and members: ``u0`` may ``p0`` and all of ``p1:*``."""
    await tenant.write(
        Change("add_role", role="admin", description="May do it all"),
        Change("add_role", role="staff"),
        Change("add_parent", role="admin", parent="staff"),
        Change("grant", role="admin", permission="p0"),
        Change("grant", role="staff", permission="p1:*"),
        *(Change("add_member", role="admin", user=f"u{n}") for n in range(users)),
        Change("add_member", role="staff", user="u0", scope="here"),
    )


async def may(
    tenant: TenantAtWork, user: str, permission: str, database: Database | None = None
) -> bool:
    """Whether the user may, asked of the database."""
    asked = [Question(user, permission)]
    answers, _ = await check(database or tenant.database, tenant.id, asked, tenant.clock())
    return answers[0]


async def change(
    tenant: TenantAtWork, aim: Aim, database: Database | None = None, name: str = "acme"
) -> bool:
    """What the command does to one tenant."""
    used = database or tenant.database
    async with used.read() as tx:
        found = await encryption.candidates(tx, aim, name)
    done = False
    for one in found:

        async def work(tx: Transaction, one: Candidate = one) -> bool:
            return await encryption.change_tenant(tx, one.tenant, aim, tenant.clock)

        done |= await used.write(tenant.id, work)
    return done


# --- What is on disk ---


async def on_disk(storage: Storage) -> bytes:
    """Every byte that the database keeps, its log included."""
    if storage.path is not None:
        beside = storage.path.parent.glob(f"{storage.path.name}*")
        return b"".join(path.read_bytes() for path in beside)
    async with storage.administrator() as connection:
        await connection.execute("CHECKPOINT")
        folder = Path(await connection.fetchval("SHOW data_directory"))
        oid = await connection.fetchval(
            "SELECT oid FROM pg_database WHERE datname = current_database()"
        )
    kept = [*(folder / "base" / str(oid)).iterdir(), *(folder / "pg_wal").iterdir()]
    return b"".join(path.read_bytes() for path in kept if path.is_file())


def planted(number: int, kind: str) -> str:
    return f"{kind}{secrets.token_hex(8)}{number}"


async def act_with(api: Api, words: Sequence[str]) -> None:
    """Use the service with these words wherever people's names and words go."""
    for start in range(0, len(words), 8):
        user, other, permission, more, says, changed, label, renamed = words[start : start + 8]
        role = f"role{start}"
        await api.ok("POST", f"/api/role/{role}", {"description": says})
        await api.ok("POST", f"/api/role/{role}", {"description": changed})
        await api.ok("POST", f"/api/permission/{role}/{permission}")
        await api.ok("POST", f"/api/permission/{role}/{more}:*")
        await api.ok("POST", f"/api/membership/{user}/{role}")
        await api.ok("POST", f"/api/membership/{other}/{role}")
        made = await api.ok("POST", f"/api/apikeys/user/{user}", {"label": label})
        assert made["data"]["label"] == label
        await api.ok("POST", "/api/keys", {"label": renamed, "scopes": ["read"]})
        for who in (user, other):
            body = await api.ok("GET", f"/api/has_permission/{who}/{permission}")
            assert body["data"]["has_permission"] is True
            await api.ok("GET", f"/api/has_permission/{who}/no{permission}")
        listed = await api.ok("GET", f"/api/which_users_can/{more}:x")
        assert {one["user"] for one in listed["data"]} == {user, other}
        found = await api.ok("GET", f"/api/audit?entity_id={user}")
        assert {one["entity_id"] for one in found["data"]["entries"]} == {user}
        await api.ok("DELETE", f"/api/membership/{other}/{role}")
        await api.ok("DELETE", f"/api/user/{user}")


@pytest.mark.parametrize("on", [True, False])
async def test_no_name_is_on_disk(storage: Storage, clock: ControlledClock, on: bool) -> None:
    """200 planted words; without encryption the same search finds every one of them."""
    words = [planted(n, "w") for n in range(200)]
    values: dict[str, Any] = SETTINGS if on else {"enable_encryption": False}
    settings = settings_for(storage, audit_checks="all", client_registration="open", **values)
    app = create_app(settings, clock=clock)
    async with served(app) as http:
        api = Api(http, clock, "6f9619ff-8b86-4011-b42d-00c04fc964ff")
        await act_with(api, words)
        service = app.state.service
        for watcher in service.watchers:
            await watcher.flush()
        await service.activity.flush()
    kept = await on_disk(storage)
    # Bytes of a payload are stored as they are; pg_dump would write them as digits.
    found = [
        word for word in words if word.encode() in kept or word.encode().hex().encode() in kept
    ]
    assert found == ([] if on else words)


# --- What goes on working ---


async def test_pages_lists_and_filters_work(here: Encrypted) -> None:
    tenant = await here.make("acme")
    await furnish(tenant, 25)
    users = {f"u{n}" for n in range(25)}
    async with tenant.database.read() as tx:
        questions = Questions(tx, tenant.id, None, tenant.clock())
        asks: list[Callable[[Page], Awaitable[Listing[tuple[str, str]]]]] = [
            lambda page: questions.members("admin", page),
            lambda page: questions.which_users_can("p0", page),
        ]
        for ask in asks:
            seen: list[str] = []
            cursor = None
            while True:
                got = await ask(Page(7, cursor))
                seen += [user for user, _ in got.items]
                cursor = got.next
                if cursor is None:
                    break
            assert sorted(seen) == sorted(users)
        rows, cursor = [], None
        while True:
            page = await questions.role_rows("admin", Page(7, cursor))
            rows += [one.membership.user for one in page.items]
            cursor = page.next
            if cursor is None:
                break
        assert sorted(rows) == sorted(users)
        details, _ = await roles.describe_role(tx, tenant.id, "admin")
        assert (details.role.description, details.permissions) == ("May do it all", ["p0"])
        assert details.members_count == 25
    assert await may(tenant, "u0", "p0")
    assert await may(tenant, "u0", "p1:x")
    assert not await may(tenant, "u0", "p2")
    assert not await may(tenant, "~u0", "p0")
    await tenant.write(Change("revoke", role="admin", permission="p0"))
    assert not await may(tenant, "u0", "p0")
    await tenant.write(Change("remove_user", user="u0"))
    assert not await may(tenant, "u0", "p1:x")
    assert await tenant.violations() == []


@pytest.mark.parametrize("aim", [Aim.RESEAL, Aim.DISABLE])
async def test_a_cursor_of_before_is_expired(here: Encrypted, aim: Aim) -> None:
    tenant = await here.make("acme")
    await furnish(tenant, 9)

    async def ask(cursor: str | None) -> str | None:
        async with tenant.database.read() as tx:
            questions = Questions(tx, tenant.id, None, tenant.clock())
            await questions.role_rows("admin", Page(4))
            return (await questions.members("admin", Page(4, cursor))).next

    cursor = await ask(None)
    assert await ask(cursor)
    assert await change(tenant, aim)
    with pytest.raises(CursorExpired) as refused:
        await ask(cursor)
    assert refused.value.code == "cursor_expired"
    assert await ask(await ask(None))


async def test_events_are_found_under_every_key_they_were_written_with(here: Encrypted) -> None:
    plain = here.process()
    tenant = await here.make("acme", plain)
    await furnish(tenant)
    database = tenant.database = here.process(encrypted.KEY)
    for step, aim in enumerate((Aim.ENABLE, Aim.RESEAL, Aim.RESEAL, Aim.DISABLE, Aim.ENABLE)):
        tenant.clock.advance(5)
        assert await change(tenant, aim, database)
        await tenant.write(Change("grant", role="admin", permission=f"after:{step}"))
        await tenant.write(Change("remove_member", role="admin", user="u1"))
        await tenant.write(Change("add_member", role="admin", user="u1"))
        assert await may(tenant, "u1", f"after:{step}")
        assert await tenant.violations() == []
        async with database.read() as tx:
            proof = await prove_tenant(tx, tenant.id, "acme", database.audit_keys)
            assert (proof.problem, (await review_tenant(tx, tenant.id)).findings) == (None, [])
            wanted = Selection(entity_id="u1")
            found = await audit_search.page(tx, tenant.id, wanted, 100, None, tenant.clock())
        assert len(found.items) == 1 + 2 * (step + 1)
        assert {entry.entity_id for entry in found.items} == {"u1"}
    generations = await _generations(tenant)
    assert len(generations) == 4


async def _generations(tenant: TenantAtWork) -> set[int]:
    table = models.audit_event
    async with tenant.database.read() as tx:
        found = await tx.execute(select(table.c.generation).where(table.c.generation.is_not(None)))
        return {row.generation for row in found}


async def test_a_process_follows_another_that_changes_the_keys(here: Encrypted) -> None:
    """What one process has in memory about a tenant's key never makes it answer wrongly."""
    one, two = here.process(encrypted.KEY), here.process(encrypted.KEY)
    tenant = await here.make("acme", here.process())
    await furnish(tenant)
    for aim in (Aim.ENABLE, Aim.RESEAL, Aim.DISABLE, Aim.ENABLE):
        tenant.clock.advance(5)
        assert await may(tenant, "u0", "p0", one)
        assert await change(tenant, aim, two)
        assert await may(tenant, "u0", "p0", one)
        assert not await may(tenant, "u9", "p0", one)
        await tenant.write(Change("add_member", role="admin", user="new"), database=one)
        assert await may(tenant, "new", "p0", two)
        await tenant.write(Change("remove_member", role="admin", user="new"), database=one)
        assert not await may(tenant, "new", "p0", two)


async def test_erasing_takes_the_keys(here: Encrypted) -> None:
    tenant, other = await here.make("acme"), await here.make("other")
    await furnish(tenant)
    await furnish(other)
    owner = here.storage.open(as_owner=True)
    owner.data_keys = encrypted.ring(encrypted.KEY)
    await operator.erase_tenant(owner, "acme", tenant.clock)
    async with owner.read() as tx:
        rows = (await tx.execute(select(models.tenant_key.c.tenant_id))).scalars().all()
    assert set(rows) == {other.id}
    assert await may(other, "u0", "p0")


# --- Keys that are missing or wrong ---


async def test_the_incident_step_of_the_guide_is_refused_with_what_to_do(here: Encrypted) -> None:
    await here.make("acme")
    replaced = here.process(encrypted.NEXT_KEY)
    with pytest.raises(SettingsError, match="AUTH_ENCRYPTION_OLD_KEYS: lacks the key") as refused:
        await encryption.require_master_keys(replaced)
    assert "keep that in AUTH_ENCRYPTION_OLD_KEYS" in refused.value.message
    with pytest.raises(SettingsError, match="AUTH_ENCRYPTION_KEY: must be set"):
        await encryption.require_master_keys(here.process())
    await encryption.require_master_keys(here.process(encrypted.NEXT_KEY, encrypted.KEY))


async def test_a_replica_without_a_key_refuses_those_tenants_and_nothing_else(
    here: Encrypted,
) -> None:
    """The key came into use after it had started."""
    plain = await here.make("plain", here.process())
    await furnish(plain)
    app = create_app(settings_for(here.storage, enable_encryption=False), clock=here.clock)
    app.state.service.database.data_keys = encrypted.ring()
    async with served(app) as http:
        tenant = await here.make("acme")
        await furnish(tenant)
        theirs, ours = Api(http, here.clock, tenant.key), Api(http, here.clock, plain.key)
        for method, path in (
            ("GET", "/api/has_permission/u0/p0"),
            ("GET", "/api/members/admin"),
            ("POST", "/api/membership/u5/admin"),
            ("GET", "/api/audit"),
        ):
            refused = await theirs.send(method, path)
            assert refused.status_code == 503, (method, path, refused.text)
            assert "AUTH_ENCRYPTION_OLD_KEYS" in refused.json()["message"]
        assert (await ours.ok("GET", "/api/has_permission/u0/p0"))["data"]["has_permission"]
        await ours.ok("POST", "/api/membership/u5/admin")
        ready = await http.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
        assert "AUTH_ENCRYPTION_OLD_KEYS" in ready.json()["reasons"][0]
        assert (await http.get("/health")).status_code == 200
    assert not await may(tenant, "u5", "p0")


async def test_another_tenants_wrapped_key_is_refused_and_reported(
    here: Encrypted, caplog: pytest.LogCaptureFixture
) -> None:
    tenant, other = await here.make("acme"), await here.make("other")
    await furnish(tenant)
    await furnish(other)
    key = models.tenant_key

    def swap(connection: Connection) -> None:
        theirs = connection.execute(select(key.c.wrapped).where(key.c.tenant_id == other.id))
        connection.execute(
            update(key).where(key.c.tenant_id == tenant.id).values(wrapped=theirs.scalar_one())
        )

    await here.storage.forge(swap)
    fresh = here.process(encrypted.KEY)
    with pytest.raises(Unreadable):
        await may(tenant, "u0", "p0", fresh)
    assert tenant.id in fresh.data_keys.unreadable
    assert await may(other, "u0", "p0", fresh)
    with pytest.raises(Unreadable):
        await tenant.write(Change("add_member", role="admin", user="u7"), database=fresh)
    async with fresh.read() as tx:
        proof = await prove_tenant(tx, tenant.id, "acme", fresh.audit_keys)
        review = await review_tenant(tx, tenant.id)
    assert "wrapped key" in str(proof.problem)
    assert review.findings


async def test_a_tenant_whose_key_does_not_open_holds_up_no_other(here: Encrypted) -> None:
    """What one process does for all tenants: alerts, activity, the use of grants."""
    database = here.process(encrypted.KEY)
    assert await Alerts(database, RULES, here.clock).round() == 0
    broken, whole = await here.make("acme"), await here.make("other")
    for tenant in (broken, whole):
        await furnish(tenant)
        await tenant.write(Change("grant", role="staff", permission="billing:pay"))
    key = models.tenant_key
    torn = update(key).where(key.c.tenant_id == broken.id).values(wrapped="torn")
    await here.storage.forge(lambda connection: connection.execute(torn))
    fresh = here.process(encrypted.KEY)

    with pytest.raises(KeyMissing):
        await Alerts(fresh, RULES, here.clock).round()
    assert {row.tenant_id for row in await alerts_in(database)} == {whole.id}

    activity = Activity(fresh, here.clock, enabled=True)
    for tenant in (broken, whole):
        by = await tenant.caller()
        activity.note("issue", "token", "secret-name", by, here.clock(), {"user": "secret-name"})
    await activity.flush()
    event = models.activity_event
    async with fresh.read() as tx:
        rows = await tx.execute(select(event).where(event.c.action == "issue"))
        noted = {row.tenant_id: row for row in rows}
        (told,) = await encrypted.activity(tx, [noted[whole.id]])
    assert (told.entity_id, told.details) == ("secret-name", {"user": "secret-name"})
    assert "secret-name" not in repr(noted)
    assert noted[broken.id].entity_id == "(no key)"

    grants = GrantUse(fresh, here.clock)
    for tenant in (broken, whole):
        grants.note(tenant.id, "u0", "p0")
    with pytest.raises(KeyMissing):
        await grants.flush()
    async with fresh.read() as tx:
        assert [name for _, name in await GrantUses(tx, whole.id).all()] == ["p0"]


# --- Values that were moved ---


def columns() -> list[tuple[Table, Any]]:
    """The tables and columns that follow their tenant's data key."""
    made = []
    for place in LIVE:
        table, _, column = place.path.partition(".")
        made.append((models.metadata.tables[table], models.metadata.tables[table].c[column]))
    return made


async def fill(tenant: TenantAtWork) -> None:
    """A few values in every column."""
    await furnish(tenant, 4)
    await tenant.write(Change("add_role", role="third", description="Another"))
    for user in ("u0", "u1", "u2"):
        await issued_api_key(tenant, user)
    await issued(tenant, "for the nightly job")
    used = [(3, "p0"), (4, "p1:*")]
    await tenant.database.write(
        tenant.id, lambda tx: GrantUses(tx, tenant.id).write(used, tenant.clock())
    )


async def read_all(tx: Transaction, tenant_id: UUID, now: datetime) -> None:
    """Every way in which values of a tenant are read."""
    questions = Questions(tx, tenant_id, None, now)
    for role in ("admin", "staff", "third"):
        await roles.describe_role(tx, tenant_id, role)
        await roles.role_permissions(tx, tenant_id, role, Page(), direct=False)
        await questions.role_rows(role, Page())
        await questions.members(role, Page())
    await Keys(tx, tenant_id).all()
    access = Access(tx, tenant_id)
    await access.grants()
    await access.memberships()
    await access.credentials(now)
    await GrantUses(tx, tenant_id).all()
    found = await tx.execute(select(models.api_key).where(models.api_key.c.tenant_id == tenant_id))
    cipher = await cipher_of(tx, tenant_id)
    for row in found:
        cipher.open(KEY_USER, row.user_id)
        cipher.open(KEY_LABEL, row.label)


async def refuses(database: Database, tenant: TenantAtWork) -> bool:
    try:
        async with database.read() as tx:
            await read_all(tx, tenant.id, tenant.clock())
    except Unreadable:
        return True
    return False


SWAPS = 10_000


@pytest.mark.timeout(900)
async def test_ten_thousand_moved_values_are_refused(here: Encrypted) -> None:
    """Between tenants, tables and columns, straight in the tables. None is taken for a value.

    In memory each is asked of the cipher that would read it; every hundredth is also written into
    the database, where reading is refused, no check is let through and ``verify`` tells of it.
    """
    tenants = [await here.make("acme"), await here.make("other")]
    for tenant in tenants:
        await fill(tenant)
    database = here.process(encrypted.KEY)
    values: list[tuple[int, Field, str, dict[str, Any]]] = []
    async with database.read() as tx:
        ciphers = [await cipher_of(tx, tenant.id) for tenant in tenants]
        for place, (table, column) in zip(LIVE, columns(), strict=True):
            for number, tenant in enumerate(tenants):
                rows = await tx.execute(select(table).where(table.c.tenant_id == tenant.id))
                for row in rows.mappings():
                    key = {c.name: row[c.name] for c in table.primary_key.columns}
                    values.append((number, place, row[column.name], key))
        assert not await refuses(database, tenants[0])
    assert {place.path for _, place, _, _ in values} == {place.path for place in LIVE}
    dice = random.Random(6)
    accepted = written = 0
    for trial in range(SWAPS):
        source, target = dice.sample(values, 2)
        while (source[0], source[1]) == (target[0], target[1]):
            source, target = dice.sample(values, 2)
        number, place, stored, key = target
        try:
            ciphers[number].open(place, source[2])
            accepted += 1
        except Unreadable:
            pass
        if trial % 100:
            continue
        written += 1
        table = models.metadata.tables[place.path.partition(".")[0]]
        column = place.path.partition(".")[2]
        await rewrite(here.storage, table, key, column, source[2])
        tenant = tenants[number]
        assert await refuses(database, tenant), (source, target)
        for user in ("u0", "u1", "u9"):
            assert not await lets_in(database, tenant, user, "p0:never")
        async with database.read() as tx:
            findings = (await review_tenant(tx, tenant.id)).findings
        # Which grants were used is no policy, and no event tells of it.
        assert findings or table is models.grant_use, (source, target)
        await rewrite(here.storage, table, key | {column: source[2]}, column, stored)
        assert not await refuses(database, tenant)
    assert (accepted, written) == (0, SWAPS // 100)


async def rewrite(
    storage: Storage, table: Table, key: dict[str, Any], column: str, value: str
) -> None:
    """Put a value into one row, past the service. A key that is changed is the new one after it."""
    where = [
        table.c[name] == part for name, part in key.items() if name in table.primary_key.columns
    ]

    def work(connection: Connection) -> None:
        done = connection.execute(update(table).where(*where).values({column: value}))
        assert done.rowcount == 1

    owner = storage.open(as_owner=True)
    async with owner.writer.begin() as connection:
        await connection.run_sync(work)
    await owner.dispose()


async def lets_in(database: Database, tenant: TenantAtWork, user: str, permission: str) -> bool:
    try:
        return await may(tenant, user, permission, database)
    except Unavailable:
        return False


async def test_a_swap_inside_one_column_and_a_row_put_in_are_found(here: Encrypted) -> None:
    """These open. What finds them is the audit trail, replayed against the tables."""
    tenant = await here.make("acme")
    await furnish(tenant, 4)
    member = models.membership
    async with tenant.database.read() as tx:
        found = await tx.execute(
            select(member.c.user_id, member.c.role_id).where(member.c.role_id == 3)
        )
        stored = sorted(map(tuple, found))
        cipher = await cipher_of(tx, tenant.id)

    async def findings() -> list[str]:
        async with tenant.database.read() as tx:
            return (await review_tenant(tx, tenant.id)).findings

    async def forge(work: Callable[[Connection], object]) -> None:
        await here.storage.forge(work)

    assert await findings() == []
    outsider = cipher.seal(MEMBER, "outsider")
    row = {"tenant_id": tenant.id, "user_id": outsider, "role_id": 3, "scope": ""}
    await forge(lambda c: c.execute(insert(member), row))
    assert any("'outsider'" in one for one in await findings())
    mine = member.c.user_id == outsider
    await forge(lambda c: c.execute(delete(member).where(mine)))
    assert await findings() == []
    first = member.c.user_id == stored[0][0]
    await forge(
        lambda c: c.execute(update(member).where(first, member.c.role_id == 3).values(role_id=4))
    )
    assert len(await findings()) == 2


async def test_a_plain_name_among_encrypted_ones_is_refused(here: Encrypted) -> None:
    tenant = await here.make("acme")
    await furnish(tenant)
    row = {"tenant_id": tenant.id, "user_id": "mallory", "role_id": 3, "scope": ""}
    await here.storage.forge(lambda c: c.execute(insert(models.membership), row))
    fresh = here.process(encrypted.KEY)
    assert not await may(tenant, "mallory", "p0", fresh)
    async with fresh.read() as tx:
        with pytest.raises(Unreadable):
            await Questions(tx, tenant.id, None, tenant.clock()).members("admin", Page())
        assert (await review_tenant(tx, tenant.id)).findings
    assert (await encryption.status(fresh)).astray == 1


async def test_what_does_not_open_in_the_trail_is_a_broken_event(here: Encrypted) -> None:
    tenant = await here.make("acme")
    await furnish(tenant)
    event = models.audit_event

    def swap(connection: Connection) -> None:
        wanted = select(event.c.seq, event.c.payload).where(event.c.seq.in_((3, 4)))
        payloads: dict[int, bytes] = {row[0]: row[1] for row in connection.execute(wanted)}
        for seq, other in ((3, 4), (4, 3)):
            mine = (event.c.tenant_id == tenant.id, event.c.seq == seq)
            connection.execute(update(event).where(*mine).values(payload=payloads[other]))

    await here.storage.forge(swap)
    async with tenant.database.read() as tx:
        proof = await prove_tenant(tx, tenant.id, "acme", tenant.database.audit_keys)
    assert (proof.first_broken, proof.checked) == (3, 2)
