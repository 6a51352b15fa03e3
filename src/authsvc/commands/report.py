"""``authsvc report``: what happened in a week, a month, a quarter."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from authsvc.audit_words import one_line
from authsvc.clock import system_clock
from authsvc.commands.running import Json, on_tenants, table
from authsvc.database import Database
from authsvc.errors import SettingsError
from authsvc.services import reports
from authsvc.services.reports import Period, Report, Section
from authsvc.settings import load_settings

_MARKS = {True: "ok  ", False: "LOOK", None: "    "}


def report(
    weekly: Annotated[bool, typer.Option("--weekly", help="The last 7 days.")] = False,
    monthly: Annotated[
        bool, typer.Option("--monthly", help="The last 30 days, with access.")
    ] = False,
    quarterly: Annotated[
        bool, typer.Option("--quarterly", help="The last 91 days, with the checklist.")
    ] = False,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant.")] = None,
    as_json: Json = False,
) -> None:
    """Changes by actor, failures, alerts, the state of the trail, key ages, unused access."""
    wanted: list[Period] = []
    wanted += ["weekly"] if weekly else []
    wanted += ["monthly"] if monthly else []
    wanted += ["quarterly"] if quarterly else []
    if len(wanted) != 1:
        raise SettingsError("Say one of --weekly, --monthly and --quarterly")
    period = wanted[0]
    keys = load_settings().audit.keys

    async def work(database: Database) -> Report:
        async with database.read() as tx:
            return await reports.report(tx, period, system_clock(), keys, tenant)

    made = on_tenants(work)
    if period == "quarterly":
        made.sections.append(_checklist())
    if as_json:
        typer.echo(json.dumps(_shown(made)))
    else:
        typer.echo(_for_people(made), nl=False)


def _checklist() -> Section:
    """The pre-production checklist, as ``doctor --production`` judges it now."""
    from authsvc.commands.production import production_settings
    from authsvc.doctor import examine

    found = asyncio.run(examine(production_settings()))
    failed = [check for check in found if check.verdict == "fail"]
    rows = [(str(check.item), one_line(check.evidence)) for check in failed]
    return Section(
        "Checklist for production",
        f"{len({check.item for check in failed})} items fail; authsvc doctor --production tells how"
        " to mend them",
        not failed,
        ("ITEM", "EVIDENCE"),
        rows,
    )


def _shown(made: Report) -> dict[str, Any]:
    return {
        "period": made.period,
        "since": made.since.isoformat(),
        "until": made.until.isoformat(),
        "tenant": made.tenant,
        "sections": [asdict(section) for section in made.sections],
    }


def _for_people(made: Report) -> str:
    who = "all tenants" if made.tenant is None else f"'{made.tenant}'"
    dates = f"{made.since.date().isoformat()} to {made.until.date().isoformat()}"
    parts = [f"{made.period.capitalize()} report of {who}, {dates}"]
    for section in made.sections:
        parts.append(f"\n{_MARKS[section.good]} {section.title}: {one_line(section.verdict)}")
        if section.rows:
            rows = [tuple(one_line(cell) for cell in row) for row in section.rows]
            lines = table(section.header, rows).splitlines()
            parts += [f"     {line}" for line in lines]
    return "\n".join(parts) + "\n"
