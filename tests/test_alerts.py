"""Alerts: what the rules say is told once, and a quiet day is quiet."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

import encrypted
from authsvc import models
from authsvc.alert_rules import NO_RULES, AlertRules, Threshold, parse_rules
from authsvc.alerting import Seen, evaluate
from authsvc.database import Database
from authsvc.errors import SettingsError
from authsvc.records import Change
from authsvc.services.activity import Activity
from authsvc.services.alerts import Alerts
from authsvc.services.changes import apply_changes
from authsvc.settings import build_settings
from conftest import ControlledClock, MakeTenant, Storage, TenantAtWork

RULES = AlertRules(
    permissions=("billing:*",),
    roles=("admin",),
    many_grants=Threshold(20, timedelta(minutes=10)),
    first_time_actor=True,
    failed_authentication=Threshold(50, timedelta(minutes=1)),
)


async def write_as(tenant: TenantAtWork, actor: str, *changes: Change) -> None:
    caller = replace(await tenant.caller(), key_id=actor)
    await tenant.database.write(
        tenant.id, lambda tx: apply_changes(tx, caller, changes, tenant.clock)
    )


async def alerts_in(database: Database) -> list[Any]:
    """The alerts there are, as rows of the activity."""
    table = models.activity_event
    async with database.read() as tx:
        found = await tx.execute(
            select(table).where(table.c.action == "alert").order_by(table.c.id)
        )
        return await encrypted.activity(tx, found.all())


async def messages_in(database: Database) -> list[dict[str, Any]]:
    async with database.read() as tx:
        return await encrypted.messages(tx)


@pytest.fixture
async def watched(tenant: TenantAtWork) -> TenantAtWork:
    """A tenant with roles, whose usual actor is known, and alerts switched on."""
    await write_as(tenant, "key_usual", *[Change("add_role", role=f"r{n}") for n in range(8)])
    await write_as(tenant, "key_usual", Change("add_role", role="admin"))
    assert await Alerts(tenant.database, RULES, tenant.clock).round() == 0
    return tenant


async def quiet_day(tenant: TenantAtWork, seed: int) -> None:
    """What a team does: a few changes an hour."""
    dice = random.Random(seed)
    for _ in range(60):
        tenant.clock.advance(dice.randrange(60, 1800))
        role = f"r{dice.randrange(8)}"
        await write_as(
            tenant,
            "key_usual",
            dice.choice(
                [
                    Change("grant", role=role, permission=f"doc:{dice.randrange(99)}"),
                    Change("add_member", user=f"u{dice.randrange(99)}", role=role),
                    Change("remove_member", user=f"u{dice.randrange(99)}", role=role),
                ]
            ),
        )


async def test_a_quiet_day_is_quiet_and_a_burst_is_one_alert(watched: TenantAtWork) -> None:
    alerts = Alerts(watched.database, RULES, watched.clock, send=True)
    await quiet_day(watched, 1)
    assert await alerts.round() == 0
    for number in range(40):
        watched.clock.advance(1)
        await write_as(
            watched, "key_usual", Change("grant", role="r1", permission=f"burst:{number}")
        )
        await alerts.round()
    await quiet_day(watched, 2)
    await alerts.round()
    (alert,) = await alerts_in(watched.database)
    assert (alert.entity_id, alert.actor, alert.tenant_id) == (
        "many_grants", "key_usual", watched.id,
    )  # fmt: skip
    assert alert.details["count"] == 21
    (message,) = await messages_in(watched.database)
    assert (message["type"], message["rule"], message["tenant_name"]) == (
        "alert", "many_grants", "acme",
    )  # fmt: skip
    assert alerts.raised == 1


async def test_a_burst_in_one_list_and_a_second_one_later(watched: TenantAtWork) -> None:
    alerts = Alerts(watched.database, RULES, watched.clock)
    for batch in range(2):
        await write_as(
            watched,
            "key_usual",
            *[Change("grant", role="r1", permission=f"b{batch}:{n}") for n in range(200)],
        )
        assert await alerts.round() == 1
        watched.clock.advance(3600)


async def test_each_rule(watched: TenantAtWork) -> None:
    alerts = Alerts(watched.database, RULES, watched.clock)
    for actor, change, rule in (
        ("key_usual", Change("grant", role="r1", permission="billing:pay"), "watched_permission"),
        ("key_usual", Change("grant", role="r1", permission="doc:1"), None),
        ("key_usual", Change("add_member", user="mallory", role="admin"), "watched_role"),
        ("key_usual", Change("add_parent", role="r1", parent="admin"), "watched_role"),
        ("key_usual", Change("add_parent", role="admin", parent="r2"), "watched_role"),
        ("key_usual", Change("remove_member", user="mallory", role="admin"), None),
        ("key_usual", Change("revoke", role="r1", permission="billing:pay"), None),
        ("key_new", Change("add_member", user="bob", role="r1"), "first_time_actor"),
        ("key_new", Change("add_member", user="carol", role="r1"), None),
        ("command", Change("add_member", user="dave", role="r1"), None),
    ):
        before = len(await alerts_in(watched.database))
        await write_as(watched, actor, change)
        await alerts.round()
        new = [row.entity_id for row in (await alerts_in(watched.database))[before:]]
        assert new == ([] if rule is None else [rule]), change
    row = (await alerts_in(watched.database))[0]
    assert row.details["entity_id"] == "billing:pay"
    assert row.details["details"] == {"role": "r1"}
    assert row.details["seq"]


async def test_failed_authentication_over_the_threshold(
    watched: TenantAtWork, clock: ControlledClock
) -> None:
    alerts = Alerts(watched.database, RULES, clock)
    activity = Activity(watched.database, clock, enabled=True)
    for step in range(13):
        for _ in range(10):
            activity.failed("unknown", "192.0.2.66", None, clock())
        activity.failed("unknown", "192.0.2.1", None, clock())
        clock.advance(10)
        activity._close_windows()
        await activity.flush()
        await alerts.round()
        # Each minute holds 60 of one address and 6 of the other.
        expected = 0 if step < 5 else 1 if step < 12 else 2
        assert len(await alerts_in(watched.database)) == expected
    assert {row.ip_address for row in await alerts_in(watched.database)} == {"192.0.2.66"}


async def test_history_is_no_alert_and_new_tenants_are_watched_from_the_first_event(
    make_tenant: MakeTenant, database: Database, clock: ControlledClock
) -> None:
    old = await make_tenant("old")
    await write_as(old, "key_old", Change("add_role", role="admin"))
    await write_as(old, "key_old", Change("add_member", user="mallory", role="admin"))
    alerts = Alerts(database, RULES, clock)
    assert await alerts.round() == 0
    young = await make_tenant("young")
    await write_as(young, "command", Change("add_role", role="admin"))
    await write_as(young, "command", Change("add_member", user="mallory", role="admin"))
    assert await alerts.round() == 1
    (row,) = await alerts_in(database)
    assert row.tenant_id == young.id


async def test_whoever_looks_again_tells_nothing_twice(
    watched: TenantAtWork, storage: Storage
) -> None:
    """Several processes at once, with restarts in the middle of a burst."""
    for number in range(60):
        watched.clock.advance(2)
        await write_as(
            watched, "key_usual", Change("grant", role="r1", permission=f"burst:{number}")
        )
        if number % 7 == 0:
            fresh = [
                Alerts(d, RULES, watched.clock, send=True)
                for d in (watched.database, storage.open())
            ]
            await asyncio.gather(*(alerts.round() for alerts in fresh))
    assert [row.entity_id for row in await alerts_in(watched.database)] == ["many_grants"]
    assert len(await messages_in(watched.database)) == 1


async def test_long_histories_are_looked_at_in_portions(watched: TenantAtWork) -> None:
    await write_as(
        watched,
        "key_usual",
        *[Change("add_role", role=f"x{n}") for n in range(1300)],
        Change("add_member", user="mallory", role="admin"),
    )
    assert await Alerts(watched.database, RULES, watched.clock).round() == 1


def test_the_same_events_give_the_same_alerts_however_they_are_cut() -> None:
    dice = random.Random(5)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    events = []
    for seq in range(3, 600):
        at += timedelta(seconds=dice.choice([1] * 50 + [90, 400]))
        said = {
            "action": "grant", "entity_type": "permission", "entity_id": f"p{seq}",
            "details": {"role": "r"}, "actor": f"key_{dice.randrange(3)}", "ip_address": None,
        }  # fmt: skip
        events.append(Seen(seq, at, said))
    rules = AlertRules(many_grants=Threshold(10, timedelta(seconds=60)), first_time_actor=True)
    whole = evaluate(rules, events)
    assert len(whole) > 5
    for size in (1, 7, 100):
        found = []
        for start in range(0, len(events), size):
            page = events[start : start + size]
            since = page[0].at - timedelta(seconds=120)
            before = [event for event in events[:start] if event.at >= since]
            found += evaluate(rules, page, before, {event.actor for event in events[:start]})
        assert found == whole


# --- The rules themselves ---


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "the file: must be a JSON object"),
        ('{"watches": {}}', "watches: is no rule"),
        ('{"watch": {"users": []}}', "watch.users: is no rule"),
        ('{"watch": {"roles": "admin"}}', "watch.roles: must be a list of names"),
        ('{"watch": {"roles": [1]}}', "watch.roles: must be a list of names"),
        ('{"many_grants": {"more_than": 0, "seconds": 1}}', "many_grants.more_than: must be"),
        ('{"many_grants": {"more_than": 5}}', "many_grants.seconds: must be"),
        ('{"many_grants": {"more_than": true, "seconds": 1}}', "many_grants.more_than"),
        ('{"first_time_actor": 1}', "first_time_actor: must be true or false"),
        ("{", "Expecting property name"),
    ],
)
def test_rules_that_are_none_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "rules.json"
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        build_settings(sqlite_path=tmp_path / "x", alert_rules=path)
    assert refused.value.message.startswith("AUTH_ALERT_RULES: ")
    assert problem in refused.value.message


def test_rules_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(
        '{"watch": {"permissions": ["billing:*"], "roles": ["admin"]},'
        ' "many_grants": {"more_than": 20, "seconds": 600}, "first_time_actor": true,'
        ' "failed_authentication": {"more_than": 50, "seconds": 60}}'
    )
    settings = build_settings(sqlite_path=tmp_path / "x", alert_rules=path)
    assert settings.audit.rules == RULES
    assert parse_rules({}) == NO_RULES
    assert not NO_RULES.any
    with pytest.raises(SettingsError, match="cannot be read"):
        build_settings(sqlite_path=tmp_path / "x", alert_rules=tmp_path / "none")
