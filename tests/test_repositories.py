"""The contract of storage, the same on SQLite and on PostgreSQL.

Answers are compared with ``replay.Policy``, which works them out by brute force.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import exc, insert

import encrypted
from authsvc import models
from authsvc.database import Database, Transaction
from authsvc.decision_cache import DecisionCache
from authsvc.encryption import GRANT, MEMBER
from authsvc.errors import InputError, LimitRequired, NotFound, RoleCycle
from authsvc.records import LIST_MAX, Change, Listing, Page
from authsvc.repositories.audit import Audit
from authsvc.repositories.field_ciphers import cipher_of
from authsvc.repositories.grants import Grants
from authsvc.repositories.heads import Heads
from authsvc.repositories.memberships import Memberships
from authsvc.repositories.roles import Roles
from authsvc.revision_gate import Gate, PostgresGate, SqliteGate
from authsvc.services import roles as role_questions
from authsvc.services.checks import Answer, Question, check, check_now, explain, explain_now
from authsvc.services.current_state import CurrentState
from authsvc.services.memberships import Questions
from conftest import ControlledClock, MakeTenant, Storage, TenantAtWork, connect_driver
from replay import Policy, covers, stored_policy, stored_stamp

ROLES = ["lead", "Lead", "admin", "ops-1", "ops_1", "a.b", "x:y", "reader"]
USERS = ["alice", "Alice", "bob|1", "carol@example.org", "d+e", "zed"]
SCOPES = ["eu", "EU", "us/east"]
GRANTS = ["a", "A", "a:*", "a:b", "a:b:*", "a:b:c", "a:c", "b:*", "b:x", "b_x", "a-b", "::*"]
PERMISSIONS = ["a", "A", "a:", "a:b", "a:B", "a:b:c", "a:b:c:d", "a:c", "b", "b:x", "b:y", "b_x",
               "bxx", "::z", "never"]  # fmt: skip


def random_change(chance: random.Random, now: datetime) -> Change:
    """One change, more often adding than removing."""

    def instant() -> datetime | None:
        return chance.choice([None, None, now + timedelta(seconds=chance.choice([-9, 0, 9]))])

    role, user, permission = chance.choice(ROLES), chance.choice(USERS), chance.choice(GRANTS)
    scope = chance.choice([None, None, *SCOPES])
    kind = chance.random()
    if kind < 0.25:
        return Change("grant", role=role, permission=permission)
    if kind < 0.50:
        return Change(
            "add_member", role=role, user=user, scope=scope,
            not_before=instant(), expires_at=instant(),
        )  # fmt: skip
    if kind < 0.68:
        return Change("add_parent", role=role, parent=chance.choice(ROLES))
    if kind < 0.80:
        return Change("add_role", role=role, description=chance.choice(["", "ü", "other"]))
    if kind < 0.84:
        return Change("remove_role", role=role)
    if kind < 0.88:
        return Change("revoke", role=role, permission=permission)
    if kind < 0.93:
        return Change("remove_member", role=role, user=user, scope=scope)
    if kind < 0.97:
        return Change("remove_parent", role=role, parent=chance.choice(ROLES))
    return Change("remove_user", user=user)


async def build(tenant: TenantAtWork, seed: int, changes: int = 90) -> Policy:
    """A random history in lists of random lengths; the policy it leaves in the tables."""
    chance = random.Random(seed)
    await tenant.write(*(Change("add_role", role=name) for name in ROLES))
    left = changes
    while left > 0:
        tenant.clock.advance(0.5)
        batch = [random_change(chance, tenant.clock()) for _ in range(chance.randint(1, 6))]
        left -= len(batch)
        for size in (len(batch), 1):
            groups = [batch[i : i + size] for i in range(0, len(batch), size)]
            refused = [group for group in groups if not await accepted(tenant, group)]
            if not refused:
                break
    async with tenant.database.read() as tx:
        return await stored_policy(tx, tenant.id)


async def accepted(tenant: TenantAtWork, changes: Sequence[Change]) -> bool:
    """Whether the list was applied; one that was refused must have left the state alone."""
    before = (await tenant.caller()).stamp
    try:
        outcome = await tenant.write(*changes)
    except (NotFound, RoleCycle):
        assert (await tenant.caller()).stamp == before
        return False
    assert outcome.stamp == (await tenant.caller()).stamp
    assert outcome.stamp.revision == before.revision + outcome.applied
    return True


def everything_asked(now: datetime) -> Iterator[tuple[str | None, datetime]]:
    """Scopes, and instants before, between and after the bounds of ``random_change``."""
    scopes = [None, "eu", None, "elsewhere", "EU", None]
    for scope, seconds in zip(scopes, (0, 0, -4, -30, 4, 30), strict=True):
        yield scope, now + timedelta(seconds=seconds)


# --- History and tables ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_tables_and_chain_are_what_the_events_say(tenant: TenantAtWork, seed: int) -> None:
    await build(tenant, seed, changes=160)
    assert await tenant.violations() == []


async def test_a_role_made_again_starts_empty(tenant: TenantAtWork) -> None:
    await tenant.write(
        Change("add_role", role="top"),
        Change("add_role", role="r", description="old"),
        Change("grant", role="r", permission="p"),
        Change("add_member", role="r", user="alice"),
        Change("add_parent", role="r", parent="top"),
        Change("grant", role="top", permission="q"),
    )
    await tenant.write(Change("remove_role", role="r"), Change("add_role", role="r"))
    async with tenant.database.read() as tx:
        details, stamp = await role_questions.describe_role(tx, tenant.id, "r")
    assert (details.role.description, details.parents, details.permissions) == ("", [], [])
    assert (details.members_count, details.role.id) == (0, stamp.revision)
    assert await tenant.violations() == []


async def test_a_role_is_described_as_stored(tenant: TenantAtWork) -> None:
    text = "Führt Büro \N{EN DASH} \N{SNOWMAN} 'quoted' \"double\" % _ \\ ;--"
    await tenant.write(
        Change("add_role", role="a"),
        Change("add_role", role="r", description=text),
        Change("add_parent", role="r", parent="a"),
        Change("grant", role="r", permission="p:*"),
        Change("grant", role="r", permission="P"),
        Change("add_member", role="r", user="alice"),
        Change("add_member", role="r", user="alice", scope="eu"),
        Change("add_member", role="r", user="bob", expires_at=tenant.clock()),
    )
    async with tenant.database.read() as tx:
        details, stamp = await role_questions.describe_role(tx, tenant.id, "r")
        with pytest.raises(NotFound) as missing:
            await role_questions.describe_role(tx, tenant.id, "R")
    assert missing.value.code == "role_not_found"
    assert details.role.description == text
    assert details.role.created_at == tenant.clock()
    assert (details.parents, details.permissions) == (["a"], ["P", "p:*"])
    assert (details.members_count, stamp.revision) == (2, 10)


# --- Uniqueness and names --------------------------------------------------------------------


async def test_rows_are_unique(tenant: TenantAtWork) -> None:
    await tenant.write(
        Change("add_role", role="r"),
        Change("add_role", role="s"),
        Change("grant", role="r", permission="p"),
        Change("add_member", role="r", user="alice"),
        Change("add_parent", role="r", parent="s"),
    )
    rows = {"tenant_id": tenant.id, "role_id": 3}
    async with tenant.database.read() as tx:
        cipher = await cipher_of(tx, tenant.id)
    permission, alice = cipher.seal(GRANT, "p"), cipher.seal(MEMBER, "alice")
    role = {"tenant_id": tenant.id, "description": "", "created_at": tenant.clock()}
    for table, row in (
        (models.role, role | {"id": 99, "name": "r"}),
        (models.role, role | {"id": 3, "name": "other"}),
        (models.role_permission, rows | {"permission": permission}),
        (models.membership, rows | {"user_id": alice, "scope": ""}),
        (models.role_parent, rows | {"parent_id": 4}),
        (models.role_permission, rows | {"role_id": 99, "permission": "of no role"}),
        (models.membership, rows | {"role_id": 99, "user_id": "alice", "scope": ""}),
        (models.role_parent, rows | {"parent_id": 99}),
    ):

        async def work(tx: Transaction, table: Any = table, row: Any = row) -> None:
            await tx.execute(insert(table), row)

        with pytest.raises(exc.IntegrityError):
            await tenant.database.write(tenant.id, work)
    assert await tenant.violations() == []


def tricky_pairs(alphabet: str, longest: int, count: int) -> list[tuple[str, str]]:
    """Pairs of names that a collation, a pattern or a conversion would confuse; some are equal."""
    chance = random.Random(alphabet)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        length = chance.choice([1, 2, 3, 5, 8, longest])
        name = "".join(chance.choice(alphabet) for _ in range(length))
        place = chance.randrange(length)
        changed = name[:place] + chance.choice(alphabet) + name[place + 1 :]
        other = chance.choice(
            [
                name,
                name.swapcase(),
                name.upper(),
                name.lower(),
                changed,
                name[:-1],
                (name + chance.choice(alphabet))[:longest],
                name.replace("_", "-"),
                name.replace("-", "_"),
                name.replace(".", ":"),
                name[::-1],
                "".join(sorted(name)),
                "0" + name[1:],
            ]
        )
        if other and {name, other}.isdisjoint({".", ".."}):
            pairs.append((name, other))
    return pairs


async def test_role_names_are_equal_as_python_says(tenant: TenantAtWork) -> None:
    pairs = tricky_pairs(string.ascii_letters + string.digits + "_-.:", 64, 2000)
    left = {name for name, _ in pairs}
    await tenant.write(*(Change("add_role", role=name) for name in sorted(left)))
    async with tenant.database.read() as tx:
        found = await Roles(tx, tenant.id).named({other for _, other in pairs})
    assert all((other in found) == (other in left) for _, other in pairs)
    assert all(found[other].name == other for _, other in pairs if other in left)
    assert sum(first == second for first, second in pairs) > 100


def in_order(users: Iterable[str]) -> list[str]:
    """Users as they came, or sorted where they come in the order of what is stored of them."""
    return sorted(users) if encrypted.ON else list(users)


async def test_users_scopes_and_permissions_are_equal_and_ordered_as_python_says(
    tenant: TenantAtWork,
) -> None:
    users = tricky_pairs(string.ascii_letters + string.digits + "_-.:@+|", 254, 2000)
    scopes = tricky_pairs(string.ascii_letters + string.digits + "_-.:@+/", 254, 200)
    permissions = tricky_pairs(string.ascii_letters + string.digits + "_-.:", 128, 200)
    left = sorted({name for name, _ in users})
    granted = sorted({name for name, _ in permissions} | {name + ":*" for name in "aZ_-.9"})
    await tenant.write(
        Change("add_role", role="r"),
        *(Change("grant", role="r", permission=name) for name in granted),
        *(Change("add_member", role="r", user=name) for name in left),
        *(Change("add_member", role="r", user="scoped", scope=name) for name, _ in scopes),
    )
    now = tenant.clock()
    async with tenant.database.read() as tx:
        questions = Questions(tx, tenant.id, None, now)
        members = (await questions.members("r", Page())).items
        names = (
            await role_questions.role_permissions(tx, tenant.id, "r", Page(), direct=True)
        ).items
        among = await Grants(tx, tenant.id).among([3], {other for _, other in permissions})
        rows = (await questions.user_rows("scoped", Page())).items
    assert in_order(user for user, _ in members) == left
    assert names == granted
    assert {p for _, p in among} == {other for _, other in permissions} & set(granted)
    assert [row.membership.scope for row in rows] == sorted({name for name, _ in scopes})

    asked = [Question(other, granted[0]) for _, other in users]
    answers, _ = await check(tenant.database, tenant.id, asked, now)
    assert answers == [other in set(left) for _, other in users]
    bound = {name for name, _ in scopes}
    asked = [Question("scoped", granted[0], other) for _, other in scopes]
    answers, _ = await check(tenant.database, tenant.id, asked, now)
    assert answers == [other in bound for _, other in scopes]


# --- Tenants ---------------------------------------------------------------------------------


async def test_tenants_do_not_see_or_touch_each_other(make_tenant: MakeTenant) -> None:
    ours, theirs, third = [await make_tenant(name) for name in ("acme", "Acme", "acme ")]
    policy = await build(ours, 7)
    async with ours.database.read() as tx:
        before = await stored_stamp(tx, ours.id)
    assert await answers_of(theirs) == await answers_of(third)

    same_names = [Change("add_role", role=name) for name in ROLES]
    await theirs.write(*same_names, Change("grant", role="lead", permission="a"))
    # Their ids are ours too: role 3 exists in both.
    wipe = [
        *(Change("remove_user", user=user) for user in USERS),
        *(Change("remove_member", user=user, role=role) for user in USERS for role in ROLES),
        *(Change("revoke", role=role, permission=grant) for role in ROLES for grant in GRANTS),
        *(Change("remove_parent", role=a, parent=b) for a in ROLES for b in ROLES),
        *(Change("remove_role", role=role) for role in ROLES),
    ]
    outcome = await theirs.write(*wipe)
    assert outcome.applied == 1 + len(ROLES)
    async with ours.database.read() as tx:
        assert await stored_policy(tx, ours.id) == policy
        assert await stored_stamp(tx, ours.id) == before
        assert (await stored_policy(tx, theirs.id)).roles == {}
    assert [await it.violations() for it in (ours, theirs, third)] == [[], [], []]


async def answers_of(tenant: TenantAtWork) -> list[object]:
    """Everything a tenant can ask about names that another one uses."""
    now = tenant.clock()
    asked = [Question(user, p) for user in USERS for p in PERMISSIONS]
    answers, _ = await check(tenant.database, tenant.id, asked, now)
    found: list[object] = [any(answers)]
    async with tenant.database.read() as tx:
        questions = Questions(tx, tenant.id, None, now)
        page = Page()
        found += [(await role_questions.list_roles(tx, tenant.id, page)).items]
        for role in ROLES:
            found += [
                (await questions.members(role, page)).items,
                (await questions.role_rows(role, page)).items,
                (
                    await role_questions.role_permissions(tx, tenant.id, role, page, direct=False)
                ).items,
            ]
        for user in USERS:
            found += [(await questions.user_roles(user, page)).items]
            found += [(await questions.user_rows(user, page)).items]
            found += [(await questions.user_permissions(user, page)).items]
        for permission in PERMISSIONS:
            found += [(await questions.which_users_can(permission, page)).items]
            found += [(await role_questions.which_roles_can(tx, tenant.id, permission, page)).items]
    return found


async def test_repositories_reach_nothing_of_another_tenant(make_tenant: MakeTenant) -> None:
    ours, theirs = await make_tenant("one"), await make_tenant("two")
    policy = await build(ours, 11)
    ids = list(policy.roles)

    async def work(tx: Transaction) -> None:
        roles, grants = Roles(tx, theirs.id), Grants(tx, theirs.id)
        memberships = Memberships(tx, theirs.id)
        assert await roles.named(ROLES) == {}
        assert await roles.names(ids) == {}
        assert await roles.edges() == await roles.edges_touching(ids) == []
        assert await grants.among(ids, GRANTS) == set()
        assert await memberships.of_users(USERS) == []
        assert await memberships.holders(ids, "", 9, "", theirs.clock()) == []
        assert len(await Audit(tx, theirs.id).after(0, 100)) == 2
        assert (await Heads(tx, theirs.id).current()).revision == 2
        theirs_of_ours = await Memberships(tx, ours.id).of_users(USERS)
        await roles.remove(ids)
        await roles.remove_edges(policy.edges)
        await roles.describe([(role_id, "changed") for role_id in ids])
        await grants.remove(policy.grants)
        await memberships.rebound(theirs_of_ours)
        await memberships.remove(theirs_of_ours)

    await theirs.database.write(theirs.id, work)
    async with ours.database.read() as tx:
        assert await stored_policy(tx, ours.id) == policy


async def test_a_tenant_that_does_not_exist_has_nothing(
    database: Database, clock: ControlledClock
) -> None:
    page = Page(5)
    async with database.read() as tx:
        questions = Questions(tx, None, None, clock())
        lists: list[Listing[Any]] = [
            await questions.members("r", page),
            await questions.role_rows("r", page),
            await questions.user_roles("u", page),
            await questions.user_rows("u", page),
            await questions.user_permissions("u", page),
            await questions.which_users_can("p", page),
            await role_questions.list_roles(tx, None, page),
            await role_questions.role_permissions(tx, None, "r", page, direct=False),
            await role_questions.which_roles_can(tx, None, "p", page),
        ]
        assert (await questions.is_member("u", "r"))[0] is False
        assert (await role_questions.role_has_permission(tx, None, "r", "p"))[0] is False
    assert all(it.items == [] and it.next is None and it.stamp.revision == 0 for it in lists)
    assert (await check(database, None, [Question("u", "p")], clock()))[0] == [False]


# --- Answers and the oracle ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20, 23))
async def test_checks_are_what_brute_force_says(tenant: TenantAtWork, seed: int) -> None:
    policy = await build(tenant, seed)
    asked_by = [*USERS, "nobody"]
    seen = set()
    for scope, now in everything_asked(tenant.clock()):
        asked = [Question(user, p, scope) for user in asked_by for p in PERMISSIONS]
        answers, stamp = await check(tenant.database, tenant.id, asked, now)
        expected = [policy.user_can(q.user, q.permission, q.scope, now) for q in asked]
        assert answers == expected
        assert stamp == (await tenant.caller()).stamp
        seen.update(answers)
        why, same = await explain(tenant.database, tenant.id, asked, now)
        assert same == stamp
        for question, allowed, answer in zip(asked, answers, why, strict=True):
            assert_explained(policy, question, answer, allowed, now)
    assert seen == {True, False}


def assert_explained(
    policy: Policy, question: Question, answer: Answer, allowed: bool, now: datetime
) -> None:
    """A positive answer has grounds, each a way that exists; a negative one has its reason."""
    assert answer.allowed is allowed
    assert bool(answer.grounds) is allowed
    assert (answer.reason is None) is allowed
    for ground in answer.grounds:
        ids = [policy.id_of(name) for name in ground.via]
        bounds = policy.memberships[question.user, ids[0], ground.scope or ""]
        assert ground.scope in (None, question.scope)
        assert bounds.not_before is None or bounds.not_before <= now
        assert bounds.expires_at is None or now < bounds.expires_at
        assert all(step in policy.edges for step in itertools.pairwise(ids))
        assert (policy.id_of(ground.role), ground.permission) in policy.grants
        assert ground.role == ground.via[-1]
        assert covers(ground.permission, question.permission)
    held = {k: b for k, b in policy.memberships.items() if k[0] == question.user}
    leading = {k: b for k, b in held.items() if policy.role_can(k[1], question.permission)}
    match answer.reason:
        case "no_such_user":
            assert not held
        case "no_role_grants_it":
            assert held
            assert not leading
        case "out_of_scope":
            in_time = [k for k in leading if k[1] in policy.held(question.user, k[2], now)]
            assert in_time
            assert all(scope not in ("", question.scope) for _, _, scope in in_time)
        case "membership_not_started":
            assert any(b.not_before and now < b.not_before for b in leading.values())
        case "membership_expired":
            assert any(b.expires_at and now >= b.expires_at for b in leading.values())


async def test_a_batch_is_its_single_checks(tenant: TenantAtWork) -> None:
    policy = await build(tenant, 31)
    now = tenant.clock()
    asked = [
        Question(user, permission, scope)
        for user in USERS[:4]
        for permission in PERMISSIONS[2:8]
        for scope in (None, "eu")
    ]
    together, _ = await check(tenant.database, tenant.id, asked, now)
    singles = [(await check(tenant.database, tenant.id, [q], now))[0][0] for q in asked]
    assert together == singles
    assert together == [policy.user_can(q.user, q.permission, q.scope, now) for q in asked]
    assert (await check(tenant.database, tenant.id, [], now))[0] == []


@pytest.mark.parametrize("seed", [35, 36])
async def test_answers_from_memory_are_what_brute_force_says(
    storage: Storage, tenant: TenantAtWork, seed: int
) -> None:
    """Asked again after every list of changes, so that memory follows the events."""
    clock, chance = tenant.clock, random.Random(seed)
    gate: Gate = (
        SqliteGate(storage.path, clock)
        if storage.path
        else PostgresGate(lambda: connect_driver(storage.url), clock)
    )
    current = CurrentState(tenant.database, gate, DecisionCache(1))
    await tenant.write(*(Change("add_role", role=name) for name in ROLES))
    for _ in range(60):
        clock.advance(0.5)
        await accepted(tenant, [random_change(chance, clock()) for _ in range(2)])
        caller = await tenant.caller()
        async with tenant.database.read() as tx:
            policy = await stored_policy(tx, tenant.id)
        scope = chance.choice([None, "eu", "EU"])
        asked = [Question(u, p, scope) for u in chance.sample(USERS, 3) for p in PERMISSIONS]
        answers, stamp = await check_now(current, caller, asked, clock())
        why, same = await explain_now(current, caller, asked, clock())
        assert stamp == same == caller.stamp
        assert answers == [policy.user_can(q.user, q.permission, scope, clock()) for q in asked]
        for question, allowed, answer in zip(asked, answers, why, strict=True):
            assert_explained(policy, question, answer, allowed, clock())
    await gate.stop()


def once(items: Sequence[Any]) -> list[Any]:
    """The items in order, each of which must be there once."""
    assert len(set(items)) == len(items)
    return sorted(items)


@pytest.mark.parametrize("seed", range(40, 42))
async def test_lists_are_what_brute_force_says(tenant: TenantAtWork, seed: int) -> None:
    policy = await build(tenant, seed)
    everything = Page()
    async with tenant.database.read() as tx:
        listed = (await role_questions.list_roles(tx, tenant.id, everything)).items
        assert [(r.id, r.name, r.description, r.created_at) for r in listed] == [
            (role_id, *policy.roles[role_id]) for role_id in sorted(policy.roles)
        ]
        for role in policy.roles:
            name = policy.name_of(role)
            for direct, expected in (
                (True, {p for r, p in policy.grants if r == role}),
                (False, policy.effective(role)),
            ):
                found = await role_questions.role_permissions(
                    tx, tenant.id, name, everything, direct=direct
                )
                assert found.items == sorted(expected)
        for permission in PERMISSIONS:
            can = [r for r in sorted(policy.roles) if policy.role_can(r, permission)]
            found = await role_questions.which_roles_can(tx, tenant.id, permission, everything)
            assert found.items == [policy.name_of(r) for r in can]
            for role in policy.roles:
                has, _ = await role_questions.role_has_permission(
                    tx, tenant.id, policy.name_of(role), permission
                )
                assert has is (role in can)
        for scope, now in everything_asked(tenant.clock()):
            await compare_users(policy, Questions(tx, tenant.id, scope, now), scope, now)


async def compare_users(
    policy: Policy, questions: Questions, scope: str | None, now: datetime
) -> None:
    """Every list about users, for one scope and instant."""
    page = Page()
    held = {user: policy.held(user, scope, now) for user in [*USERS, "nobody"]}
    reached = {
        user: set[int]().union(*(policy.above(r) for r in roles)) for user, roles in held.items()
    }
    for user in held:
        names = {p for role in held[user] for p in policy.effective(role)}
        assert (await questions.user_permissions(user, page)).items == sorted(names)
        found = (await questions.user_roles(user, page)).items
        direct = sorted(held[user])
        inherited = sorted(reached[user] - held[user])
        assert found == [(user, policy.name_of(r)) for r in direct + inherited]
    for role in policy.roles:
        name = policy.name_of(role)
        members = (await questions.members(name, page)).items
        assert once(members) == sorted((user, name) for user in held if role in reached[user])
    for permission in PERMISSIONS:
        pairs = (await questions.which_users_can(permission, page)).items
        assert once(pairs) == sorted(
            (user, policy.name_of(role))
            for user in held
            for role in reached[user]
            if policy.role_can(role, permission)
        )
        # Of a user, roles held directly and inherited ones: the first told is held.
        first: dict[str, str] = {}
        for user, name in pairs:
            first.setdefault(user, name)
        assert all(policy.id_of(name) in held[user] for user, name in first.items())
    for user, role in itertools.product(("alice", "zed", "nobody"), policy.roles):
        is_in, _, _ = await questions.is_member(user, policy.name_of(role))
        assert is_in is (role in reached[user])


async def test_stored_rows_are_listed_as_they_are(tenant: TenantAtWork) -> None:
    policy = await build(tenant, 50)
    async with tenant.database.read() as tx:
        questions = Questions(tx, tenant.id, None, tenant.clock())
        found = {}
        for user in USERS:
            for row in (await questions.user_rows(user, Page())).items:
                m = row.membership
                assert row.role == policy.name_of(m.role_id)
                found[m.user, m.role_id, m.scope] = (m.not_before, m.expires_at)
        assert found == policy.memberships
        again = {}
        for role in policy.roles:
            for row in (await questions.role_rows(policy.name_of(role), Page())).items:
                m = row.membership
                assert m.role_id == role
                again[m.user, m.role_id, m.scope] = (m.not_before, m.expires_at)
        assert again == policy.memberships


# --- Pages -----------------------------------------------------------------------------------

Ask = Callable[[Transaction, TenantAtWork, Page], Awaitable[Listing[Any]]]


def asked_of_users(tx: Transaction, tenant: TenantAtWork, scope: str | None = None) -> Questions:
    return Questions(tx, tenant.id, scope, tenant.clock())


LISTS: dict[str, Ask] = {
    "roles": lambda tx, t, page: role_questions.list_roles(tx, t.id, page),
    "role_permissions": lambda tx, t, page: role_questions.role_permissions(
        tx, t.id, "role0", page, direct=False
    ),
    "direct role_permissions": lambda tx, t, page: role_questions.role_permissions(
        tx, t.id, "role0", page, direct=True
    ),
    "which_roles_can": lambda tx, t, page: role_questions.which_roles_can(tx, t.id, "top:x", page),
    "members": lambda tx, t, page: asked_of_users(tx, t).members("top", page),
    "members in scope": lambda tx, t, page: asked_of_users(tx, t, "eu").members("top", page),
    "role rows": lambda tx, t, page: asked_of_users(tx, t).role_rows("role0", page),
    "user rows": lambda tx, t, page: asked_of_users(tx, t).user_rows("user0", page),
    "user_roles": lambda tx, t, page: asked_of_users(tx, t).user_roles("user0", page),
    "user_permissions": lambda tx, t, page: asked_of_users(tx, t).user_permissions("user0", page),
    "which_users_can": lambda tx, t, page: asked_of_users(tx, t).which_users_can("top:x", page),
    "which_users_can in scope": lambda tx, t, page: asked_of_users(tx, t, "eu").which_users_can(
        "top:x", page
    ),
}


async def layered(tenant: TenantAtWork) -> None:
    """Two layers of roles below ``top``, and users in several of them."""
    middle, low = ["middle0", "middle1"], [f"role{n}" for n in range(5)]
    changes = [Change("add_role", role=name) for name in (*low, "top", *middle)]
    changes += [Change("add_parent", role=name, parent="top") for name in middle]
    for number, name in enumerate(low):
        changes += [
            Change("add_parent", role=name, parent=middle[number % 2]),
            Change("grant", role=name, permission=f"low:{number}"),
            Change("grant", role="top", permission=f"top:{number}"),
            Change("grant", role="role0", permission=f"zero:{number}"),
            Change("add_member", role=name, user="user0"),
            Change("add_member", role=name, user=f"user{number}"),
            Change("add_member", role=name, user=f"user{9 - number}", scope="eu"),
            Change("add_member", role="role0", user=f"user{number}", scope=f"s{number}"),
        ]
    changes += [
        Change("grant", role="top", permission="top:*"),
        Change("add_parent", role="role4", parent="middle1"),
        Change("add_member", role="top", user="user3"),
        Change("add_member", role="middle1", user="user1"),
    ]
    await tenant.write(*changes)


async def collected(
    tenant: TenantAtWork,
    ask: Ask,
    size: int,
    between: Callable[[int], Awaitable[object]] | None = None,
) -> list[Any]:
    """A list read page by page; ``between`` happens after each page."""
    items: list[Any] = []
    cursor = None
    for number in itertools.count():
        async with tenant.database.read() as tx:
            listing = await ask(tx, tenant, Page(size, cursor))
        items += listing.items
        cursor = listing.next
        if cursor is None:
            return items
        assert len(listing.items) == size
        if between is not None:
            await between(number)
    raise AssertionError


async def test_every_page_size_gives_the_same_list(tenant: TenantAtWork) -> None:
    await layered(tenant)
    for name, ask in LISTS.items():
        async with tenant.database.read() as tx:
            complete = (await ask(tx, tenant, Page())).items
        assert len(complete) >= 4, name
        for size in range(1, len(complete) + 2):
            assert await collected(tenant, ask, size) == complete, (name, size)


@pytest.mark.parametrize("seed", [60, 61])
async def test_pages_of_random_policies_are_complete(tenant: TenantAtWork, seed: int) -> None:
    await build(tenant, seed, changes=120)
    for permission, scope in (("a:b", None), ("a:b", "eu"), ("b:x", "EU")):

        async def ask(
            tx: Transaction,
            t: TenantAtWork,
            page: Page,
            permission: str = permission,
            scope: str | None = scope,
        ) -> Listing[Any]:
            return await Questions(tx, t.id, scope, t.clock()).which_users_can(permission, page)

        async with tenant.database.read() as tx:
            complete = (await ask(tx, tenant, Page())).items
        for size in (1, 2, 3, 7):
            assert await collected(tenant, ask, size) == complete


async def insert_around(tenant: TenantAtWork, mark: str) -> None:
    """New roles, users, scopes and grants that sort before, among and after those there are."""
    changes = [
        Change("add_role", role=mark),
        Change("add_parent", role=mark, parent="middle0"),
        Change("grant", role=mark, permission=f"low:{mark}"),
        Change("add_member", role=mark, user="user0"),
    ]
    for prefix in ("A", "user1A", "z"):
        name = prefix + mark
        changes += [
            Change("add_member", role="role0", user=name),
            Change("add_member", role="role3", user=name),
            Change("add_member", role="role0", user="user1", scope=name),
            Change("grant", role="role0", permission=name),
        ]
    await tenant.write(*changes)


async def test_rows_inserted_between_pages_hide_nothing(tenant: TenantAtWork) -> None:
    """What was there all along is told once, whatever comes in before and after the cursor."""
    await layered(tenant)
    for index, (name, ask) in enumerate(LISTS.items()):
        async with tenant.database.read() as tx:
            before = (await ask(tx, tenant, Page())).items

        async def between(number: int, index: int = index) -> None:
            if number in (0, 2):
                await insert_around(tenant, f"new{index}-{number}")

        found = await collected(tenant, ask, 2, between)
        assert len(set(found)) == len(found), name
        assert [item for item in found if item in set(before)] == before, name


MOVED = {
    "members": ("members", Change("add_member", role="role0", user="user7")),
    "which_users_can": ("which_users_can", Change("add_member", role="role0", user="user7")),
}


@pytest.mark.parametrize("case", MOVED)
async def test_a_user_given_another_role_between_pages_stays_listed(
    tenant: TenantAtWork, case: str
) -> None:
    await layered(tenant)
    await tenant.write(Change("add_member", role="role4", user="user7"))
    name, change = MOVED[case]
    async with tenant.database.read() as tx:
        before = (await LISTS[name](tx, tenant, Page())).items
    for stop in range(len(before) - 1):

        async def between(number: int, stop: int = stop) -> None:
            if number == stop:
                await tenant.write(change)

        found = await collected(tenant, LISTS[name], 1, between)
        await tenant.write(Change("remove_member", role=change.role, user=change.user))
        assert set(before) <= set(found), stop
        assert len(set(found)) == len(found)


async def test_a_cursor_belongs_to_its_question(tenant: TenantAtWork) -> None:
    await layered(tenant)
    cursors = {}
    for name, ask in LISTS.items():
        async with tenant.database.read() as tx:
            cursors[name] = (await ask(tx, tenant, Page(1))).next
    async with tenant.database.read() as tx:
        for (name, ask), (other, cursor) in itertools.product(LISTS.items(), cursors.items()):
            if name != other:
                with pytest.raises(InputError) as refused:
                    await ask(tx, tenant, Page(1, cursor))
                assert refused.value.details[0].field == "cursor"


async def test_a_list_is_complete_or_refused(
    tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    await layered(tenant)
    for name, ask in LISTS.items():
        async with tenant.database.read() as tx:
            complete = (await ask(tx, tenant, Page())).items
            monkeypatch.setattr("authsvc.services.listing.LIST_MAX", len(complete))
            assert (await ask(tx, tenant, Page())).items == complete
            monkeypatch.setattr("authsvc.services.listing.LIST_MAX", len(complete) - 1)
            with pytest.raises(LimitRequired) as refused:
                await ask(tx, tenant, Page())
            assert refused.value.code == "limit_required", name
            exact = await ask(tx, tenant, Page(len(complete)))
            assert (exact.items, exact.next) == (complete, None)
            monkeypatch.undo()


async def test_ten_thousand_items_are_listed_and_one_more_is_refused(
    tenant: TenantAtWork,
) -> None:
    users = [f"u{number:05}" for number in range(LIST_MAX + 1)]
    await tenant.write(
        Change("add_role", role="r"),
        Change("grant", role="r", permission="p"),
        *(Change("add_member", role="r", user=user) for user in users[:-1]),
    )
    async with tenant.database.read() as tx:
        questions = Questions(tx, tenant.id, None, tenant.clock())
        listed = (await questions.members("r", Page())).items
        assert in_order(user for user, _ in listed) == users[:-1]
        assert len((await questions.which_users_can("p", Page())).items) == LIST_MAX
    await tenant.write(Change("add_member", role="r", user=users[-1]))
    async with tenant.database.read() as tx:
        questions = Questions(tx, tenant.id, None, tenant.clock())
        for ask in (questions.members("r", Page()), questions.role_rows("r", Page()),
                    questions.which_users_can("p", Page())):  # fmt: skip
            with pytest.raises(LimitRequired):
                await ask
        page = await questions.members("r", Page(LIST_MAX))
        rest = await questions.members("r", Page(LIST_MAX, page.next))
    assert in_order(user for user, _ in page.items + rest.items) == users


async def test_one_read_sees_one_state(tenant: TenantAtWork) -> None:
    await tenant.write(Change("add_role", role="r"))
    async with tenant.database.read() as tx:
        first = await role_questions.list_roles(tx, tenant.id, Page())
        await tenant.write(Change("add_role", role="s"))
        second = await role_questions.list_roles(tx, tenant.id, Page())
    assert first == second
    async with tenant.database.read() as tx:
        assert len((await role_questions.list_roles(tx, tenant.id, Page())).items) == 2
