"""Every endpoint of the Auth API over HTTP, on both databases: what it answers, to the field."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from authsvc import models
from authsvc.database import Database
from conftest import ControlledClock, Storage, TenantAtWork
from http_api import (
    MISSING,
    Api,
    NewTenant,
    Serve,
    announce,
    check_headers,
    check_problem,
    instant,
    same_but_for_the_moment,
)

pytest_plugins = ("http_fixtures",)


def of(body: Any) -> tuple[Any, Any, int]:
    """``data``, ``result`` (MISSING if it is not there) and ``revision``."""
    return body["data"], body.get("result", MISSING), body["revision"]


def add_role(role: str, **more: Any) -> dict[str, Any]:
    return {"op": "add_role", "role": role, **more}


def grant(role: str, permission: str) -> dict[str, Any]:
    return {"op": "grant", "role": role, "permission": permission}


def add_member(user: str, role: str, **more: Any) -> dict[str, Any]:
    return {"op": "add_member", "user": user, "role": role, **more}


def add_parent(role: str, parent: str) -> dict[str, Any]:
    return {"op": "add_parent", "role": role, "parent": parent}


def pairs(data: Any) -> set[tuple[str, str]]:
    """A list of user and role as a set; each pair may be there once."""
    found = [(item["user"], item["role"]) for item in data]
    assert len(set(found)) == len(found)
    return set(found)


def names(data: Any, field: str = "name") -> list[str]:
    return sorted(item[field] for item in data)


async def all_pages(api: Api, path: str, items: str | None = None, limit: int = 2) -> list[Any]:
    """Every item of a list asked for page by page, each page checked."""
    found: list[Any] = []
    params: dict[str, Any] = {"limit": limit}
    while True:
        body = await api.ok("GET", path, params=params)
        page = body["data"] if items is None else body["data"][items]
        if items is not None:
            assert body["data"]["count"] == len(page)
        found += page
        if "next" not in body:
            assert len(page) <= limit
            return found
        assert len(page) == limit
        assert isinstance(body["next"], str)
        params["cursor"] = body["next"]


class TestService:
    async def test_ping_answers_without_the_envelope(
        self, client: httpx.AsyncClient, clock: ControlledClock
    ) -> None:
        response = await client.get("/ping")
        check_headers(response)
        assert response.json() == {
            "message": "PONG",
            "status": "ok",
            "timestamp": instant(clock()),
        }

    async def test_health(self, client: httpx.AsyncClient) -> None:
        for path, expected in {
            "/health": {"status": "healthy"},
            "/health/live": {"status": "healthy"},
            "/health/ready": {"status": "ready", "reasons": []},
        }.items():
            response = await client.get(path)
            check_headers(response)
            assert (response.status_code, response.json()) == (200, expected)


class TestRoles:
    async def test_a_role_is_made_once(self, api: Api) -> None:
        made = await api.ok("POST", "/api/role/admin", {"description": "May deploy"})
        role = {"role": "admin", "description": "May deploy"}
        assert of(made) == (role | {"created": True}, True, 3)
        again = await api.ok("POST", "/api/role/admin", {"description": "May deploy"})
        assert of(again) == (role | {"created": False}, True, 3)

    async def test_without_a_body_the_description_stays(self, api: Api) -> None:
        await api.ok("POST", "/api/role/admin", {"description": "May deploy"})
        for body in (MISSING, {}, {"description": None}, None):
            kept = await api.ok("POST", "/api/role/admin", body)
            expected = {"role": "admin", "description": "May deploy", "created": False}
            assert of(kept) == (expected, True, 3)

    async def test_another_description_is_an_update(self, api: Api) -> None:
        assert (await api.data("POST", "/api/role/admin"))["description"] == ""
        for revision, text in enumerate(["Größe: 1 + 1 = 2", "x" * 512, ""], start=4):
            updated = await api.ok("POST", "/api/role/admin", {"description": text})
            expected = {"role": "admin", "description": text, "created": False}
            assert of(updated) == (expected, True, revision)
            assert (await api.data("GET", "/api/role/admin"))["description"] == text

    async def test_a_role_in_detail(self, api: Api, clock: ControlledClock) -> None:
        born = clock()
        await api.apply(
            add_role("admin", description="May deploy"),
            add_role("staff"),
            add_role("base"),
            add_role("lead"),
            add_parent("admin", "staff"),
            add_parent("admin", "base"),
            add_parent("lead", "admin"),
            grant("admin", "deploy"),
            grant("admin", "invoice:*"),
            grant("base", "inherited"),
            add_member("alice", "admin"),
            add_member("alice", "admin", scope="project/42"),
            add_member("bob", "admin", expires_at="2020-01-01T00:00:00Z"),
            add_member("carol", "lead"),
        )
        clock.advance(60)
        body = await api.ok("GET", "/api/role/admin")
        assert of(body) == (
            {
                "role": "admin",
                "description": "May deploy",
                "parents": ["base", "staff"],
                "permissions": ["deploy", "invoice:*"],
                "members_count": 2,
                "created_at": instant(born),
            },
            MISSING,
            16,
        )

    async def test_a_missing_role(self, api: Api) -> None:
        body = await api.refused(404, "role_not_found", "GET", "/api/role/ops")
        assert body["message"] == "Role 'ops' does not exist"
        assert body["details"] == []

    async def test_removing_a_role(self, api: Api) -> None:
        await api.ok("POST", "/api/role/admin")
        removed = await api.ok("DELETE", "/api/role/admin")
        assert of(removed) == ({"result": True, "role": "admin", "removed": True}, MISSING, 4)
        again = await api.ok("DELETE", "/api/role/admin")
        assert of(again) == ({"result": False, "role": "admin", "removed": False}, MISSING, 4)

    async def test_a_role_made_again_starts_empty(self, api: Api) -> None:
        await api.apply(
            add_role("admin", description="old"),
            add_role("staff"),
            add_role("lead"),
            grant("admin", "deploy"),
            grant("staff", "enter"),
            add_parent("admin", "staff"),
            add_parent("lead", "admin"),
            add_member("alice", "admin"),
            add_member("carol", "lead"),
        )
        assert await api.can("carol", "enter")
        await api.ok("DELETE", "/api/role/admin")
        for user in ("alice", "carol"):
            for permission in ("deploy", "enter"):
                assert not await api.can(user, permission)
        await api.ok("POST", "/api/role/admin")
        details = await api.data("GET", "/api/role/admin")
        assert (details["description"], details["parents"]) == ("", [])
        assert (details["permissions"], details["members_count"]) == ([], 0)
        assert await api.data("GET", "/api/members/admin") == []
        assert (await api.data("GET", "/api/role/lead"))["parents"] == []
        assert not await api.can("alice", "deploy")

    async def test_names_are_case_sensitive(self, api: Api) -> None:
        await api.ok("POST", "/api/role/Admin")
        assert (await api.data("POST", "/api/role/admin"))["created"]
        await api.ok("POST", "/api/permission/admin/Deploy")
        await api.ok("POST", "/api/membership/Alice/admin")
        assert await api.can("Alice", "Deploy")
        assert not await api.can("alice", "Deploy")
        assert not await api.can("Alice", "deploy")
        assert names(await api.data("GET", "/api/roles"), "role") == ["Admin", "admin"]

    async def test_every_allowed_character_and_length(self, api: Api) -> None:
        role, permission = "Aa0_-.:" + "r" * 57, "Aa0_-.:" + "p" * 121
        user, scope = "Aa0_-.:@+|" + "u" * 244, "Aa0_-.:@+/" + "s" * 244
        await api.ok("POST", f"/api/role/{role}")
        await api.ok("POST", f"/api/permission/{role}/{permission}")
        written = await api.data("POST", f"/api/membership/{user}/{role}", {"scope": scope})
        assert (written["user"], written["role"], written["scope"]) == (user, role, scope)
        assert await api.can(user, permission, scope)
        assert not await api.can(user, permission)


class TestPermissions:
    async def test_granting_and_revoking(self, api: Api) -> None:
        await api.ok("POST", "/api/role/admin")
        path, pair = "/api/permission/admin/deploy", {"role": "admin", "permission": "deploy"}
        assert of(await api.ok("GET", path)) == ({"has_permission": False}, False, 3)
        assert of(await api.ok("POST", path)) == (pair | {"granted": True}, True, 4)
        assert of(await api.ok("POST", path)) == (pair | {"granted": False}, True, 4)
        assert of(await api.ok("GET", path)) == ({"has_permission": True}, True, 4)
        assert of(await api.ok("DELETE", path)) == (pair | {"removed": True}, True, 5)
        assert of(await api.ok("DELETE", path)) == (pair | {"removed": False}, True, 5)
        assert of(await api.ok("GET", path)) == ({"has_permission": False}, False, 5)

    async def test_a_missing_role(self, api: Api) -> None:
        path = "/api/permission/ops/deploy"
        await api.refused(404, "role_not_found", "POST", path)
        assert of(await api.ok("GET", path)) == ({"has_permission": False}, False, 2)
        removed = {"role": "ops", "permission": "deploy", "removed": False}
        assert of(await api.ok("DELETE", path)) == (removed, True, 2)
        assert await api.data("GET", "/api/role_permissions/ops") == []

    async def test_a_wildcard_covers_exactly_one_segment(self, api: Api) -> None:
        await api.apply(
            add_role("books"), grant("books", "invoice:*"), add_member("alice", "books")
        )
        expected = {
            "invoice:read": True,
            "invoice:write": True,
            "invoice": False,
            "invoice:line:read": False,
            "invoices:read": False,
            "Invoice:read": False,
        }
        for permission, allowed in expected.items():
            assert await api.can("alice", permission) is allowed, permission
            asked = await api.data("GET", f"/api/permission/books/{permission}")
            assert asked["has_permission"] is allowed
            can = await api.data("GET", f"/api/which_roles_can/{permission}")
            assert can == ([{"role": "books"}] if allowed else [])
        assert await api.data("GET", "/api/role_permissions/books") == [{"name": "invoice:*"}]
        listed = await api.data("GET", "/api/user_permissions/alice")
        assert listed == {"count": 1, "permissions": [{"name": "invoice:*"}]}

    async def test_nested_wildcards(self, api: Api) -> None:
        await api.apply(add_role("r"), grant("r", "a:b:*"), add_member("u", "r"))
        assert await api.can("u", "a:b:c")
        assert not await api.can("u", "a:b")
        assert not await api.can("u", "a:c")
        assert not await api.can("u", "a:b:c:d")

    async def test_revoking_takes_exactly_that_name(self, api: Api) -> None:
        await api.apply(add_role("r"), grant("r", "a:*"), grant("r", "a:b"), add_member("u", "r"))
        await api.ok("DELETE", "/api/permission/r/a:b")
        assert await api.can("u", "a:b")
        await api.ok("DELETE", "/api/permission/r/a:*")
        assert not await api.can("u", "a:b")

    @pytest.mark.parametrize("method", ["POST", "DELETE"])
    async def test_wildcards_that_are_none(self, api: Api, method: str) -> None:
        await api.ok("POST", "/api/role/r")
        for name in ("*", "**", "a:**", "*:a", "a:*:b", "a*", "a:b*", ":*"):
            body = await api.refused(422, "invalid_input", method, f"/api/permission/r/{name}")
            assert [one["field"] for one in body["details"]] == ["permission"]

    async def test_a_question_has_no_wildcard(self, api: Api) -> None:
        for path, field in {
            "/api/permission/r/a:*": "permission",
            "/api/has_permission/u/a:*": "permission",
            "/api/which_roles_can/a:*": "permission",
            "/api/which_users_can/*": "permission",
            "/api/workflow/users/a:*": "workflow",
            "/api/workflow/user/u/can_run/a:*": "workflow",
        }.items():
            body = await api.refused(422, "invalid_input", "GET", path)
            assert [one["field"] for one in body["details"]] == [field]
        checks = {"checks": [{"user": "u", "permission": "a:*"}]}
        body = await api.refused(422, "invalid_input", "POST", "/api/check", checks)
        assert [one["field"] for one in body["details"]] == ["checks.0.permission"]


class TestMemberships:
    NONE: dict[str, Any] = {"not_before": None, "expires_at": None, "scope": None}  # noqa: RUF012

    async def test_in_and_out(self, api: Api) -> None:
        await api.ok("POST", "/api/role/admin")
        path, pair = "/api/membership/alice/admin", {"user": "alice", "role": "admin"}
        assert of(await api.ok("GET", path)) == ({"has_permission": False}, MISSING, 3)
        added = pair | {"added": True, "updated": False} | self.NONE
        assert of(await api.ok("POST", path)) == (added, True, 4)
        again = pair | {"added": False, "updated": False} | self.NONE
        assert of(await api.ok("POST", path)) == (again, True, 4)
        assert of(await api.ok("GET", path)) == ({"has_permission": True}, MISSING, 4)
        assert of(await api.ok("DELETE", path)) == (pair | {"removed": True}, True, 5)
        assert of(await api.ok("DELETE", path)) == (pair | {"removed": False}, True, 5)
        assert of(await api.ok("GET", path)) == ({"has_permission": False}, MISSING, 5)

    async def test_a_missing_role(self, api: Api) -> None:
        path = "/api/membership/alice/ops"
        await api.refused(404, "role_not_found", "POST", path)
        await api.refused(404, "role_not_found", "POST", path, {"scope": "s"})
        assert await api.data("GET", path) == {"has_permission": False}
        removed = {"user": "alice", "role": "ops", "removed": False}
        assert of(await api.ok("DELETE", path)) == (removed, True, 2)
        assert await api.data("GET", "/api/members/ops") == []
        assert await api.data("GET", "/api/members/ops?direct=true") == []

    async def test_an_unknown_user_has_nothing(self, api: Api) -> None:
        assert await api.data("GET", "/api/user_roles/nobody") == []
        empty = await api.data("GET", "/api/user_permissions/nobody")
        assert empty == {"count": 0, "permissions": []}
        assert not await api.can("nobody", "deploy")

    async def test_bounds_are_stated_whole(self, api: Api, clock: ControlledClock) -> None:
        await api.ok("POST", "/api/role/admin")
        start, end = instant(clock()), instant(clock() + timedelta(hours=1))
        path = "/api/membership/alice/admin"

        async def write(
            body: Any, *, added: bool, updated: bool, revision: int, **more: Any
        ) -> None:
            told = {"user": "alice", "role": "admin", "added": added, "updated": updated}
            expected = (told | self.NONE | more, True, revision)
            assert of(await api.ok("POST", path, body)) == expected

        await write(
            {"not_before": start, "expires_at": end},
            added=True,
            updated=False,
            revision=4,
            not_before=start,
            expires_at=end,
        )
        await write(
            {"not_before": start, "expires_at": end},
            added=False,
            updated=False,
            revision=4,
            not_before=start,
            expires_at=end,
        )
        await write({"expires_at": end}, added=False, updated=True, revision=5, expires_at=end)
        await write(MISSING, added=False, updated=True, revision=6)
        await write({}, added=False, updated=False, revision=6)
        await write({"scope": "s"}, added=True, updated=False, revision=7, scope="s")
        await write(
            {"scope": "s", "not_before": start},
            added=False,
            updated=True,
            revision=8,
            scope="s",
            not_before=start,
        )
        rows = await api.data("GET", "/api/user_roles/alice?direct=true")
        everywhere = {"user": "alice", "role": "admin"} | self.NONE
        bound = {"scope": "s", "not_before": start, "expires_at": None}
        assert sorted(rows, key=lambda row: row["scope"] or "") == [
            {"user": "alice", "role": "admin", "scope": None}
            | {"not_before": None, "expires_at": None},
            {"user": "alice", "role": "admin"} | bound,
        ]
        assert rows[0].keys() == everywhere.keys()
        assert await api.data("GET", "/api/members/admin?direct=true") == rows

    async def test_times_are_answered_in_utc(self, api: Api) -> None:
        await api.ok("POST", "/api/role/r")
        body = {"not_before": "2026-03-01T13:30:00+02:00", "expires_at": "2026-03-01T13:30:00.5Z"}
        data = await api.data("POST", "/api/membership/u/r", body)
        assert data["not_before"] == "2026-03-01T11:30:00.000000Z"
        assert data["expires_at"] == "2026-03-01T13:30:00.500000Z"

    async def test_the_furthest_times(self, api: Api) -> None:
        await api.ok("POST", "/api/role/r")
        first, last = "0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"
        body = {"not_before": first, "expires_at": last}
        await api.ok("POST", "/api/membership/u/r", body)
        rows = await api.data("GET", "/api/members/r?direct=true")
        assert (rows[0]["not_before"], rows[0]["expires_at"]) == (first, last)
        assert await api.data("GET", "/api/membership/u/r") == {"has_permission": True}

    async def test_bounds_that_cannot_be(self, api: Api) -> None:
        await api.ok("POST", "/api/role/r")
        for body, field in (
            ({"not_before": "2026-03-01T12:00:00"}, "not_before"),
            ({"not_before": "2026-03-01"}, "not_before"),
            ({"not_before": 1772366400}, "not_before"),
            ({"expires_at": "tomorrow"}, "expires_at"),
            ({"expires_at": ""}, "expires_at"),
            ({"expires_at": "0001-01-01T00:00:00+14:00"}, "expires_at"),
            ({"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
            ({"scope": ""}, "scope"),
            ({"scope": "*"}, "scope"),
        ):
            refused = await api.refused(422, "invalid_input", "POST", "/api/membership/u/r", body)
            assert [one["field"] for one in refused["details"]] == [field], body
        same = "2026-03-01T12:00:00Z"
        for start, end in ((same, same), ("2026-03-02T00:00:00Z", same)):
            body = {"not_before": start, "expires_at": end}
            await api.refused(422, "invalid_input", "POST", "/api/membership/u/r", body)
        assert await api.data("GET", "/api/members/r?direct=true") == []

    async def test_in_force_from_the_first_until_just_before_the_second(
        self, api: Api, clock: ControlledClock
    ) -> None:
        start, end = clock() + timedelta(seconds=10), clock() + timedelta(seconds=20)
        await api.apply(add_role("r"), grant("r", "p"))
        body = {"not_before": instant(start), "expires_at": instant(end)}
        await api.ok("POST", "/api/membership/u/r", body)
        tick = timedelta(microseconds=1)
        for moment, expected in (
            (clock(), False),
            (start - tick, False),
            (start, True),
            (end - tick, True),
            (end, False),
            (end + timedelta(days=1), False),
        ):
            clock.instant = moment
            assert await api.can("u", "p") is expected
            is_in = await api.data("GET", "/api/membership/u/r")
            assert is_in["has_permission"] is expected
            there = [{"user": "u", "role": "r"}] if expected else []
            assert await api.data("GET", "/api/user_roles/u") == there
            assert await api.data("GET", "/api/members/r") == there
            assert await api.data("GET", "/api/which_users_can/p") == there
            users = await api.data("GET", "/api/workflow/users/p")
            assert users == {"count": len(there), "members": there}
            permissions = await api.data("GET", "/api/user_permissions/u")
            assert permissions["count"] == len(there)
            assert len(await api.data("GET", "/api/members/r?direct=true")) == 1

    async def test_scopes(self, api: Api) -> None:
        await api.apply(
            add_role("r"),
            grant("r", "p"),
            add_member("everywhere", "r"),
            add_member("here", "r", scope="project/1"),
            add_member("both", "r"),
            add_member("both", "r", scope="project/1"),
        )
        for scope, expected in (
            (None, {"everywhere", "both"}),
            ("project/1", {"everywhere", "both", "here"}),
            ("project/2", {"everywhere", "both"}),
            ("Project/1", {"everywhere", "both"}),
            ("project/1/a", {"everywhere", "both"}),
        ):
            params = {} if scope is None else {"scope": scope}
            pairs_here = {(user, "r") for user in expected}
            for user in ("everywhere", "here", "both"):
                allowed = user in expected
                assert await api.can(user, "p", scope) is allowed
                for path in (f"/api/membership/{user}/r", f"/api/workflow/user/{user}/can_run/p"):
                    assert await api.data("GET", path, params=params) == {"has_permission": allowed}
                roles = await api.data("GET", f"/api/user_roles/{user}", params=params)
                assert pairs(roles) == ({(user, "r")} if allowed else set())
                may = await api.data("GET", f"/api/user_permissions/{user}", params=params)
                assert may["permissions"] == ([{"name": "p"}] if allowed else [])
            for path in ("/api/members/r", "/api/which_users_can/p"):
                assert pairs(await api.data("GET", path, params=params)) == pairs_here
            users = await api.data("GET", "/api/workflow/users/p", params=params)
            assert pairs(users["members"]) == pairs_here

    async def test_removal_without_a_scope_takes_every_scope(self, api: Api) -> None:
        members = [add_member("u", "r", scope=scope) for scope in (None, "a", "b", "c")]
        await api.apply(add_role("r"), *members)
        path = "/api/membership/u/r"
        assert (await api.data("DELETE", path, params={"scope": "a"}))["removed"]
        assert not (await api.data("DELETE", path, params={"scope": "a"}))["removed"]
        rows = await api.data("GET", "/api/members/r?direct=true")
        assert {row["scope"] for row in rows} == {None, "b", "c"}
        removed = await api.ok("DELETE", path)
        assert removed["data"]["removed"]
        assert await api.data("GET", "/api/members/r?direct=true") == []

    async def test_removing_a_user(self, api: Api) -> None:
        await api.apply(
            add_role("r"),
            add_role("s"),
            grant("r", "p"),
            add_member("u", "r"),
            add_member("u", "r", scope="here"),
            add_member("u", "s", expires_at="2020-01-01T00:00:00Z"),
            add_member("v", "r"),
        )
        gone = await api.ok("DELETE", "/api/user/u")
        assert of(gone) == ({"memberships_removed": 3, "api_keys_revoked": 0}, MISSING, 10)
        again = await api.ok("DELETE", "/api/user/u")
        assert of(again) == ({"memberships_removed": 0, "api_keys_revoked": 0}, MISSING, 10)
        assert not await api.can("u", "p")
        assert await api.can("v", "p")
        assert await api.data("GET", "/api/user_roles/u?direct=true") == []


class TestHierarchy:
    async def test_parents_come_and_go(self, api: Api) -> None:
        await api.apply(add_role("lead"), add_role("admin"))
        path, pair = "/api/role/lead/parent/admin", {"role": "lead", "parent": "admin"}
        assert of(await api.ok("POST", path)) == (pair | {"added": True}, MISSING, 5)
        assert of(await api.ok("POST", path)) == (pair | {"added": False}, MISSING, 5)
        assert of(await api.ok("DELETE", path)) == (pair | {"removed": True}, MISSING, 6)
        assert of(await api.ok("DELETE", path)) == (pair | {"removed": False}, MISSING, 6)

    async def test_missing_roles(self, api: Api) -> None:
        await api.ok("POST", "/api/role/lead")
        for path in ("/api/role/lead/parent/ops", "/api/role/ops/parent/lead"):
            body = await api.refused(404, "role_not_found", "POST", path)
            assert body["message"] == "Role 'ops' does not exist"
            assert (await api.data("DELETE", path))["removed"] is False

    async def test_a_cycle_is_refused_naming_the_way(self, api: Api) -> None:
        await api.apply(
            *(add_role(name) for name in "abcd"),
            add_parent("a", "b"),
            add_parent("b", "c"),
            add_parent("d", "c"),
        )
        body = await api.refused(409, "role_cycle", "POST", "/api/role/c/parent/a")
        assert "c -> a -> b -> c" in body["message"]
        body = await api.refused(409, "role_cycle", "POST", "/api/role/a/parent/a")
        assert "a -> a" in body["message"]
        assert (await api.data("GET", "/api/role/c"))["parents"] == []
        change = {"changes": [grant("a", "p"), add_parent("c", "a")]}
        body = await api.refused(409, "role_cycle", "POST", "/api/changes", change)
        assert [one["field"] for one in body["details"]] == ["changes.1.parent"]
        await api.apply({"op": "remove_parent", "role": "b", "parent": "c"}, add_parent("c", "a"))

    async def test_what_is_inherited(self, api: Api) -> None:
        await api.apply(
            *(add_role(name) for name in ("lead", "admin", "staff", "other")),
            add_parent("lead", "admin"),
            add_parent("admin", "staff"),
            grant("staff", "enter"),
            grant("admin", "deploy"),
            grant("lead", "hire"),
            add_member("lea", "lead"),
            add_member("ada", "admin"),
            add_member("sam", "staff"),
        )
        may = {"lea": "deploy enter hire", "ada": "deploy enter", "sam": "enter"}
        for user, permissions in may.items():
            listed = await api.data("GET", f"/api/user_permissions/{user}")
            assert names(listed["permissions"]) == permissions.split()
            assert listed["count"] == len(permissions.split())
            for permission in ("deploy", "enter", "hire"):
                assert await api.can(user, permission) is (permission in permissions.split())
        assert names(await api.data("GET", "/api/role_permissions/lead")) == [
            "deploy",
            "enter",
            "hire",
        ]
        direct = await api.data("GET", "/api/role_permissions/lead?direct=true")
        assert direct == [{"name": "hire"}]
        assert names(await api.data("GET", "/api/which_roles_can/enter"), "role") == [
            "admin",
            "lead",
            "staff",
        ]
        assert await api.data("GET", "/api/user_roles/lea") == [
            {"user": "lea", "role": "lead"},
            {"user": "lea", "role": "admin"},
            {"user": "lea", "role": "staff"},
        ]
        rows = await api.data("GET", "/api/user_roles/lea?direct=true")
        assert [row["role"] for row in rows] == ["lead"]
        members = await api.data("GET", "/api/members/staff")
        assert pairs(members) == {("lea", "staff"), ("ada", "staff"), ("sam", "staff")}
        rows = await api.data("GET", "/api/members/staff?direct=true")
        assert [row["user"] for row in rows] == ["sam"]
        users = await api.data("GET", "/api/which_users_can/enter")
        expected = {("lea", role) for role in ("lead", "admin", "staff")}
        expected |= {("ada", "admin"), ("ada", "staff"), ("sam", "staff")}
        assert pairs(users) == expected
        of_lea = [item["role"] for item in users if item["user"] == "lea"]
        assert of_lea == ["lead", "admin", "staff"]
        assert pairs(await api.data("GET", "/api/which_users_can/hire")) == {("lea", "lead")}
        assert await api.data("GET", "/api/membership/lea/staff") == {"has_permission": True}
        assert await api.data("GET", "/api/membership/sam/lead") == {"has_permission": False}
        asked = await api.ok("GET", "/api/permission/lead/enter")
        assert asked["result"] is True

    async def test_a_diamond_is_told_once(self, api: Api) -> None:
        await api.apply(
            *(add_role(name) for name in ("top", "left", "right", "base")),
            add_parent("top", "left"),
            add_parent("top", "right"),
            add_parent("left", "base"),
            add_parent("right", "base"),
            grant("base", "p"),
            add_member("u", "top"),
            add_member("u", "left"),
        )
        assert names(await api.data("GET", "/api/role_permissions/top")) == ["p"]
        everything = {("u", role) for role in ("top", "left", "right", "base")}
        assert pairs(await api.data("GET", "/api/which_users_can/p")) == everything
        assert pairs(await api.data("GET", "/api/user_roles/u")) == everything
        assert pairs(await api.data("GET", "/api/members/base")) == {("u", "base")}
        await api.ok("DELETE", "/api/role/left/parent/base")
        assert await api.can("u", "p")
        await api.ok("DELETE", "/api/role/right")
        assert not await api.can("u", "p")


class TestExplain:
    async def why(self, api: Api, user: str, permission: str, scope: str | None = None) -> Any:
        params = {"explain": "true"} | ({"scope": scope} if scope else {})
        path = f"/api/has_permission/{user}/{permission}"
        data = await api.data("GET", path, params=params)
        assert list(data) == ["has_permission", "why"]
        item = {"user": user, "permission": permission} | ({"scope": scope} if scope else {})
        many = {"checks": [item], "explain": True}
        batch = await api.data("POST", "/api/check", many)
        assert batch["results"] == [data]
        assert (batch["allowed"], batch["denied"]) == ((1, 0) if data["has_permission"] else (0, 1))
        assert data["has_permission"] is ("allowed_by" in data["why"])
        assert len(data["why"]) == 1
        return data["why"]

    async def test_every_reason(self, api: Api, clock: ControlledClock) -> None:
        later = instant(clock() + timedelta(seconds=10))
        now = instant(clock())
        await api.apply(
            add_role("lead"),
            add_role("admin"),
            add_parent("lead", "admin"),
            grant("admin", "invoice:*"),
            add_member("alice", "lead"),
            add_member("bound", "admin", scope="here"),
            add_member("early", "admin", not_before=later),
            add_member("late", "admin", expires_at=now),
        )
        assert await self.why(api, "alice", "invoice:read") == {
            "allowed_by": [
                {
                    "role": "admin",
                    "via": ["lead", "admin"],
                    "permission": "invoice:*",
                    "scope": None,
                }
            ]
        }
        assert await self.why(api, "bound", "invoice:read", "here") == {
            "allowed_by": [
                {
                    "role": "admin",
                    "via": ["admin"],
                    "permission": "invoice:*",
                    "scope": "here",
                }
            ]
        }
        for user, permission, scope, reason in (
            ("nobody", "invoice:read", None, "no_such_user"),
            ("alice", "deploy", None, "no_role_grants_it"),
            ("early", "invoice:read", None, "membership_not_started"),
            ("late", "invoice:read", None, "membership_expired"),
            ("late", "deploy", None, "no_role_grants_it"),
            ("bound", "invoice:read", None, "out_of_scope"),
            ("bound", "invoice:read", "there", "out_of_scope"),
        ):
            assert await self.why(api, user, permission, scope) == {"denied_because": reason}

    async def test_every_ground_is_told(self, api: Api) -> None:
        await api.apply(
            add_role("a"),
            add_role("b"),
            grant("a", "x:y"),
            grant("a", "x:*"),
            grant("b", "x:y"),
            add_member("u", "a"),
            add_member("u", "b", scope="s"),
        )
        why = await self.why(api, "u", "x:y", "s")
        grounds = {(g["role"], g["permission"], g["scope"]) for g in why["allowed_by"]}
        assert grounds == {("a", "x:y", None), ("a", "x:*", None), ("b", "x:y", "s")}
        assert len(why["allowed_by"]) == 3
        assert len((await self.why(api, "u", "x:y"))["allowed_by"]) == 2

    async def test_without_explain_there_is_no_why(self, api: Api) -> None:
        path = "/api/has_permission/u/p"
        assert await api.data("GET", path) == {"has_permission": False}
        assert await api.data("GET", f"{path}?explain=false") == {"has_permission": False}


class TestManyChecks:
    @pytest.fixture(autouse=True)
    async def policy(self, api: Api) -> None:
        await api.apply(
            add_role("admin"),
            grant("admin", "deploy"),
            add_member("alice", "admin"),
            add_member("bob", "admin", scope="here"),
        )

    async def test_answers_are_in_order(self, api: Api) -> None:
        checks = [
            {"user": "alice", "permission": "deploy"},
            {"user": "bob", "permission": "deploy"},
            {"user": "bob", "permission": "deploy", "scope": "here"},
            {"user": "alice", "permission": "deploy", "scope": None},
            {"user": "alice", "permission": "other"},
            {"user": "alice", "permission": "deploy"},
        ]
        body = await api.ok("POST", "/api/check", {"checks": checks})
        results = [True, False, True, True, False, True]
        assert of(body) == ({"results": results, "allowed": 4, "denied": 2}, MISSING, 6)

    async def test_the_short_form(self, api: Api) -> None:
        asked = {"user": "alice", "permissions": ["deploy", "other"]}
        body = await api.ok("POST", "/api/check", asked)
        assert of(body) == ({"results": {"deploy": True, "other": False}}, MISSING, 6)
        asked = {"user": "bob", "permissions": ["deploy"], "scope": "here"}
        assert await api.data("POST", "/api/check", asked) == {"results": {"deploy": True}}

    async def test_explained(self, api: Api) -> None:
        ground = {"role": "admin", "via": ["admin"], "permission": "deploy", "scope": None}
        yes = {"has_permission": True, "why": {"allowed_by": [ground]}}
        no = {"has_permission": False, "why": {"denied_because": "no_role_grants_it"}}
        asked = {"user": "alice", "permissions": ["deploy", "other"], "explain": True}
        body = await api.data("POST", "/api/check", asked)
        assert body == {"results": {"deploy": yes, "other": no}}
        checks = [{"user": "alice", "permission": p} for p in ("other", "deploy")]
        body = await api.data("POST", "/api/check", {"checks": checks, "explain": True})
        assert body == {"results": [no, yes], "allowed": 1, "denied": 1}

    async def test_ten_thousand_and_no_more(self, api: Api) -> None:
        users = ["alice", "carol"]
        checks = [{"user": users[i % 2], "permission": "deploy"} for i in range(10_000)]
        body = await api.data("POST", "/api/check", {"checks": checks})
        assert body["results"] == [True, False] * 5_000
        assert (body["allowed"], body["denied"]) == (5_000, 5_000)
        too_many = {"checks": [*checks, checks[0]]}
        body = await api.refused(422, "invalid_input", "POST", "/api/check", too_many)
        assert [one["field"] for one in body["details"]] == ["checks"]
        names = [f"p{i}" for i in range(10_001)]
        short = {"user": "alice", "permissions": names[:10_000]}
        assert len((await api.data("POST", "/api/check", short))["results"]) == 10_000
        short["permissions"] = names
        body = await api.refused(422, "invalid_input", "POST", "/api/check", short)
        assert [one["field"] for one in body["details"]] == ["permissions"]

    async def test_one_bad_item_is_named(self, api: Api) -> None:
        checks: list[Any] = [{"user": "alice", "permission": "deploy"} for _ in range(5)]
        for bad, field in (
            ({"user": "a b", "permission": "p"}, "checks.3.user"),
            ({"user": "a", "permission": "p\n"}, "checks.3.permission"),
            ({"user": "a", "permission": "p", "scope": "*"}, "checks.3.scope"),
            ({"user": "a"}, "checks.3.permission"),
            ({"user": "a", "permission": "p", "role": "r"}, "checks.3.role"),
            ("alice", "checks.3"),
        ):
            asked = {"checks": [*checks[:3], bad, *checks[3:]]}
            body = await api.refused(422, "invalid_input", "POST", "/api/check", asked)
            assert [one["field"] for one in body["details"]] == [field]

    async def test_forms_that_are_none(self, api: Api) -> None:
        item = {"user": "alice", "permission": "deploy"}
        asked: Any
        for asked in (
            {},
            {"checks": []},
            {"user": "alice"},
            {"permissions": ["deploy"]},
            {"user": "alice", "permissions": []},
            {"checks": [item], "user": "alice", "permissions": ["deploy"]},
            {"checks": [item], "scope": "here"},
            {"explain": True},
            {"checks": None},
            [],
            None,
        ):
            await api.refused(422, "invalid_input", "POST", "/api/check", asked)


class TestManyChanges:
    async def test_all_in_order_and_one_revision(self, api: Api) -> None:
        body = await api.ok(
            "POST",
            "/api/changes",
            {
                "changes": [
                    add_role("admin", description="May deploy"),
                    grant("admin", "deploy"),
                    add_member("alice", "admin"),
                    add_member("alice", "admin"),
                    grant("admin", "deploy"),
                    {"op": "remove_user", "user": "nobody"},
                ]
            },
        )
        assert of(body) == ({"applied": 3, "unchanged": 3}, MISSING, 5)
        assert await api.can("alice", "deploy")

    async def test_every_op(self, api: Api) -> None:
        ops = [
            add_role("a"),
            add_role("b"),
            add_role("a", description="text"),
            grant("a", "p"),
            {"op": "revoke", "role": "a", "permission": "p"},
            add_parent("a", "b"),
            {"op": "remove_parent", "role": "a", "parent": "b"},
            add_member("u", "a", scope="s", not_before="2026-01-01T00:00:00Z"),
            add_member("u", "a"),
            {"op": "remove_member", "user": "u", "role": "a", "scope": "s"},
            add_member("u", "b"),
            {"op": "remove_user", "user": "u"},
            {"op": "remove_role", "role": "b"},
        ]
        body = await api.ok("POST", "/api/changes", {"changes": ops})
        assert of(body) == ({"applied": len(ops), "unchanged": 0}, MISSING, 2 + len(ops))
        roles = await api.data("GET", "/api/roles")
        assert roles == [{"role": "a", "description": "text"}]

    async def test_nothing_is_kept_of_a_list_that_fails(self, api: Api) -> None:
        changes = [add_role("a"), grant("a", "p"), grant("ops", "p"), add_role("ops")]
        body = await api.refused(
            404, "role_not_found", "POST", "/api/changes", {"changes": changes}
        )
        assert [one["field"] for one in body["details"]] == ["changes.2.role"]
        listed = await api.ok("GET", "/api/roles")
        assert of(listed) == ([], [], 2)
        for bad, field in (
            ({"op": "explode"}, "changes.1.op"),
            ({"role": "a"}, "changes.1.op"),
            ({"op": "grant", "role": "a"}, "changes.1.permission"),
            ({"op": "grant", "role": "a", "permission": "p", "user": "u"}, "changes.1.user"),
            (add_parent("a", "ops"), "changes.1.parent"),
            (add_member("u", "ops"), "changes.1.role"),
        ):
            changes = [add_role("a"), bad]
            response = await api.send("POST", "/api/changes", {"changes": changes})
            body = check_problem(response, response.status_code)
            assert body["code"] in (404, 422)
            assert [one["field"] for one in body["details"]] == [field]
        assert (await api.ok("GET", "/api/roles"))["revision"] == 2

    async def test_dry_run_tells_and_writes_nothing(self, api: Api) -> None:
        await api.apply(add_role("a"), add_member("u", "a"), add_member("u", "a", scope="s"))
        changes = [
            add_role("a"),
            add_role("a", description="new"),
            add_role("b"),
            grant("b", "p"),
            {"op": "remove_user", "user": "u"},
            {"op": "remove_user", "user": "u"},
        ]
        body = await api.ok("POST", "/api/changes", {"changes": changes, "dry_run": True})
        effects = body["data"].pop("effects")
        assert of(body) == ({"applied": 4, "unchanged": 2}, MISSING, 5)
        assert [(e["index"], e["op"], e["changed"]) for e in effects] == [
            (0, "add_role", False),
            (1, "add_role", True),
            (2, "add_role", True),
            (3, "grant", True),
            (4, "remove_user", True),
            (5, "remove_user", False),
        ]
        assert effects[4]["count"] == 2
        listed = await api.ok("GET", "/api/roles")
        assert of(listed)[0::2] == ([{"role": "a", "description": ""}], 5)
        assert len(await api.data("GET", "/api/members/a?direct=true")) == 2
        refused = {"changes": [grant("ops", "p")], "dry_run": True}
        await api.refused(404, "role_not_found", "POST", "/api/changes", refused)

    async def test_a_role_that_goes_and_comes_in_one_list(
        self, api: Api, owner: TenantAtWork
    ) -> None:
        await api.apply(
            add_role("r", description="old"),
            add_role("base"),
            add_parent("r", "base"),
            grant("r", "p"),
            grant("base", "q"),
            add_member("u", "r"),
        )
        body = await api.apply(
            {"op": "remove_role", "role": "r"}, add_role("r"), grant("r", "new"), grant("r", "p")
        )
        assert body == {"applied": 4, "unchanged": 0}
        assert not await api.can("u", "p")
        details = await api.data("GET", "/api/role/r")
        assert (details["description"], details["parents"]) == ("", [])
        assert (details["permissions"], details["members_count"]) == (["new", "p"], 0)
        await api.apply(
            {"op": "remove_role", "role": "r"},
            add_role("r"),
            add_member("u", "r"),
            {"op": "remove_role", "role": "r"},
            add_role("r"),
        )
        assert await api.data("GET", "/api/members/r?direct=true") == []
        assert await owner.violations() == []

    async def test_a_role_that_went_closes_no_cycle(self, api: Api, owner: TenantAtWork) -> None:
        await api.apply(
            *(add_role(name) for name in "abc"), add_parent("a", "b"), add_parent("b", "c")
        )
        body = await api.apply(
            {"op": "remove_role", "role": "b"}, add_role("b"), add_parent("c", "a")
        )
        assert body == {"applied": 3, "unchanged": 0}
        assert (await api.data("GET", "/api/role/a"))["parents"] == []
        assert (await api.data("GET", "/api/role/c"))["parents"] == ["a"]
        assert await owner.violations() == []

    async def test_what_is_undone_in_the_same_list(self, api: Api, owner: TenantAtWork) -> None:
        await api.apply(add_role("r"), add_member("u", "r", scope="s"))
        body = await api.apply(
            {"op": "remove_member", "user": "u", "role": "r"},
            add_member("u", "r", scope="s"),
            grant("r", "p"),
            {"op": "revoke", "role": "r", "permission": "p"},
            add_role("x"),
            {"op": "remove_role", "role": "x"},
        )
        assert body == {"applied": 6, "unchanged": 0}
        rows = await api.data("GET", "/api/members/r?direct=true")
        assert [row["scope"] for row in rows] == ["s"]
        assert await owner.violations() == []

    async def test_ten_thousand_and_no_more(self, api: Api) -> None:
        changes = [grant("r", f"p{i // 2}") for i in range(9_999)]
        body = await api.ok("POST", "/api/changes", {"changes": [add_role("r"), *changes]})
        assert of(body) == ({"applied": 5_001, "unchanged": 4_999}, MISSING, 5_003)
        too_many = {"changes": [changes[0]] * 10_001}
        body = await api.refused(422, "invalid_input", "POST", "/api/changes", too_many)
        assert [one["field"] for one in body["details"]] == ["changes"]

    async def test_an_empty_list_changes_nothing(self, api: Api) -> None:
        body = await api.ok("POST", "/api/changes", {"changes": []})
        assert of(body) == ({"applied": 0, "unchanged": 0}, MISSING, 2)


class TestLists:
    LISTS = (
        ("/api/roles", None),
        ("/api/role_permissions/all", None),
        ("/api/role_permissions/all?direct=true", None),
        ("/api/user_permissions/owner", "permissions"),
        ("/api/user_roles/owner", None),
        ("/api/user_roles/owner?direct=true", None),
        ("/api/members/all", None),
        ("/api/members/all?direct=true", None),
        ("/api/which_roles_can/x:p", None),
        ("/api/which_users_can/x:p", None),
        ("/api/workflow/users/x:p", "members"),
    )

    @pytest.fixture
    async def small(self, api: Api) -> None:
        """Seven of everything, some of it reached on two ways."""
        await api.apply(
            add_role("all"),
            *(add_role(f"r{i}") for i in range(6)),
            *(grant("all", f"x:p{i}") for i in range(6)),
            grant("all", "x:*"),
            *(add_parent(f"r{i}", "all") for i in range(6)),
            add_member("owner", "all"),
            *(add_member("owner", f"r{i}") for i in range(6)),
            *(add_member(f"u{i}", "all") for i in range(6)),
            *(add_member(f"u{i}", f"r{i}") for i in range(3)),
        )

    @pytest.mark.usefixtures("small")
    async def test_pages_make_up_the_list(self, api: Api) -> None:
        for path, items in self.LISTS:
            data = await api.data("GET", path)
            whole = data if items is None else data[items]
            assert len(whole) >= 7, path
            if items is not None:
                assert data["count"] == len(whole)
            for limit in (1, 2, len(whole) - 1, len(whole), 10_000):
                plain, _, query = path.partition("?")
                params = dict([query.split("=")]) if query else {}
                found: list[Any] = []
                sizes = []
                while True:
                    body = await api.ok("GET", plain, params=params | {"limit": str(limit)})
                    page = body["data"] if items is None else body["data"][items]
                    found += page
                    sizes.append(len(page))
                    if "next" not in body:
                        break
                    params["cursor"] = body["next"]
                assert found == whole, (path, limit)
                assert all(size == limit for size in sizes[:-1])
                assert 1 <= sizes[-1] <= limit

    @pytest.mark.usefixtures("small")
    async def test_pages_go_on_after_changes(self, api: Api) -> None:
        first = await api.ok("GET", "/api/roles?limit=3")
        await api.apply({"op": "remove_role", "role": "r1"}, add_role("new"))
        rest = await api.ok("GET", "/api/roles", params={"limit": 100, "cursor": first["next"]})
        assert names(first["data"] + rest["data"], "role") == sorted(
            ["all", "new", *(f"r{i}" for i in range(6))]
        )

    @pytest.mark.usefixtures("small")
    async def test_a_cursor_belongs_to_its_question(self, api: Api) -> None:
        cursor = (await api.ok("GET", "/api/members/all?limit=1"))["next"]
        for path in (
            "/api/members/r0",
            "/api/members/all?direct=true",
            "/api/members/all?scope=s",
            "/api/roles",
            "/api/which_users_can/x:p0",
        ):
            join = "&" if "?" in path else "?"
            body = await api.refused(
                422, "invalid_input", "GET", f"{path}{join}limit=1&cursor={cursor}"
            )
            assert [one["field"] for one in body["details"]] == ["cursor"]
        for bad in ("", "x", cursor[:-2], cursor + "AAAA", "é", "%00", "a" * 3000):
            path = f"/api/members/all?limit=1&cursor={bad}"
            body = await api.refused(422, "invalid_input", "GET", path)
            assert [one["field"] for one in body["details"]] == ["cursor"]

    async def test_limits_that_are_none(self, api: Api) -> None:
        for path, _ in self.LISTS:
            join = "&" if "?" in path else "?"
            for limit in ("0", "-1", "10001", "1.5", "", "x", "1e3", "99999999999999999999"):
                body = await api.refused(422, "invalid_input", "GET", f"{path}{join}limit={limit}")
                assert [one["field"] for one in body["details"]] == ["limit"], limit

    async def test_unknown_and_repeated_parameters(self, api: Api) -> None:
        for path, _ in self.LISTS:
            join = "&" if "?" in path else "?"
            for query, field in (
                ("x=1", "x"),
                ("Limit=1", "Limit"),
                ("limit=1&limit=1", "limit"),
                ("offset=3", "offset"),
            ):
                body = await api.refused(422, "invalid_input", "GET", f"{path}{join}{query}")
                assert [one["field"] for one in body["details"]] == [field]

    @pytest.mark.timeout(300)
    async def test_a_list_is_complete_or_refused(self, api: Api) -> None:
        async def apply(changes: list[dict[str, Any]]) -> None:
            for start in range(0, len(changes), 10_000):
                await api.apply(*changes[start : start + 10_000])

        # 10 000 of everything, seen from `owner` and `all`.
        count = 10_000
        await apply(
            [
                add_role("all"),
                *(grant("all", f"x:p{i}") for i in range(count)),
                *(add_member(f"u{i}", "all") for i in range(count - 1)),
                add_member("owner", "all"),
                *(add_role(f"r{i}") for i in range(count - 1)),
                *(grant(f"r{i}", "x:q") for i in range(count - 1)),
                grant("all", "x:q"),
                {"op": "revoke", "role": "all", "permission": "x:p0"},
                *(add_member("owner", f"r{i}") for i in range(count - 1)),
            ]
        )
        lists = [(path.replace("x:p", "x:q"), items) for path, items in self.LISTS]
        # Everyone's way through `all`, and the owner's 9 999 others.
        of_users = [p for p, _ in lists if "which_users_can" in p or "workflow" in p]
        for path, items in lists:
            if path not in of_users:
                data = await api.data("GET", path)
                whole = data if items is None else data[items]
                assert len(whole) == count, path
        await apply(
            [
                add_role("one-more"),
                grant("one-more", "x:q"),
                add_member("owner", "one-more"),
                add_member("one-more", "all"),
                grant("all", "x:p0"),
            ]
        )
        for path, items in lists:
            body = await api.refused(422, "limit_required", "GET", path)
            assert [one["field"] for one in body["details"]] == ["limit"]
            join = "&" if "?" in path else "?"
            page = await api.ok("GET", f"{path}{join}limit=10000")
            first = page["data"] if items is None else page["data"][items]
            assert len(first) == count
            rest = await api.ok("GET", f"{path}{join}limit=10000&cursor={page['next']}")
            more = rest["data"] if items is None else rest["data"][items]
            if path in of_users:
                # All but one of the 10 001 in `all` and the owner's 10 000 other roles.
                distinct = len(pairs(first + more))
                assert (distinct, "next" in rest) == (20_000, True)
            else:
                assert len(more) == 1, path


class TestWorkflows:
    async def test_a_workflow_is_a_permission(self, api: Api) -> None:
        await api.apply(
            add_role("ops"),
            grant("ops", "nightly"),
            add_member("alice", "ops"),
            add_member("bob", "ops", scope="here"),
        )
        body = await api.ok("GET", "/api/workflow/users/nightly")
        members = [{"user": "alice", "role": "ops"}]
        assert of(body) == ({"count": 1, "members": members}, MISSING, 6)
        body = await api.ok("GET", "/api/workflow/users/unknown")
        assert of(body) == ({"count": 0, "members": []}, MISSING, 6)
        path = "/api/workflow/user/alice/can_run"
        body = await api.ok("GET", f"{path}/nightly")
        assert of(body) == ({"has_permission": True}, MISSING, 6)
        assert await api.data("GET", f"{path}/unknown") == {"has_permission": False}


class TestRegistration:
    @pytest.fixture
    async def stranger(self, serve: Serve, storage: Storage) -> AsyncIterator[Api]:
        """A caller with a fresh key, of a service that takes everybody in."""
        async with serve(storage, client_registration="open") as service:
            yield service.with_key(str(uuid.uuid4()))

    async def tenants(self, database: Database) -> int:
        async with database.read() as tx:
            found = await tx.execute(select(func.count()).select_from(models.tenant))
            return int(found.scalar_one())

    async def test_reading_makes_no_tenant(self, stranger: Api, database: Database) -> None:
        for path, empty in {
            "/api/roles": [],
            "/api/role_permissions/r": [],
            "/api/user_permissions/u": {"count": 0, "permissions": []},
            "/api/user_roles/u": [],
            "/api/user_roles/u?direct=true": [],
            "/api/members/r": [],
            "/api/members/r?direct=true": [],
            "/api/which_roles_can/p": [],
            "/api/which_users_can/p": [],
            "/api/workflow/users/p": {"count": 0, "members": []},
            "/api/workflow/user/u/can_run/p": {"has_permission": False},
            "/api/permission/r/p": {"has_permission": False},
            "/api/membership/u/r": {"has_permission": False},
            "/api/has_permission/u/p": {"has_permission": False},
            "/api/has_permission/u/p?explain=true": {
                "has_permission": False,
                "why": {"denied_because": "no_such_user"},
            },
        }.items():
            body = await stranger.ok("GET", path)
            assert (body["data"], body["revision"]) == (empty, 0), path
        await stranger.refused(404, "role_not_found", "GET", "/api/role/r")
        asked = {"user": "u", "permissions": ["p"]}
        assert (await stranger.ok("POST", "/api/check", asked))["revision"] == 0
        # Neither do writes that fail, change nothing, or are not meant.
        await stranger.refused(404, "role_not_found", "POST", "/api/permission/r/p")
        assert (await stranger.ok("DELETE", "/api/role/r"))["revision"] == 0
        dry = {"changes": [add_role("r")], "dry_run": True}
        assert (await stranger.ok("POST", "/api/changes", dry))["revision"] == 0
        assert await self.tenants(database) == 0

    async def test_the_first_write_makes_the_tenant(
        self, stranger: Api, database: Database
    ) -> None:
        assert stranger.key is not None
        body = await stranger.ok("POST", "/api/role/admin")
        assert of(body) == ({"role": "admin", "description": "", "created": True}, True, 3)
        upper = stranger.with_key(stranger.key.upper())
        assert await upper.data("GET", "/api/roles") == [{"role": "admin", "description": ""}]
        assert await self.tenants(database) == 1
        assert await stranger.with_key(str(uuid.uuid4())).data("GET", "/api/roles") == []

    async def test_many_first_writes_make_one_tenant(
        self, stranger: Api, database: Database
    ) -> None:
        bodies = await asyncio.gather(*(stranger.ok("POST", f"/api/role/r{i}") for i in range(64)))
        assert all(body["data"]["created"] for body in bodies)
        assert sorted(body["revision"] for body in bodies) == list(range(3, 67))
        assert await self.tenants(database) == 1
        assert len(await stranger.data("GET", "/api/roles")) == 64

    async def test_closed_to_unknown_keys(
        self, serve: Serve, storage: Storage, database: Database
    ) -> None:
        async with serve(storage) as service:
            unknown = service.with_key(str(uuid.uuid4()))
            await unknown.refused(401, "unauthorized", "GET", "/api/roles")
            await unknown.refused(401, "unauthorized", "POST", "/api/role/admin")
        assert await self.tenants(database) == 0


class TestTenants:
    async def test_what_is_anothers_does_not_exist(self, api: Api, new_tenant: NewTenant) -> None:
        await api.apply(
            add_role("admin", description="secret text"),
            add_role("staff"),
            add_parent("admin", "staff"),
            grant("admin", "deploy"),
            add_member("alice", "admin"),
        )
        fills = {"role": "admin", "parent": "staff", "permission": "deploy", "user": "alice"}
        fills |= {"workflow": "deploy", "key_id": (await api.data("GET", "/api/keys"))[0]["key_id"]}
        before = await api.ok("GET", "/api/roles")
        seen = api.with_key((await new_tenant()).key)
        alone = api.with_key((await new_tenant()).key)
        document = (await api.http.get("/openapi.json")).json()
        asked = 0
        for template, methods in document["paths"].items():
            if not template.startswith("/api/"):
                continue
            theirs = template.format_map(fills)
            absent = template.replace("{key_id}", f"key_{'0' * 20}")
            absent = re.sub(r"\{(\w+)\}", r"no-\1", absent)
            for method in methods:
                body: Any = MISSING
                other: Any = MISSING
                if template == "/api/check":
                    body = {"user": "alice", "permissions": ["deploy"], "explain": True}
                    other = {"user": "x-u", "permissions": ["x-p"], "explain": True}
                if template == "/api/changes":
                    body = {"changes": [grant("admin", "deploy")]}
                    other = {"changes": [grant("no-role", "no-permission")]}
                if method == "post" and template == "/api/role/{role}":
                    continue
                if template in ("/api/keys", "/api/keys/rotate"):
                    # Everybody's own keys, new ones in each answer: see test_keys.py.
                    continue
                if template == "/api/audit":
                    # Everybody's own history, from their first key on: see test_audit_search.py.
                    continue
                if method == "post" and template == "/api/apikeys/user/{user}":
                    # Mints a key of the caller's own, another one each time.
                    continue
                first = same_but_for_the_moment(await seen.send(method.upper(), theirs, body))
                second = same_but_for_the_moment(await alone.send(method.upper(), absent, other))
                text = str(first)
                for field, name in fills.items():
                    text = text.replace(f"'{name}'", f"'no-{field}'")
                plain = re.sub(r"'(no|x)-\w+'", "''", str(second))
                assert re.sub(r"'no-\w+'", "''", text) == plain, (method, theirs)
                asked += 1
        assert asked >= 20
        assert await seen.data("GET", "/api/roles") == []
        after = await api.ok("GET", "/api/roles")
        assert of(after) == of(before)

    async def test_same_names_in_two_tenants(self, api: Api, new_tenant: NewTenant) -> None:
        other = api.with_key((await new_tenant()).key)
        await api.apply(add_role("r"), grant("r", "p"), add_member("u", "r"))
        await other.apply(add_role("r"), grant("r", "q"), add_member("v", "r"))
        assert (await api.can("u", "p"), await api.can("u", "q")) == (True, False)
        assert (await other.can("u", "p"), await other.can("v", "q")) == (False, True)
        await other.ok("DELETE", "/api/role/r")
        await other.ok("DELETE", "/api/user/u")
        assert await api.can("u", "p")

    async def test_a_disabled_tenant(self, api: Api, owner: TenantAtWork) -> None:
        await api.ok("POST", "/api/role/r")
        table = models.tenant
        change = update(table).where(table.c.id == owner.id)
        await announce(owner, change.values(disabled_at=owner.clock()))
        await api.refused(403, "tenant_disabled", "GET", "/api/roles")
        await api.refused(403, "tenant_disabled", "POST", "/api/role/s")
        asked = {"user": "u", "permissions": ["p"]}
        await api.refused(403, "tenant_disabled", "POST", "/api/check", asked)
        await announce(owner, change.values(disabled_at=None))
        assert names(await api.data("GET", "/api/roles"), "role") == ["r"]

    @pytest.mark.parametrize("column", ["revoked_at", "expires_at"])
    async def test_a_key_that_has_ended(
        self, api: Api, owner: TenantAtWork, clock: ControlledClock, column: str
    ) -> None:
        await api.ok("POST", "/api/role/r")
        table = models.client_key
        ends: datetime = clock() + timedelta(seconds=10) if column == "expires_at" else clock()
        change = update(table).where(table.c.tenant_id == owner.id).values({column: ends})
        await announce(owner, change)
        if column == "expires_at":
            clock.instant = ends - timedelta(microseconds=1)
            await api.ok("GET", "/api/roles")
            clock.instant = ends
        unknown = api.with_key(str(uuid.uuid4()))
        expected = same_but_for_the_moment(await unknown.send("GET", "/api/roles"))
        assert expected[0] == 401
        for method, path in (("GET", "/api/roles"), ("POST", "/api/role/s")):
            response = await api.send(method, path)
            check_problem(response, 401, "unauthorized")
            assert same_but_for_the_moment(response) == expected

    async def test_a_key_with_few_scopes(self, api: Api, owner: TenantAtWork) -> None:
        await api.apply(add_role("r"), grant("r", "p"), add_member("u", "r"))
        table = models.client_key
        for scopes, check, read, write in (
            (["check"], 200, 403, 403),
            (["read"], 200, 200, 403),
            (["write"], 200, 200, 200),
            (["audit"], 403, 403, 403),
            (["admin"], 200, 200, 200),
        ):
            change = update(table).where(table.c.tenant_id == owner.id).values(scopes=scopes)
            await announce(owner, change)
            for expected, method, path in (
                (check, "GET", "/api/has_permission/u/p"),
                (check, "GET", "/api/membership/u/r"),
                (check, "GET", "/api/permission/r/p"),
                (check, "GET", "/api/workflow/user/u/can_run/p"),
                (read, "GET", "/api/roles"),
                (read, "GET", "/api/role/r"),
                (read, "GET", "/api/user_permissions/u"),
                (read, "GET", "/api/which_users_can/p"),
                (write, "POST", "/api/role/r"),
                (write, "DELETE", "/api/user/nobody"),
            ):
                response = await api.send(method, path)
                assert response.status_code == expected, (scopes, path)
                if expected == 403:
                    check_problem(response, 403, "insufficient_scope")


class TestStrictNames:
    async def test_keywords_are_refused_only_when_asked_for(self, api: Api, serve: Serve) -> None:
        await api.ok("POST", "/api/role/select")
        async with serve(strict_names=True) as service:
            strict = service.with_key(api.key)
            for name in ("select", "DROP", "a:delete", "union.all"):
                body = await strict.refused(422, "invalid_input", "POST", f"/api/role/{name}")
                assert [one["field"] for one in body["details"]] == ["role"]
            for name in ("selected", "drop-off", "update_log"):
                await strict.ok("POST", f"/api/role/{name}")


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
async def test_the_service_needs_no_more_than_the_guides_rights(storage: Storage) -> None:
    """What all of this runs with on PostgreSQL: the rows of the tables, and nothing else."""
    found = re.search(r"//([^:]+):", storage.url)
    assert found is not None
    role = found[1]
    async with storage.administrator() as connection:
        for right in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"):
            has = await connection.fetchval(
                "SELECT has_table_privilege($1, 'role', $2)", role, right
            )
            assert has is (right in ("SELECT", "INSERT", "UPDATE", "DELETE")), right
        create = "SELECT has_schema_privilege($1, 'public', 'CREATE')"
        assert await connection.fetchval(create, role) is False
        superuser = "SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles"
        assert await connection.fetchval(f"{superuser} WHERE rolname = $1", role) is False
