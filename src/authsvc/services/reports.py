"""Reports for the calendar of the security guide: what happened in a week, a month, a quarter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from authsvc.audit_chain import AuditKeys
from authsvc.database import Transaction
from authsvc.errors import NotFound
from authsvc.repositories.access import (
    Access,
    Credential,
    activity_between,
    actors_before,
    changes_between,
    database_bytes,
    last_checkpoint_at,
)
from authsvc.services.access_review import review
from authsvc.services.audit_proof import prove_all
from authsvc.services.tenants import list_tenants

Period = Literal["weekly", "monthly", "quarterly"]
DAYS: dict[Period, int] = {"weekly": 7, "monthly": 30, "quarterly": 91}
KEY_DAYS = 90
"""The age at which a client key should have been replaced."""
_MOST = 20


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a report: a verdict in words, and a table. ``good`` None: there is no verdict."""

    title: str
    verdict: str
    good: bool | None = None
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A report of one tenant, or of all."""

    period: Period
    since: datetime
    until: datetime
    tenant: str | None
    sections: list[Section] = field(default_factory=list)


async def report(
    tx: Transaction, period: Period, now: datetime, keys: AuditKeys, tenant: str | None = None
) -> Report:
    """Make a report in one read transaction. Raises NotFound."""
    since = now - timedelta(days=DAYS[period])
    found = sorted(
        ((one.id, one.name) for one, _ in await list_tenants(tx) if tenant in (None, one.name)),
        key=lambda known: known[1],
    )
    if tenant is not None and not found:
        raise NotFound("tenant_not_found", f"There is no tenant called '{tenant}'")
    made = Report(period, since, now, tenant)
    made.sections.append(await _changes(tx, found, since, now))
    made.sections.extend(await _activity(tx, found if tenant else [], since, now))
    made.sections.append(await _chain(tx, keys, tenant, now))
    credentials = [
        (name, key)
        for tenant_id, name in found
        for key in await Access(tx, tenant_id).credentials(now)
    ]
    made.sections.append(_key_ages(credentials, now))
    if period != "weekly":
        made.sections.extend(await _access(tx, found, now))
    if period == "quarterly":
        made.sections.append(_administrators(credentials, now))
    size = await database_bytes(tx)
    made.sections.append(Section("Database", f"{size / 1024 / 1024:.1f} MiB"))
    return made


async def _changes(
    tx: Transaction, tenants: list[tuple[UUID, str]], since: datetime, now: datetime
) -> Section:
    counts: Counter[tuple[str, str, str]] = Counter()
    new: list[str] = []
    for tenant_id, name in tenants:
        happened = await changes_between(tx, tenant_id, since, now)
        actors = {one.actor for one in happened} - {None, "command", "settings"}
        before = await actors_before(tx, tenant_id, since)
        new += [f"{actor} of {name}" for actor in sorted(map(str, actors - before))]
        for one in happened:
            counts[name, one.actor or "-", f"{one.action} {one.entity_type}"] += 1
    rows = [
        (name, actor, what, str(count))
        for (name, actor, what), count in sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    ]
    verdict = f"{sum(counts.values())} changes"
    if new:
        verdict += f"; changed something for the first time: {', '.join(new[:_MOST])}"
    return Section(
        "Changes of policy", verdict, not new, ("TENANT", "ACTOR", "WHAT", "TIMES"), rows[:_MOST]
    )


async def _activity(
    tx: Transaction, tenants: list[tuple[UUID, str]], since: datetime, now: datetime
) -> list[Section]:
    only = tenants[0][0] if tenants else None
    failures: Counter[tuple[str, str]] = Counter()
    others: Counter[str] = Counter()
    alerts: list[Sequence[str]] = []
    for row, subject, details in await activity_between(tx, only, since, now):
        if row.action == "auth_failure":
            place = (row.ip_address or "-", details["reason"])
            failures[place] += int(details["count"])
        elif row.action == "alert":
            alerts.append((subject, row.ip_address or "-", _brief(details)))
        elif not row.success or row.action == "drop":
            others[row.action] += 1
    total = sum(failures.values())
    rows = [
        (address, reason, str(count))
        for (address, reason), count in sorted(failures.items(), key=lambda f: (-f[1], f[0]))
    ]
    words = {"scope_refused": "refused scopes", "check": "refused checks", "drop": "gaps"}
    rest = ", ".join(f"{count} {words.get(name, name)}" for name, count in sorted(others.items()))
    return [
        Section(
            "Failed authentication",
            f"{total} failures from {len({address for address, _ in failures})} addresses"
            + (f"; {rest}" if rest else ""),
            None,
            ("ADDRESS", "REASON", "TIMES"),
            rows[:_MOST],
        ),
        Section(
            "Alerts",
            f"{len(alerts)} alerts",
            not alerts,
            ("RULE", "ADDRESS", "WHAT"),
            alerts[:_MOST],
        ),
    ]


def _brief(details: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in details.items() if name != "details")[:80]


async def _chain(tx: Transaction, keys: AuditKeys, tenant: str | None, now: datetime) -> Section:
    verdict = await prove_all(tx, keys, tenant=tenant)
    checked = sum(proof.checked for proof in verdict.proofs)
    words = "tampered" if verdict.tampered else "not broken"
    signed = await last_checkpoint_at(tx)
    if signed is None:
        last = "no checkpoint was ever signed"
    else:
        last = f"the last checkpoint is {_age(now - signed)} old"
    rows = [(proof.name, str(proof.problem)) for proof in verdict.proofs if proof.problem]
    rows += [("-", problem) for problem in verdict.problems]
    return Section(
        "Audit trail",
        f"{checked} events verified: {words}; {last}",
        not verdict.tampered and signed is not None,
        ("TENANT", "PROBLEM"),
        rows[:_MOST],
    )


def _age(span: timedelta) -> str:
    if span < timedelta(hours=2):
        return f"{int(span.total_seconds() // 60)} minutes"
    return f"{int(span.total_seconds() // 3600)} hours" if span.days < 2 else f"{span.days} days"


def _key_ages(credentials: list[tuple[str, Credential]], now: datetime) -> Section:
    ages = [
        (name, key, (now - key.created_at).days)
        for name, key in credentials
        if key.kind == "client key"
    ]
    old = [(name, key.id, str(days)) for name, key, days in ages if days > KEY_DAYS]
    return Section(
        "Client keys",
        f"{len(ages)} in force, {len(old)} older than {KEY_DAYS} days"
        + ("; replace them: authsvc keys rotate" if old else ""),
        not old,
        ("TENANT", "KEY", "DAYS"),
        old[:_MOST],
    )


async def _access(tx: Transaction, tenants: list[tuple[UUID, str]], now: datetime) -> list[Section]:
    rows = []
    for _, name in tenants:
        found = Counter(item.section for item in (await review(tx, name, now)).items)
        counts = [
            str(found[section])
            for section in ("unused grant", "empty role", "many roles", "dormant key", "membership")
        ]
        rows.append((name, *counts))
    header = ("TENANT", "UNUSED", "EMPTY ROLES", "MANY ROLES", "DORMANT", "MEMBERSHIPS")
    return [Section("Access", "authsvc access-review lists them", None, header, rows)]


def _administrators(credentials: list[tuple[str, Credential]], now: datetime) -> Section:
    rows = [
        (
            name,
            key.id,
            key.owner,
            "never" if key.last_used_at is None else f"{(now - key.last_used_at).days} days ago",
            "never" if key.expires_at is None else key.expires_at.date().isoformat(),
        )
        for name, key in credentials
        if key.admin
    ]
    stale = [row for row in rows if row[3] == "never" or int(row[3].split()[0]) > KEY_DAYS]
    return Section(
        "Keys that may administer",
        f"{len(rows)}, of which {len(stale)} have not been used for {KEY_DAYS} days",
        not stale,
        ("TENANT", "KEY", "LABEL", "USED", "ENDS"),
        rows[:_MOST],
    )
