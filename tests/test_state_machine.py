"""Random histories of the whole service, over HTTP, against a model in a few lines of Python.

Two tenants, one clock. After every step each question is asked and compared with the model; at the
end of a history the state that the events lead to must be the tables, and the chain unbroken. On
PostgreSQL two services of their own take the requests in turn, so that each has to notice what
the other one wrote.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from authsvc.app import create_app
from authsvc.connections import open_database
from authsvc.credentials import digest_of
from authsvc.database import Database
from authsvc.repositories.tenants import Tenants
from conftest import ControlledClock, Storage
from http_api import Api, check_problem, instant, served, settings_for
from replay import violations

pytest_plugins = ("http_fixtures",)

ROLES = ("lead", "admin", "staff", "base", "Admin")
USERS = ("alice", "bob", "carol|1")
GRANTS = ("a:x", "a:y", "a:*", "b", "a:x:*")
QUESTIONS = ("a:x", "a:z", "b", "a", "a:x:z")
SCOPES = (None, "s", "t/1")
TEXTS = ("", "text", "Größe")

Key = tuple[str, str, str | None]
"""A membership: user, role, scope."""
Bounds = tuple[datetime | None, datetime | None]


class Refused(Exception):
    """What the model says a change is refused with."""

    def __init__(self, status: int, error: str, field_name: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.field = field_name


@dataclass
class Effect:
    """What one change does."""

    changed: bool
    updated: bool = False
    count: int = 0


@dataclass
class Model:
    """What a tenant has."""

    roles: dict[str, str] = field(default_factory=dict)
    grants: set[tuple[str, str]] = field(default_factory=set)
    parents: set[tuple[str, str]] = field(default_factory=set)
    members: dict[Key, Bounds] = field(default_factory=dict)
    events: int = 0

    @property
    def revision(self) -> int:
        """The tenant and its key are the first two events."""
        return self.events + 2 if self.events else 0

    def apply(self, change: dict[str, Any]) -> Effect:
        """Let one change happen. Raises Refused."""
        effect: Effect = getattr(self, f"_{change['op']}")(change)
        self.events += effect.changed
        return effect

    def accepts(self, change: dict[str, Any]) -> bool:
        """Let a change happen if it can; whether it could."""
        try:
            self.apply(change)
        except Refused:
            return False
        return True

    def _must_exist(self, role: str, field_name: str = "role") -> None:
        if role not in self.roles:
            raise Refused(404, "role_not_found", field_name)

    def _add_role(self, change: dict[str, Any]) -> Effect:
        role = change["role"]
        if role not in self.roles:
            self.roles[role] = change.get("description") or ""
            return Effect(True)
        text = change.get("description", self.roles[role])
        updated = self.roles[role] != text
        self.roles[role] = text
        return Effect(updated, updated)

    def _remove_role(self, change: dict[str, Any]) -> Effect:
        role = change["role"]
        existed = self.roles.pop(role, None) is not None
        self.grants = {grant for grant in self.grants if grant[0] != role}
        self.parents = {edge for edge in self.parents if role not in edge}
        self.members = {key: held for key, held in self.members.items() if key[1] != role}
        return Effect(existed)

    def _grant(self, change: dict[str, Any]) -> Effect:
        self._must_exist(change["role"])
        grant = (change["role"], change["permission"])
        new = grant not in self.grants
        self.grants.add(grant)
        return Effect(new)

    def _revoke(self, change: dict[str, Any]) -> Effect:
        grant = (change["role"], change["permission"])
        there = grant in self.grants
        self.grants.discard(grant)
        return Effect(there)

    def _add_member(self, change: dict[str, Any]) -> Effect:
        self._must_exist(change["role"])
        key = (change["user"], change["role"], change.get("scope"))
        wanted = (_moment(change.get("not_before")), _moment(change.get("expires_at")))
        stored = self.members.get(key)
        self.members[key] = wanted
        return Effect(stored != wanted, stored is not None and stored != wanted)

    def _remove_member(self, change: dict[str, Any]) -> Effect:
        scope = change.get("scope")
        wanted = (change["user"], change["role"])
        going = [k for k in self.members if k[:2] == wanted and scope in (None, k[2])]
        for key in going:
            del self.members[key]
        return Effect(bool(going), count=len(going))

    def _remove_user(self, change: dict[str, Any]) -> Effect:
        going = [key for key in self.members if key[0] == change["user"]]
        for key in going:
            del self.members[key]
        return Effect(bool(going), count=len(going))

    def _add_parent(self, change: dict[str, Any]) -> Effect:
        role, parent = change["role"], change["parent"]
        self._must_exist(role)
        self._must_exist(parent, "parent")
        if (role, parent) in self.parents:
            return Effect(False)
        if role in self.above(parent):
            raise Refused(409, "role_cycle", "parent")
        self.parents.add((role, parent))
        return Effect(True)

    def _remove_parent(self, change: dict[str, Any]) -> Effect:
        edge = (change["role"], change["parent"])
        there = edge in self.parents
        self.parents.discard(edge)
        return Effect(there)

    def above(self, role: str) -> set[str]:
        """The role and all it inherits from."""
        found = {role}
        while more := {up for low, up in self.parents if low in found} - found:
            found |= more
        return found

    def effective(self, role: str) -> set[str]:
        """The grants of a role, inherited ones included."""
        above = self.above(role)
        return {permission for holder, permission in self.grants if holder in above}

    def role_can(self, role: str, permission: str) -> bool:
        return role in self.roles and any(covers(g, permission) for g in self.effective(role))

    def counting(self, user: str, scope: str | None, now: datetime) -> list[Key]:
        """The user's memberships that count here and now."""
        return [
            key
            for key, bounds in self.members.items()
            if key[0] == user and key[2] in (None, scope) and in_force(bounds, now)
        ]

    def held(self, user: str, scope: str | None, now: datetime) -> set[str]:
        return {role for _, role, _ in self.counting(user, scope, now)}

    def reached(self, user: str, scope: str | None, now: datetime) -> set[str]:
        """The roles the user is in, directly or not."""
        return {up for role in self.held(user, scope, now) for up in self.above(role)}

    def can(self, user: str, permission: str, scope: str | None, now: datetime) -> bool:
        return any(self.role_can(role, permission) for role in self.held(user, scope, now))

    def grounds(
        self, user: str, permission: str, scope: str | None, now: datetime
    ) -> list[tuple[str, str, str, str]]:
        """(role held, role that grants, grant, scope) of every reason for a yes."""
        return sorted(
            (role, up, grant, bound or "")
            for _, role, bound in self.counting(user, scope, now)
            for up, grant in self.grants
            if up in self.above(role) and covers(grant, permission)
        )

    def denial(self, user: str, permission: str, scope: str | None, now: datetime) -> str:
        """The reason for a no."""
        rows = {key: bounds for key, bounds in self.members.items() if key[0] == user}
        if not rows:
            return "no_such_user"
        rows = {key: held for key, held in rows.items() if self.role_can(key[1], permission)}
        if not rows:
            return "no_role_grants_it"
        if any(in_force(bounds, now) for bounds in rows.values()):
            return "out_of_scope"
        here = {key: held for key, held in rows.items() if key[2] in (None, scope)} or rows
        to_come = any(start is not None and now < start for start, _ in here.values())
        return "membership_not_started" if to_come else "membership_expired"


