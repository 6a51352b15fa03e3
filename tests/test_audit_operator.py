"""The operator's view of all trails: put together, exported, followed, asked from Python."""

from __future__ import annotations

import asyncio
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from authsvc.audit import query_audit_logs
from authsvc.audit_entries import OPERATORS_FIELDS, STREAMS, Selection, Stream
from authsvc.errors import AuthsvcError, InputError, LimitRequired, NotFound, StartError
from authsvc.records import Change
from authsvc.services import operator, whole_trail
from authsvc.services.whole_trail import Follower, Whose, everything, find
from conftest import ControlledClock, MakeTenant, Storage, TenantAtWork
from http_api import instant
from trail import (
    act,
    activity_entries,
    add_activity,
    at_random,
    busy_days,
    matching,
    policy_entries,
    storage_settings,
)

EVERYBODY = Whose()


async def all_entries(
    tenants: dict[str, TenantAtWork], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Everything there is, as the operator is shown it, stream by stream."""
    made = []
    for name, tenant in tenants.items():
        for stream, entries in (
            ("policy", await policy_entries(tenant)),
            ("activity", activity_entries(rows, tenant.id)),
        ):
            made += [{"tenant": name, "stream": stream} | entry for entry in entries]
    nobodys = activity_entries(rows, None)
    return made + [{"tenant": None, "stream": "activity"} | entry for entry in nobodys]


def in_order(entries: list[dict[str, Any]]) -> list[Any]:
    """Entries without regard to the order of those of one instant."""
    return sorted((entry["timestamp"], repr(entry)) for entry in entries)


async def test_all_tenants_and_streams_are_one_list(
    make_tenant: MakeTenant, clock: ControlledClock
) -> None:
    chance = random.Random(42)
    tenants = {name: await make_tenant(name) for name in ("acme", "beta", "gamma")}
    rows = await busy_days([tenants["acme"], tenants["beta"]], chance, 80)
    database = tenants["acme"].database
    entries = await all_entries(tenants, rows)
    for _ in range(120):
        wanted = at_random(chance, entries)
        streams: tuple[Stream, ...] = chance.choice((STREAMS, ("policy",), ("activity",)))
        name = chance.choice((None, None, "acme", "gamma"))
        kept = [
            entry
            for entry in entries
            if entry["stream"] in streams and name in (None, entry["tenant"])
        ]
        expected = matching(kept, wanted, clock())
        found, more = await find(database, wanted, streams, Whose(name), None, clock())
        assert not more
        assert in_order(found) == in_order(expected)
        assert [list(entry) for entry in found] == [list(OPERATORS_FIELDS)] * len(found)
        times = [entry["timestamp"] for entry in found]
        assert times == sorted(times, reverse=not wanted.oldest_first)
        limit = chance.choice((1, 2, 5, 20))
        part, more = await find(database, wanted, streams, Whose(name), limit, clock())
        assert (part, more) == (found[:limit], len(found) > limit)
        whole = [
            entry
            async for some in everything(database, wanted, streams, Whose(name), clock())
            for entry in some
        ]
        assert in_order(whole) == in_order(expected)


async def test_one_tenants_changes_are_in_the_order_they_were_made(tenant: TenantAtWork) -> None:
    await tenant.write(*(Change("add_role", role=f"r{n}") for n in range(30)))
    for oldest_first in (True, False):
        wanted = Selection(oldest_first=oldest_first)
        found, _ = await find(tenant.database, wanted, STREAMS, EVERYBODY, None, tenant.clock())
        seqs = [entry["seq"] for entry in found]
        assert seqs == sorted(seqs, reverse=not oldest_first)
        assert len(seqs) == 32


async def test_the_trail_of_a_tenant_that_is_gone_is_nobodys_but_the_operators(
    make_tenant: MakeTenant, storage: Storage, clock: ControlledClock
) -> None:
    kept, gone = await make_tenant("kept"), await make_tenant("gone")
    owner = storage.open(as_owner=True)
    await operator.erase_tenant(owner, "gone", clock)
    await add_activity(owner, clock(), gone.id)
    found, _ = await find(owner, Selection(), STREAMS, EVERYBODY, None, clock())
    assert {entry["tenant"] for entry in found} == {"kept", str(gone.id)}
    with pytest.raises(NotFound, match="authsvc tenants list"):
        await find(owner, Selection(), STREAMS, Whose("gone"), None, clock())
    assert kept.id != gone.id


# Following


async def test_what_comes_is_told_once_and_in_order(
    make_tenant: MakeTenant, clock: ControlledClock
) -> None:
    acme = await make_tenant("acme")
    await add_activity(acme.database, clock(), acme.id, entity_id="before")
    follower = Follower(acme.database, Selection(), STREAMS, EVERYBODY)
    assert await follower.more(clock()) == []
    assert await follower.more(clock()) == []
    clock.advance(1)
    await acme.write(Change("add_role", role="a"), Change("add_role", role="b"))
    clock.advance(1)
    await add_activity(acme.database, clock(), None, entity_id="c")
    beta = await make_tenant("beta")
    added = await follower.more(clock.advance(1))
    assert [entry["entity_id"] for entry in added][:2] == ["a", "b"]
    assert {entry["tenant"] for entry in added} == {"acme", "beta", None}
    assert len(added) == 5
    assert await follower.more(clock()) == []
    # Another process writes its batch some seconds late.
    await add_activity(acme.database, clock() - timedelta(seconds=20), acme.id, entity_id="late")
    assert [entry["entity_id"] for entry in await follower.more(clock.advance(5))] == ["late"]
    # The follower was away for a while.
    await add_activity(acme.database, clock.advance(1), acme.id, entity_id="d")
    await beta.write(Change("add_role", role="e"))
    added = await follower.more(clock.advance(3600))
    assert {entry["entity_id"] for entry in added} == {"d", "e"}


async def test_following_keeps_to_what_is_selected(
    make_tenant: MakeTenant, clock: ControlledClock
) -> None:
    acme, beta = await make_tenant("acme"), await make_tenant("beta")
    followers = {
        "grants": Follower(acme.database, Selection(action="grant"), STREAMS, EVERYBODY),
        "beta": Follower(acme.database, Selection(), STREAMS, Whose("beta")),
        "activity": Follower(acme.database, Selection(), ("activity",), EVERYBODY),
        "failures": Follower(acme.database, Selection(outcome="failure"), STREAMS, EVERYBODY),
    }
    for follower in followers.values():
        await follower.more(clock())
    for tenant in (acme, beta):
        clock.advance(1)
        await tenant.write(Change("add_role", role="r"), Change("grant", role="r", permission="p"))
        await add_activity(
            acme.database, clock(), tenant.id, entity_id=str(tenant.id), success=tenant is beta
        )
    told = {name: await follower.more(clock.advance(1)) for name, follower in followers.items()}
    assert [(one["tenant"], one["entity_id"]) for one in told["grants"]] == [
        ("acme", "p"), ("beta", "p"),
    ]  # fmt: skip
    assert {(one["tenant"], one["stream"]) for one in told["beta"]} == {
        ("beta", "policy"), ("beta", "activity"),
    }  # fmt: skip
    assert [one["entity_id"] for one in told["activity"]] == [str(acme.id), str(beta.id)]
    assert [one["entity_id"] for one in told["failures"]] == [str(acme.id)]


# From Python


@pytest.fixture
def configured(storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that names the test's database."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AUTH_")]:
        monkeypatch.delenv(name)
    for name, value in storage_settings(storage).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("configured")
async def test_python_asks_with_every_argument(
    make_tenant: MakeTenant, clock: ControlledClock
) -> None:
    clock.instant = datetime.now(UTC) - timedelta(hours=3)
    acme, beta = await make_tenant("acme"), await make_tenant("beta")
    for tenant in (acme, beta):
        await act(tenant, "key_1", "203.0.113.7", Change("add_role", role="admin"))
    clock.advance(7200)
    now = clock()
    await act(beta, "key_2", "203.0.113.8", Change("remove_role", role="admin"))
    await add_activity(beta.database, now, None, action="auth_failure", success=False)

    def told(**given: Any) -> list[tuple[Any, ...]]:
        return [(log["tenant"], log["action"]) for log in query_audit_logs(**given)]

    assert len(told()) == 8
    assert told(action="delete") == told(actor="key_2") == [("beta", "delete")]
    assert sorted(told(entity_type="role", entity_id="admin", actor="key_1")) == [
        ("acme", "create"), ("beta", "create"),
    ]  # fmt: skip
    assert told(client_key=acme.key, entity_type="role") == [("acme", "create")]
    assert told(client_key=acme.key.upper(), entity_type="role") == [("acme", "create")]
    assert sorted(told(hours=2), key=repr) == [("beta", "delete"), (None, "auth_failure")]
    assert sorted(told(since=now), key=repr) == sorted(told(since=instant(now)), key=repr)
    assert len(told(since=now)) == 2
    assert len(told(until=now)) == len(told(until=now.isoformat())) == 6
    assert told(outcome="failure") == [(None, "auth_failure")]
    assert told(entity_type="role", limit=1) == [("beta", "delete")]
    [log] = query_audit_logs(action="delete")
    assert log == {
        "tenant": "beta",
        "stream": "policy",
        "seq": 4,
        "timestamp": instant(now),
        "action": "delete",
        "entity_type": "role",
        "entity_id": "admin",
        "details": {"description": ""},
        "actor": "key_2",
        "ip_address": "203.0.113.8",
        "user_agent": "curl",
        "request_id": "r-key_2",
        "success": True,
        "hash": log["hash"],
    }


@pytest.mark.usefixtures("configured")
def test_python_asks_with_and_without_a_running_loop(tenant: TenantAtWork) -> None:
    without = query_audit_logs()

    async def within() -> list[dict[str, Any]]:
        return query_audit_logs()

    assert len(without) == 2
    assert asyncio.run(within()) == without


@pytest.mark.usefixtures("configured")
async def test_python_is_told_what_cannot_be_asked(
    tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = str(uuid4())
    refused: list[tuple[dict[str, Any], type[AuthsvcError], str]] = [
        ({"outcome": "maybe"}, InputError, "outcome"),
        ({"limit": 0}, InputError, "limit"),
        ({"hours": 0}, InputError, "hours"),
        ({"hours": 1, "since": datetime.now(UTC)}, InputError, "hours"),
        ({"since": datetime(2026, 1, 1)}, InputError, "since"),  # noqa: DTZ001
        ({"until": "yesterday"}, InputError, "until"),
        ({"client_key": "my-app-key"}, InputError, "client_key"),
        ({"client_key": stranger}, NotFound, "client key"),
    ]
    for given, kind, words in refused:
        with pytest.raises(kind, match=words) as error:
            query_audit_logs(**given)
        assert not [value for value in (stranger, "my-app-key") if value in str(error.value)]
    monkeypatch.setattr(whole_trail, "COMPLETE_MAX", 1)
    with pytest.raises(LimitRequired):
        query_audit_logs()
    assert len(query_audit_logs(limit=1)) == 1


@pytest.mark.usefixtures("configured")
async def test_a_key_that_has_ended_still_names_its_tenant(tenant: TenantAtWork) -> None:
    async with tenant.database.read() as tx:
        [stored] = await operator.list_keys(tx, "acme")
    await tenant.database.write(
        "acme", lambda tx: operator.revoke(tx, "acme", stored.id, tenant.clock, even_last=True)
    )
    assert [log["action"] for log in query_audit_logs(client_key=tenant.key)] == [
        "delete", "create", "create",
    ]  # fmt: skip


def test_python_says_that_there_is_no_database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTH_SQLITE_PATH", str(tmp_path / "none.sqlite3"))
    with pytest.raises(StartError, match="authsvc serve"):
        query_audit_logs()
    assert list(tmp_path.iterdir()) == []
