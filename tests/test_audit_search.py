"""Questions to the audit trail over HTTP, against a plain list; pages, exports, isolation."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import random
import re
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event, text

from authsvc.audit_entries import FIELDS, Selection
from authsvc.cursor import encode_cursor
from authsvc.database import Database
from authsvc.records import Change
from authsvc.services import audit_search
from conftest import ControlledClock, Storage, TenantAtWork
from http_api import Api, NewTenant, bearer, instant
from trail import (
    act,
    activity_entries,
    add_activity,
    as_query,
    at_random,
    busy_days,
    matching,
    policy_entries,
)

pytest_plugins = ["http_fixtures"]

PATH = "/api/audit"


async def asked(api: Api, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """All entries of a selection, page by page."""
    params, found = dict(params or {}), []
    while True:
        body = await api.ok("GET", PATH, params=params)
        assert list(body["data"]) == ["entries", "next"]
        assert body.get("next") == body["data"]["next"]
        entries: list[dict[str, Any]] = body["data"]["entries"]
        assert len(entries) <= int(params.get("limit", 50))
        found += entries
        if body["data"]["next"] is None:
            return found
        assert len(entries) == int(params.get("limit", 50))
        params["cursor"] = body["data"]["next"]


# Filters


async def test_every_filter_answers_as_a_plain_list_would(
    api: Api, owner: TenantAtWork, new_tenant: NewTenant, clock: ControlledClock
) -> None:
    chance = random.Random(20261127)
    begin, other = clock(), await new_tenant()
    rows = await busy_days([owner, other], chance, 120)
    policy, activity = await policy_entries(owner), activity_entries(rows, owner.id)
    assert len(policy) > 30
    assert len(activity) > 10
    alone: list[Selection] = [
        Selection(action="add"),
        Selection(entity_type="permission"),
        Selection(entity_id="mallory"),
        Selection(actor="key_b"),
        Selection(ip="2001:db8::7"),
        Selection(outcome="success"),
        Selection(outcome="failure"),
        Selection(hours=5),
        Selection(since=begin + timedelta(hours=3)),
        Selection(until=begin + timedelta(hours=3)),
        Selection(oldest_first=True),
        Selection(stream="activity"),
        Selection(stream="activity", action="check"),
        Selection(stream="activity", outcome="failure"),
        Selection(stream="activity", hours=5, oldest_first=True),
        # An address outside of any index, and a time in which nothing happened.
        Selection(since=clock() + timedelta(seconds=1)),
        Selection(until=begin - timedelta(days=1)),
        Selection(stream="activity", until=begin - timedelta(days=30_000)),
    ]
    combined = [at_random(chance, policy + activity) for _ in range(130)]
    sizes = []
    for wanted in alone + combined:
        entries = policy if wanted.stream == "policy" else activity
        expected = matching(entries, wanted, clock())
        params = as_query(wanted)
        if chance.random() < 0.5:
            params["limit"] = str(chance.choice((1, 3, 10)))
        found = await asked(api, params)
        assert found == expected, params
        assert [list(entry) for entry in found] == [list(FIELDS)] * len(found)
        sizes.append(len(expected))
    # The comparison is about something.
    assert len([size for size in sizes if size > 1]) > 50


async def test_bounds_are_exact(
    api: Api, owner: TenantAtWork, new_tenant: NewTenant, clock: ControlledClock
) -> None:
    rows = await busy_days([owner, await new_tenant()], random.Random(3), 25)
    for stream, entries in (
        ("policy", await policy_entries(owner)),
        ("activity", activity_entries(rows, owner.id)),
    ):
        moments = sorted({entry["timestamp"] for entry in entries})
        assert len(moments) > 3
        for moment in moments:
            for order in ("asc", "desc"):
                params = {"stream": stream, "order": order, "limit": "1000"}
                later = await asked(api, params | {"since": moment})
                earlier = await asked(api, params | {"until": moment})
                assert min(entry["timestamp"] for entry in later) == moment
                assert not [entry for entry in earlier if entry["timestamp"] >= moment]
                assert len(earlier) + len(later) == len(entries)


async def test_a_clock_that_went_back_hides_nothing(
    api: Api, owner: TenantAtWork, clock: ControlledClock
) -> None:
    roles = []
    for number, step in enumerate((10, -7, 2, 10, -11, 3)):
        clock.advance(step)
        roles.append((f"r{number}", clock()))
        await act(owner, "key_a", None, Change("add_role", role=f"r{number}"))
    clock.advance(100)
    for _, since in roles:
        for _, until in roles:
            if until <= since:
                continue
            params = {
                "since": instant(since), "until": instant(until), "entity_type": "role",
                "order": "asc", "limit": "2",
            }  # fmt: skip
            found = [entry["entity_id"] for entry in await asked(api, params)]
            assert found == [name for name, at in roles if since <= at < until]


async def test_who_gave_mallory_admin_when_and_from_where_is_one_request(
    api: Api, owner: TenantAtWork, clock: ControlledClock
) -> None:
    made = await api.data("POST", "/api/keys", {"label": "night shift"})
    for role in ("admin", "ops"):
        await api.ok("POST", f"/api/role/{role}")
    await api.ok("POST", "/api/membership/alice/admin")
    await api.ok("POST", "/api/membership/mallory/ops")
    at = clock.advance(60)
    thief = api.with_key(made["key"])
    await thief.ok(
        "POST",
        "/api/membership/mallory/admin",
        headers={"User-Agent": "curl/8.9", "X-Request-ID": "night-1"},
    )
    clock.advance(60)
    await api.ok("DELETE", "/api/membership/mallory/ops")
    found = await api.data("GET", f"{PATH}?action=add&entity_type=membership&entity_id=mallory")
    assert [entry["details"]["role"] for entry in found["entries"]] == ["admin", "ops"]
    entry = found["entries"][0]
    assert re.fullmatch("[0-9a-f]{64}", entry.pop("hash"))
    assert entry == {
        "seq": 8,
        "timestamp": instant(at),
        "action": "add",
        "entity_type": "membership",
        "entity_id": "mallory",
        "details": {"role": "admin", "scope": None, "not_before": None, "expires_at": None},
        "actor": made["key_id"],
        "ip_address": "127.0.0.1",
        "user_agent": "curl/8.9",
        "request_id": "night-1",
        "success": True,
    }


async def test_the_history_of_a_role_is_one_request(api: Api, clock: ControlledClock) -> None:
    await api.ok("POST", "/api/role/admin", {"description": "first"})
    await api.ok("POST", "/api/role/other")
    await api.ok("POST", "/api/role/admin", {"description": "second"})
    await api.ok("DELETE", "/api/role/admin")
    found = await asked(api, {"entity_type": "role", "entity_id": "admin", "order": "asc"})
    assert [(entry["action"], entry["details"]) for entry in found] == [
        ("create", {"description": "first"}),
        ("update", {"description": "second", "before": {"description": "first"}}),
        ("delete", {"description": "second"}),
    ]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("entity=admin", "entity"),
        ("stream=all", "stream"),
        ("action=", "action"),
        ("action=Add", "action"),
        ("entity_id=%C3%A9", "entity_id"),
        (f"actor={'a' * 300}", "actor"),
        ("outcome=maybe", "outcome"),
        ("hours=0", "hours"),
        ("hours=1.5", "hours"),
        ("hours=99999999999999999999", "hours"),
        ("hours=1&since=2026-01-01T00:00:00Z", "hours"),
        ("since=2026-01-01", "since"),
        ("until=2026-01-01T00:00:00", "until"),
        ("since=2026-01-02T00:00:00Z&until=2026-01-02T00:00:00Z", "until"),
        ("order=newest", "order"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("cursor=x", "cursor"),
        ("format=xlsx", "format"),
        ("format=csv&limit=1", "limit"),
        ("format=jsonl&cursor=x", "cursor"),
        ("format=csv&hours=1&since=2026-01-01T00:00:00Z", "hours"),
        ("action=add&action=add", "action"),
    ],
)
async def test_what_cannot_be_asked_is_named(api: Api, query: str, field: str) -> None:
    body = await api.refused(422, "invalid_input", "GET", f"{PATH}?{query}")
    assert [one["field"] for one in body["details"]] == [field]


# Pages


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_stay_in_place_while_events_are_being_added(
    api: Api, owner: TenantAtWork, clock: ControlledClock, order: str
) -> None:
    await owner.write(*(Change("add_role", role=f"r{n}") for n in range(20)))
    for n in range(9):
        await add_activity(owner.database, clock(), owner.id, entity_id=f"e{n}")
        clock.advance(0.001)
    before = {stream: await asked(api, {"stream": stream}) for stream in ("policy", "activity")}
    added: dict[str, list[Any]] = {}
    for stream in before:
        params: dict[str, Any] = {"stream": stream, "order": order, "limit": 4, "hours": 1}
        found, number = [], 0
        while True:
            data = await api.data("GET", PATH, params=params)
            found += data["entries"]
            clock.advance(60)
            if number < 3:
                await owner.write(Change("add_role", role=f"{stream}-{number}"))
                await add_activity(owner.database, clock(), owner.id, entity_id=f"more{number}")
            number += 1
            if data["next"] is None:
                break
            params["cursor"] = data["next"]
        whole = await asked(api, {"stream": stream, "order": order, "limit": 1000})
        old = before[stream] if order == "desc" else before[stream][::-1]
        if stream == "activity" and added:
            old = [entry for entry in whole if entry["entity_id"].startswith("e")]
        kept = [entry for entry in found if entry in old]
        assert kept == old
        added[stream] = [entry for entry in found if entry not in old]
        # The newest first began before them; the oldest first comes to them in the end.
        if order == "desc" and stream == "policy":
            assert added[stream] == []
        if order == "asc" and stream == "policy":
            assert len(added[stream]) == 3


async def test_the_last_hours_are_those_before_the_first_page(
    api: Api, owner: TenantAtWork, clock: ControlledClock
) -> None:
    clock.advance(7200)
    for n in range(6):
        await owner.write(Change("add_role", role=f"r{n}"))
        await add_activity(owner.database, clock(), owner.id, entity_id=f"e{n}")
        clock.advance(60)
    for stream in ("policy", "activity"):
        params = {"stream": stream, "hours": "1", "limit": "2"}
        whole = await asked(api, {"stream": stream, "hours": "1"})
        assert len(whole) == 6
        first = await api.data("GET", PATH, params=params)
        clock.advance(3400)
        rest = await asked(api, params | {"cursor": first["next"]})
        assert first["entries"] + rest == whole
        assert await asked(api, params) != whole
        clock.advance(-3400)


async def test_a_cursor_belongs_to_its_question(
    api: Api, owner: TenantAtWork, new_tenant: NewTenant
) -> None:
    await owner.write(*(Change("add_role", role=f"r{n}") for n in range(5)))
    cursor = (await api.data("GET", f"{PATH}?limit=2"))["next"]
    for other in (
        "stream=activity", "action=create", "entity_type=role", "entity_id=r1", "actor=x",
        "outcome=success", "ip=x", "hours=1", "since=2026-01-01T00:00:00Z",
        "until=2027-01-01T00:00:00Z", "order=asc",
    ):  # fmt: skip
        body = await api.refused(
            422, "invalid_input", "GET", f"{PATH}?limit=2&{other}&cursor={cursor}"
        )
        assert [one["field"] for one in body["details"]] == ["cursor"]
    policy, activity = Selection().identity, Selection(stream="activity").identity
    for identity, stream, position in (
        (policy, "policy", (1, 2, 3)),
        (policy, "policy", ("x", 0, 0, 0)),
        (policy, "policy", (1, 0, 0, 2**63 - 1)),
        (activity, "activity", ("zz", 0)),
        (activity, "activity", ("00", 0)),
        (activity, "activity", ("00" * 16, 2**63 - 1)),
    ):
        forged = encode_cursor(identity, position)
        await api.refused(
            422, "invalid_input", "GET", PATH, params={"stream": stream, "cursor": forged}
        )
    # In other hands it is a place in their own trail.
    other_tenant = await new_tenant()
    found = await api.with_key(other_tenant.key).data("GET", f"{PATH}?limit=2&cursor={cursor}")
    assert found["entries"] == (await policy_entries(other_tenant))[::-1]


# Isolation


async def test_nothing_of_another_tenant_or_of_none_is_ever_seen(
    api: Api, owner: TenantAtWork, new_tenant: NewTenant, clock: ControlledClock
) -> None:
    other = await new_tenant()
    await act(other, "key_x", "203.0.113.9", Change("add_role", role="secret-role"))
    for whose in (other.id, None):
        await add_activity(
            owner.database, clock(), whose, entity_id="secret-entity", ip_address="203.0.113.9"
        )
    own = await add_activity(owner.database, clock(), owner.id, entity_id="own-entity")
    for stream in ("policy", "activity"):
        for narrow in ("", "&ip=203.0.113.9", "&entity_id=secret-role", "&entity_id=secret-entity"):
            for more in ("", "&format=jsonl", "&format=csv", "&order=asc"):
                answered = await api.send("GET", f"{PATH}?stream={stream}{narrow}{more}")
                assert answered.status_code == 200
                assert "secret" not in answered.text
                assert str(other.id) not in answered.text
    shown = await asked(api, {"stream": "activity"})
    assert shown == activity_entries([own], owner.id)


async def test_a_key_that_nobody_made_has_an_empty_trail(serve: Any) -> None:
    async with serve(client_registration="open") as service:
        stranger = service.with_key("8f14e45f-ceea-467f-a0e6-3d5b1f2c7a01")
        body = await stranger.ok("GET", PATH)
        assert (body["data"], body["revision"]) == ({"entries": [], "next": None}, 0)
        await stranger.refused(
            422, "invalid_input", "GET", f"{PATH}?hours=1&since=2026-01-01T00:00:00Z"
        )
        exported = await stranger.send("GET", f"{PATH}?format=csv")
        assert list(csv.reader(io.StringIO(exported.text))) == [list(FIELDS)]
        assert (await stranger.send("GET", f"{PATH}?format=jsonl")).text == ""


# Exports


async def test_exports_hold_what_pages_hold(
    api: Api, owner: TenantAtWork, new_tenant: NewTenant, clock: ControlledClock
) -> None:
    chance = random.Random(7)
    await busy_days([owner, await new_tenant()], chance, 40)
    entries = await policy_entries(owner)
    for wanted in [Selection(), Selection(stream="activity")] + [
        at_random(chance, entries) for _ in range(15)
    ]:
        params = as_query(wanted)
        expected = await asked(api, params)
        lines = await api.send("GET", PATH, params=params | {"format": "jsonl"})
        assert lines.headers["content-type"] == "application/x-ndjson"
        assert lines.headers["cache-control"] == "no-store"
        assert lines.headers["content-disposition"] == (
            f'attachment; filename="audit-{wanted.stream}.jsonl"'
        )
        assert [json.loads(line) for line in lines.text.splitlines()] == expected
        sheet = await api.send("GET", PATH, params=params | {"format": "csv"})
        assert sheet.headers["content-type"].startswith("text/csv; charset=utf-8")
        header, *records = csv.reader(io.StringIO(sheet.text))
        assert header == list(FIELDS)
        read = [dict(zip(header, record, strict=True)) for record in records]
        assert [(one["seq"], one["timestamp"], one["entity_id"]) for one in read] == [
            ("" if one["seq"] is None else str(one["seq"]), one["timestamp"], one["entity_id"])
            for one in expected
        ]
        assert [json.loads(one["details"]) for one in read] == [one["details"] for one in expected]


class SlowClient:
    """Receives an answer piece by piece; between two pieces a test may look around."""

    def __init__(self, key: str, query: str) -> None:
        self.pieces: list[bytes] = []
        self.status = 0
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": PATH,
            "raw_path": PATH.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in bearer(key).items()],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
            "state": {},
        }

    async def ask(self, app: FastAPI) -> None:
        """Send the request; ends when the answer has been taken."""
        await app(self._scope, self._nothing, self._send)

    async def _nothing(self) -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if message["body"]:
            await self._arrived.put(message["body"])
            await self._arrived.join()
        if not message.get("more_body"):
            await self._arrived.put(None)

    async def piece(self) -> bytes | None:
        """The next piece, None after the last. Whoever sends it waits for ``go_on``."""
        arrived = await self._arrived.get()
        if arrived is not None:
            self.pieces.append(arrived)
        return arrived

    def go_on(self) -> None:
        """Let the next piece be made."""
        self._arrived.task_done()


def connections_in_use(app: FastAPI) -> int:
    database: Database = app.state.service.database
    pools = {database.reader.pool, database.writer.pool}
    return sum(pool.checkedout() for pool in pools)  # type: ignore[attr-defined]


@pytest.mark.parametrize("query", ["format=jsonl", "format=csv&order=asc"])
async def test_an_export_of_5000_streams_and_holds_nothing_while_the_client_is_slow(
    api: Api, app: FastAPI, owner: TenantAtWork, query: str
) -> None:
    await owner.write(*(Change("add_role", role=f"r{n}") for n in range(5000)))
    expected = [entry["seq"] for entry in await policy_entries(owner)]
    client = SlowClient(owner.key, query)
    asking = asyncio.ensure_future(client.ask(app))
    written = 0
    while await client.piece() is not None:
        assert connections_in_use(app) == 0
        if written < 3:
            await owner.write(Change("add_role", role=f"meanwhile{written}"))
            written += 1
        client.go_on()
    await asking
    assert client.status == 200
    assert len(client.pieces) >= 5000 // audit_search.EXPORT_PAGE
    assert max(piece.count(b"\n") for piece in client.pieces) <= audit_search.EXPORT_PAGE + 1
    whole = b"".join(client.pieces).decode()
    if query.startswith("format=jsonl"):
        seqs = [json.loads(line)["seq"] for line in whole.splitlines()]
        assert seqs == expected[::-1]
    else:
        seqs = [int(record[0]) for record in list(csv.reader(io.StringIO(whole)))[1:]]
        assert seqs == expected


async def test_an_export_goes_no_further_than_its_credential(
    api: Api, app: FastAPI, owner: TenantAtWork
) -> None:
    await owner.write(*(Change("add_role", role=f"r{n}") for n in range(3000)))
    made = await api.data("POST", "/api/keys", {"scopes": ["audit"]})
    client = SlowClient(made["key"], "format=jsonl")
    asking = asyncio.ensure_future(client.ask(app))
    await client.piece()
    await api.ok("DELETE", f"/api/keys/{made['key_id']}")
    client.go_on()
    while not asking.done():
        taking = asyncio.ensure_future(client.piece())
        await asyncio.wait([asking, taking], return_when=asyncio.FIRST_COMPLETED)
        if taking.done():
            client.go_on()
        taking.cancel()
    # Cut off, so that nobody takes it for a whole one.
    assert asking.exception() is not None
    assert b"".join(client.pieces).count(b"\n") < 2000


# Indexes


async def test_every_question_is_answered_from_an_index(
    owner: TenantAtWork, clock: ControlledClock, shared: tuple[Storage, Database]
) -> None:
    await owner.write(*(Change("add_role", role=f"r{n}") for n in range(300)))
    clock.advance(7200)
    await owner.write(*(Change("add_role", role=f"r{n}") for n in range(300, 305)))
    storage = shared[0]
    database = storage.open()
    async with storage.open(as_owner=True).writer.begin() as connection:
        await connection.execute(text("ANALYZE"))
    seen: list[tuple[str, Any]] = []

    @event.listens_for(database.reader.sync_engine, "before_cursor_execute")
    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        if "audit_event" in statement or "activity_event" in statement:
            seen.append((statement, parameters))

    later = clock() + timedelta(hours=1)
    earlier = clock() - timedelta(hours=1)
    for wanted in (
        Selection(),
        Selection(oldest_first=True),
        Selection(entity_id="r1"),
        Selection(actor="key_a", action="create"),
        Selection(entity_id="r1", since=earlier, until=later),
        Selection(since=earlier),
        Selection(until=clock() + timedelta(seconds=1), oldest_first=True),
        Selection(stream="activity"),
        Selection(stream="activity", since=earlier, until=later, oldest_first=True),
    ):
        async with database.read() as tx:
            walk = await audit_search.begin(tx, owner.id, wanted, later)
            await audit_search.some(tx, walk, 50)
    event.remove(database.reader.sync_engine, "before_cursor_execute", note)
    assert len(seen) == 11
    indexes: list[str] = []
    async with database.reader.connect() as connection:
        for statement, parameters in seen:
            # No index gives several forms of a name in one order.
            forms = " OR " in statement
            if storage.engine == "postgresql":
                await connection.execute(text("SET LOCAL enable_seqscan = off"))
                for way in ("enable_sort", "enable_bitmapscan"):
                    await connection.execute(text(f"SET LOCAL {way} = {'on' if forms else 'off'}"))
            explain = "EXPLAIN " if storage.engine == "postgresql" else "EXPLAIN QUERY PLAN "
            rows = await connection.exec_driver_sql(explain + statement, parameters)
            plan = "\n".join(str(row[-1]) for row in rows)
            dear = "Seq Scan|SCAN" if forms else "Seq Scan|Sort|SCAN|TEMP B-TREE"
            assert not re.search(dear, plan), f"{statement}\n{plan}"
            assert "Index" in plan or "SEARCH" in plan
            indexes += re.findall(r"ix_\w+", plan)
    # What is sought by name is not sought along the whole trail.
    assert {"ix_audit_event_entity_id", "ix_audit_event_actor", "ix_audit_event_at"} <= set(indexes)