def covers(grant: str, permission: str) -> bool:
    """Whether a grant covers a permission."""
    if not grant.endswith(":*"):
        return grant == permission
    head, colon, _ = permission.rpartition(":")
    return bool(colon) and head == grant[:-2]


def in_force(bounds: Bounds, now: datetime) -> bool:
    start, end = bounds
    return (start is None or start <= now) and (end is None or now < end)


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


roles, users = st.sampled_from(ROLES), st.sampled_from(USERS)
scopes, grants = st.sampled_from((None, *SCOPES)), st.sampled_from(GRANTS)
tenants = st.integers(0, 1)
starts = st.sampled_from((None, None, None, 0, 1, -1))
ends = st.sampled_from((None, None, 0, 1, 1, 2))


def _op(name: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"op": st.just(name), **fields})


wanted_changes = st.sampled_from(
    (
        # The more often named, the more often drawn.
        *("add_member",) * 6,
        *("grant",) * 3,
        *("add_parent",) * 3,
        *("add_role",) * 2,
        *("revoke", "remove_parent", "remove_member", "remove_member"),
        *("describe_role", "remove_role", "remove_user"),
    )
).flatmap(
    {
        "add_role": _op("add_role", role=roles),
        "describe_role": _op("add_role", role=roles, description=st.sampled_from(TEXTS)),
        "grant": _op("grant", role=roles, permission=grants),
        "add_member": _op(
            "add_member", user=users, role=roles, scope=scopes, start=starts, end=ends
        ),
        "add_parent": _op("add_parent", role=roles, parent=roles),
        "remove_role": _op("remove_role", role=roles),
        "revoke": _op("revoke", role=roles, permission=grants),
        "remove_member": _op("remove_member", user=users, role=roles, scope=scopes),
        "remove_parent": _op("remove_parent", role=roles, parent=roles),
        "remove_user": _op("remove_user", user=users),
    }.__getitem__
)


