"""Reports: the same log gives the same report, and what needs looking at stands out."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from authsvc.alert_rules import AlertRules
from authsvc.audit_chain import AuditKeys
from authsvc.commands.report import _for_people
from authsvc.errors import NotFound
from authsvc.records import Change
from authsvc.services.activity import Activity
from authsvc.services.alerts import Alerts
from authsvc.services.changes import apply_changes
from authsvc.services.checkpoints import make_checkpoint
from authsvc.services.reports import Period, Report, Section, report
from conftest import MakeTenant, Storage, TenantAtWork


async def write_as(tenant: TenantAtWork, actor: str, *changes: Change) -> None:
    caller = replace(await tenant.caller(), key_id=actor)
    await tenant.database.write(
        tenant.id, lambda tx: apply_changes(tx, caller, changes, tenant.clock)
    )


@pytest.fixture
async def log(tenant: TenantAtWork, make_tenant: MakeTenant) -> TenantAtWork:
    """A fixed log: two actors, a burst of refused credentials, an alert, a checkpoint."""
    other = await make_tenant("other")
    await write_as(other, "key_other", Change("add_role", role="x"))
    rules = AlertRules(roles=("admin",))
    alerts = Alerts(tenant.database, rules, tenant.clock)
    await alerts.round()
    await write_as(
        tenant,
        "key_old",
        *[Change("add_role", role=role) for role in ("admin", "reader")],
        Change("grant", role="reader", permission="doc:read"),
    )
    tenant.clock.advance(10 * 86400)
    await write_as(tenant, "key_old", Change("add_member", user="alice", role="reader"))
    await write_as(tenant, "key_new", Change("add_member", user="mallory", role="admin"))
    await alerts.round()
    activity = Activity(tenant.database, tenant.clock, enabled=True)
    caller = await tenant.caller()
    for number in range(30):
        activity.failed("unknown", f"192.0.2.{number % 2}", None, tenant.clock())
    activity.failed("ended", "192.0.2.1", (tenant.id, "key_old"), tenant.clock())
    activity.note("scope_refused", "credential", "k", caller, tenant.clock(), {}, success=False)
    activity._close_windows(everything=True)
    await activity.flush()
    await make_checkpoint(tenant.database, Ed25519PrivateKey.generate(), tenant.clock)
    tenant.clock.advance(3600)
    return tenant


async def made(
    tenant: TenantAtWork, period: Period = "weekly", name: str | None = "acme"
) -> Report:
    async with tenant.database.read() as tx:
        return await report(tx, period, tenant.clock(), AuditKeys(), name)


def section(found: Report, title: str) -> Section:
    return next(section for section in found.sections if section.title == title)


GOLDEN = """\
Weekly report of 'acme', 2026-03-04 to 2026-03-11

LOOK Changes of policy: 2 changes; changed something for the first time: key_new of acme
     TENANT  ACTOR    WHAT            TIMES
     acme    key_new  add membership  1
     acme    key_old  add membership  1

     Failed authentication: 31 failures from 2 addresses; 1 refused scopes
     ADDRESS    REASON   TIMES
     192.0.2.0  unknown  15
     192.0.2.1  unknown  15
     192.0.2.1  ended    1

LOOK Alerts: 1 alerts
     RULE          ADDRESS  WHAT
     watched_role  -        {alert}

ok   Audit trail: 7 events verified: not broken; the last checkpoint is 60 minutes old

ok   Client keys: 1 in force, 0 older than 90 days
"""


async def test_a_fixed_log_gives_a_fixed_report(log: TenantAtWork) -> None:
    found = await made(log)
    assert found == await made(log)
    text = _for_people(replace(found, sections=found.sections[:-1]))
    (alert,) = section(found, "Alerts").rows
    assert text == GOLDEN.format(alert=alert[2])
    assert "entity_id mallory" in alert[2]
    assert section(found, "Database").verdict.endswith(" MiB")


async def test_a_report_of_all_tenants(log: TenantAtWork) -> None:
    found = await made(log, "monthly", None)
    rows = section(found, "Changes of policy").rows
    assert {row[0] for row in rows} == {"acme", "other"}
    assert [row[0] for row in section(found, "Access").rows] == ["acme", "other"]
    with pytest.raises(NotFound):
        await made(log, "weekly", "nobody")


async def test_what_is_tampered_with_and_old_keys_stand_out(
    log: TenantAtWork, storage: Storage
) -> None:
    log.clock.advance(100 * 86400)
    found = await made(log)
    assert section(found, "Client keys").good is False
    assert "older than 90 days" in section(found, "Client keys").verdict
    await storage.forge(
        lambda connection: connection.exec_driver_sql(
            "UPDATE audit_event SET actor = 'nobody' WHERE seq = 4"
        )
    )
    chain = section(await made(log), "Audit trail")
    assert chain.good is False
    assert "tampered" in chain.verdict
    assert "event 4" in chain.rows[0][1]


async def test_keys_that_may_administer_are_listed_each_quarter(log: TenantAtWork) -> None:
    found = section(await made(log, "quarterly"), "Keys that may administer")
    assert found.verdict == "1, of which 1 have not been used for 90 days"
    assert found.rows[0][3] == "never"
    assert (
        timedelta(days=91)
        == (await made(log, "quarterly")).until - (await made(log, "quarterly")).since
    )