SOME: list[dict[str, Any]] = [
    *({"op": "add_role", "role": role} for role in ROLES),
    {"op": "add_parent", "role": "lead", "parent": "admin"},
    {"op": "add_parent", "role": "admin", "parent": "base"},
    {"op": "grant", "role": "admin", "permission": "b"},
    {"op": "grant", "role": "staff", "permission": "a:x"},
    {"op": "add_member", "user": "alice", "role": "staff", "scope": "s"},
]


class World:
    """The services under test, alive for many histories, on an event loop of their own."""

    def __init__(self, storage: Storage) -> None:
        self.clock = ControlledClock()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._storage = storage
        self.services: list[Api] = []
        self.database: Database

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run to the end of it."""
        return self._runner.run(work)

    async def open(self) -> None:
        configured = settings_for(self._storage, client_registration="open")
        for _ in range(1 if self._storage.engine == "sqlite" else 2):
            app = create_app(configured, clock=self.clock)
            http = await self._stack.enter_async_context(served(app))
            self.services.append(Api(http, self.clock, None))
        self.database = open_database(configured, beside_server=True)
        self._stack.push_async_callback(self.database.dispose)

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._runner.close()


@contextmanager
def world_of(storage: Storage) -> Iterator[World]:
    """A world on a database that is ready."""
    world = World(storage)
    try:
        world.run(world.open())
        yield world
    finally:
        world.close()


class Service(RuleBasedStateMachine):
    """One history: two tenants nobody knows yet, and what happens to them."""

    world: ClassVar[World]

    @initialize(wanted=st.lists(wanted_changes, min_size=5, max_size=20), prepared=st.booleans())
    def strangers(self, wanted: list[dict[str, Any]], prepared: bool) -> None:
        self.keys = [str(uuid.uuid4()) for _ in range(2)]
        self.models = [Model(), Model()]
        self.turn = itertools.cycle(self.world.services)
        self.next_question = itertools.cycle(itertools.product(QUESTIONS, SCOPES))
        self.touched = [0, 1]
        if prepared:
            # Where there is something already, most of what follows has an effect.
            for tenant, grant in enumerate(("a:*", "a:x")):
                self.apply(tenant, [*SOME, {"op": "grant", "role": "base", "permission": grant}])
        self.many_changes(tenant=0, wanted=wanted, may_fail=False, dry_run=False)

    @property
    def now(self) -> datetime:
        return self.world.clock()

    def api(self, tenant: int) -> Api:
        """The service whose turn it is, as one of the tenants."""
        return next(self.turn).with_key(self.keys[tenant])

    def ask(self, tenant: int, method: str, path: str, json: Any = None, **params: Any) -> Any:
        """``data`` of a success at the model's revision."""
        more: dict[str, Any] = {} if json is None else {"json": json}
        params = {name: value for name, value in params.items() if value is not None}
        body = self.world.run(self.api(tenant).ok(method, path, params=params, **more))
        assert body["revision"] == self.models[tenant].revision
        return body["data"]

    def change(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """A drawn change as it is sent, its offsets made instants."""
        made = {name: value for name, value in wanted.items() if name not in ("start", "end")}
        if made.get("scope", "") is None:
            del made["scope"]
        start, end = wanted.get("start"), wanted.get("end")
        if start is not None:
            made["not_before"] = instant(self.now + timedelta(seconds=start))
        if end is not None:
            after = end if start is None or end > start else start + 1
            made["expires_at"] = instant(self.now + timedelta(seconds=after))
        return made

    @rule(seconds=st.sampled_from((1, 1, 0.000001, 2)))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.touched = [0, 1]

    @rule(tenant=tenants, wanted=wanted_changes)
    def one_change(self, tenant: int, wanted: dict[str, Any]) -> None:
        self.touched = [tenant]
        change = self.change(wanted)
        method, path, body, query = as_request(change)
        model = self.models[tenant]
        try:
            effect = model.apply(change)
        except Refused as refusal:
            more: dict[str, Any] = {"params": query} | ({"json": body} if body else {})
            response = self.world.run(self.api(tenant).send(method, path, **more))
            check_problem(response, refusal.status, refusal.error)
            return
        data = self.ask(tenant, method, path, body, **query)
        match change["op"]:
            case "add_role":
                created = effect.changed and not effect.updated
                text = model.roles[change["role"]]
                assert (data["created"], data["description"]) == (created, text)
            case "add_member":
                added = effect.changed and not effect.updated
                assert (data["added"], data["updated"]) == (added, effect.updated)
            case "grant":
                assert data["granted"] is effect.changed
            case "add_parent":
                assert data["added"] is effect.changed
            case "remove_user":
                assert data == {"memberships_removed": effect.count, "api_keys_revoked": 0}
            case _:
                assert data["removed"] is effect.changed

    @rule(
        tenant=tenants,
        wanted=st.lists(wanted_changes, min_size=3, max_size=20),
        may_fail=st.sampled_from((False, False, True)),
        dry_run=st.sampled_from((False, False, True)),
    )
    def many_changes(
        self, tenant: int, wanted: list[dict[str, Any]], may_fail: bool, dry_run: bool
    ) -> None:
        changes = [self.change(one) for one in wanted]
        if not may_fail:
            trial = copy.deepcopy(self.models[tenant])
            changes = [change for change in changes if trial.accepts(change)]
        self.apply(tenant, changes, dry_run=dry_run)

    def apply(self, tenant: int, changes: list[dict[str, Any]], *, dry_run: bool = False) -> None:
        """Send a list of changes and compare what becomes of it."""
        self.touched = [tenant]
        body = {"changes": changes, "dry_run": dry_run}
        model = copy.deepcopy(self.models[tenant])
        effects = []
        for index, change in enumerate(changes):
            try:
                effects.append(model.apply(change))
            except Refused as refusal:
                response = self.world.run(self.api(tenant).send("POST", "/api/changes", body))
                problem = check_problem(response, refusal.status, refusal.error)
                where = f"changes.{index}.{refusal.field}"
                assert [one["field"] for one in problem["details"]] == [where]
                return
        if not dry_run:
            self.models[tenant] = model
        data = self.ask(tenant, "POST", "/api/changes", body)
        applied = sum(effect.changed for effect in effects)
        assert (data["applied"], data["unchanged"]) == (applied, len(effects) - applied)
        if dry_run:
            assert [
                (one["op"], one["changed"], one["updated"], one["count"]) for one in data["effects"]
            ] == [
                (change["op"], effect.changed, effect.updated, effect.count)
                for change, effect in zip(changes, effects, strict=True)
            ]

    @invariant()
    def every_check_is_right(self) -> None:
        if not hasattr(self, "models"):
            return
        questions = list(itertools.product(USERS, QUESTIONS, SCOPES))
        checks = [{"user": u, "permission": p, "scope": s} for u, p, s in questions]
        for tenant in self.touched:
            model = self.models[tenant]
            expected = [model.can(*question, self.now) for question in questions]
            for _ in self.world.services:
                data = self.ask(tenant, "POST", "/api/check", {"checks": checks})
                assert data["results"] == expected
            # A single check has a way of its own.
            permission, scope = next(self.next_question)
            for user in USERS:
                data = self.ask(
                    tenant, "GET", f"/api/has_permission/{user}/{permission}", scope=scope
                )
                allowed = model.can(user, permission, scope, self.now)
                assert data == {"has_permission": allowed}
            data = self.ask(tenant, "POST", "/api/check", {"checks": checks, "explain": True})
            for question, allowed, told in zip(questions, expected, data["results"], strict=True):
                self.right_reason(model, question, allowed, told)

    def right_reason(
        self, model: Model, question: tuple[str, str, str | None], allowed: bool, told: Any
    ) -> None:
        assert told["has_permission"] is allowed
        if not allowed:
            reason = model.denial(*question, self.now)
            assert told["why"] == {"denied_because": reason}, question
            return
        grounds = told["why"]["allowed_by"]
        found = [(g["via"][0], g["role"], g["permission"], g["scope"] or "") for g in grounds]
        assert sorted(found) == model.grounds(*question, self.now)
        for ground in grounds:
            assert ground["via"][-1] == ground["role"]
            assert set(itertools.pairwise(ground["via"])) <= model.parents

    @rule(tenant=tenants, scope=scopes, permission=st.sampled_from(QUESTIONS), user=users)
    def single_questions(self, tenant: int, scope: str | None, permission: str, user: str) -> None:
        self.touched = []
        model, now = self.models[tenant], self.now
        allowed = {"has_permission": model.can(user, permission, scope, now)}
        path = f"/api/has_permission/{user}/{permission}"
        assert self.ask(tenant, "GET", path, scope=scope) == allowed
        path = f"/api/workflow/user/{user}/can_run/{permission}"
        assert self.ask(tenant, "GET", path, scope=scope) == allowed
        body = {"user": user, "permissions": list(QUESTIONS), "scope": scope}
        data = self.ask(tenant, "POST", "/api/check", body)
        assert data == {"results": {p: model.can(user, p, scope, now) for p in QUESTIONS}}
        for role in ROLES:
            is_in = {"has_permission": role in model.reached(user, scope, now)}
            assert self.ask(tenant, "GET", f"/api/membership/{user}/{role}", scope=scope) == is_in
            has = {"has_permission": model.role_can(role, permission)}
            assert self.ask(tenant, "GET", f"/api/permission/{role}/{permission}") == has

    @rule(
        tenant=tenants,
        scope=scopes,
        limit=st.sampled_from((None, 1, 2, 10_000)),
        user=users,
        role=roles,
        permission=st.sampled_from(QUESTIONS),
    )
    def lists_are_right(
        self,
        tenant: int,
        scope: str | None,
        limit: int | None,
        user: str,
        role: str,
        permission: str,
    ) -> None:
        self.touched = []
        model, now = self.models[tenant], self.now

        def listed(path: str, part: str | None = None, **params: Any) -> list[Any]:
            found: list[Any] = []
            cursor = None
            while True:
                more = {"limit": limit, "cursor": cursor} | params
                more = {name: value for name, value in more.items() if value is not None}
                body = self.world.run(self.api(tenant).ok("GET", path, params=more))
                assert body["revision"] == model.revision
                page = body["data"] if part is None else body["data"][part]
                found += [tuple(item.values()) for item in page]
                cursor = body.get("next")
                if cursor is None:
                    assert len(set(found)) == len(found)
                    return sorted(found, key=repr)

        def expect(path: str, expected: Any, part: str | None = None, **params: Any) -> None:
            assert listed(path, part, **params) == sorted(set(expected), key=repr), (path, params)

        def rows(where: int, name: str) -> list[Any]:
            return [
                (*key, *(instant(bound) if bound else None for bound in bounds))
                for key, bounds in model.members.items()
                if key[where] == name
            ]

        expect("/api/roles", model.roles.items())
        reached = model.reached(user, scope, now)
        expect(f"/api/user_roles/{user}", [(user, up) for up in reached], scope=scope)
        expect(f"/api/user_roles/{user}", rows(0, user), direct="true")
        may = {(name,) for up in reached for name in model.effective(up)}
        expect(f"/api/user_permissions/{user}", may, "permissions", scope=scope)
        inside = [(one, role) for one in USERS if role in model.reached(one, scope, now)]
        expect(f"/api/members/{role}", inside, scope=scope)
        expect(f"/api/members/{role}", rows(1, role), direct="true")
        own = [(name,) for holder, name in model.grants if holder == role]
        expect(f"/api/role_permissions/{role}", own, direct="true")
        expect(f"/api/role_permissions/{role}", [(name,) for name in model.effective(role)])
        self.role_in_detail(tenant, role)
        can = {one for one in model.roles if model.role_can(one, permission)}
        expect(f"/api/which_roles_can/{permission}", [(one,) for one in can])
        through = [
            (one, up)
            for one in USERS
            for held in model.held(one, scope, now) & can
            for up in model.above(held) & can
        ]
        expect(f"/api/which_users_can/{permission}", through, scope=scope)
        expect(f"/api/workflow/users/{permission}", through, "members", scope=scope)

    def role_in_detail(self, tenant: int, role: str) -> None:
        model = self.models[tenant]
        if role not in model.roles:
            response = self.world.run(self.api(tenant).send("GET", f"/api/role/{role}"))
            check_problem(response, 404, "role_not_found")
            return
        data = self.ask(tenant, "GET", f"/api/role/{role}")
        del data["created_at"]
        assert data == {
            "role": role,
            "description": model.roles[role],
            "parents": sorted(up for low, up in model.parents if low == role),
            "permissions": sorted(name for holder, name in model.grants if holder == role),
            "members_count": len({user for user, held, _ in model.members if held == role}),
        }

    def teardown(self) -> None:
        self.touched = [0, 1]
        self.every_check_is_right()
        for tenant in range(len(getattr(self, "models", ()))):
            for user, role, permission in zip(itertools.cycle(USERS), ROLES, QUESTIONS):
                self.lists_are_right(tenant, "s", None, user, role, permission)
            self.world.run(self.history_is_sound(tenant))

    async def history_is_sound(self, tenant: int) -> None:
        async with self.world.database.read() as tx:
            found = await Tenants(tx).credential(digest_of(self.keys[tenant]))
            assert (found is not None) is (self.models[tenant].events > 0)
            if found is not None:
                assert await violations(tx, found.key.tenant_id) == []


def as_request(
    change: dict[str, Any],
) -> tuple[str, str, dict[str, Any] | None, dict[str, Any]]:
    """A change as the request of its own: method, path, body, query."""
    op = change["op"]
    method = "DELETE" if op.startswith("re") else "POST"
    bounds = ("scope", "not_before", "expires_at")
    rest: dict[str, Any] = {name: change[name] for name in bounds if name in change}
    match op:
        case "add_role":
            text = {"description": change["description"]} if "description" in change else None
            return method, f"/api/role/{change['role']}", text, {}
        case "remove_role":
            return method, f"/api/role/{change['role']}", None, {}
        case "grant" | "revoke":
            path = f"/api/permission/{change['role']}/{change['permission']}"
            return method, path, None, {}
        case "add_member":
            path = f"/api/membership/{change['user']}/{change['role']}"
            return method, path, rest or None, {}
        case "remove_member":
            path = f"/api/membership/{change['user']}/{change['role']}"
            return method, path, None, rest
        case "remove_user":
            return method, f"/api/user/{change['user']}", None, {}
        case _:
            path = f"/api/role/{change['role']}/parent/{change['parent']}"
            return method, path, None, {}


def _histories(storage: Storage, examples: int, steps: int, *, same_again: bool) -> None:
    with world_of(storage) as world:
        run_state_machine_as_test(
            type("ServiceHere", (Service,), {"world": world}),
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                derandomize=same_again,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.timeout(600)
def test_histories(shared: tuple[Storage, Database]) -> None:
    _histories(shared[0], 20, 25, same_again=True)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_many_more_histories(shared: tuple[Storage, Database]) -> None:
    _histories(shared[0], 1500, 60, same_again=False)
