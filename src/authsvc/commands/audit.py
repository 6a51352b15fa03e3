"""``authsvc audit``: who did what, when and from where, for the operator."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from authsvc.audit_entries import OPERATORS_FIELDS, STREAMS, Entry, Selection, Stream
from authsvc.audit_lines import Format, header, line
from authsvc.audit_words import in_words, one_line
from authsvc.clock import system_clock
from authsvc.commands.running import Json, on_tenants, table, warn
from authsvc.database import Database
from authsvc.errors import SettingsError, StartError, Unavailable
from authsvc.services.whole_trail import Follower, Whose, everything, find

audit = typer.Typer(help="Who did what, when and from where.", no_args_is_help=True)

_HEADER = ("TIME", "TENANT", "ACTOR", "FROM", "ACTION", "ENTITY", "WHAT")
_POLL_SECONDS = 1.0

OfTenant = Annotated[
    str | None, typer.Option("--tenant", help="Only this tenant's. Without: everybody's.")
]
OfStream = Annotated[
    str | None,
    typer.Option(
        "--stream",
        help="'policy' (what changed) or 'activity' (what else happened). Without: both.",
    ),
]
Action = Annotated[str | None, typer.Option(help="Such as create, grant, add, remove.")]
EntityType = Annotated[str | None, typer.Option(help="Such as role, permission, membership.")]
EntityId = Annotated[str | None, typer.Option(help="The name of what it happened to.")]
Actor = Annotated[str | None, typer.Option(help="The id of a client key, or 'command'.")]
Ip = Annotated[str | None, typer.Option("--ip", help="The address it came from.")]
Outcome = Annotated[str | None, typer.Option(help="'success' or 'failure'.")]
Hours = Annotated[float | None, typer.Option(help="The last so many hours.")]
Since = Annotated[
    str | None, typer.Option(help="This instant and later: 2026-01-31 or 2026-01-31T12:00 (UTC).")
]
Until = Annotated[str | None, typer.Option(help="Before this instant.")]


def _instant(given: str | None, option: str) -> datetime | None:
    """A moment as people type it; UTC unless it has an offset."""
    if given is None:
        return None
    try:
        moment = datetime.fromisoformat(given)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise SettingsError(
            f"{option}: {given!r} is no date or time: write 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from None


def _one_of(given: str | None, option: str, allowed: Sequence[str]) -> Any:
    if given is not None and given not in allowed:
        raise SettingsError(f"{option}: {given!r} is none of {', '.join(allowed)}")
    return given


def _streams(given: str | None) -> Sequence[Stream]:
    return STREAMS if given is None else (_one_of(given, "--stream", STREAMS),)


def _selection(
    action: str | None,
    entity_type: str | None,
    entity_id: str | None,
    actor: str | None,
    ip: str | None,
    outcome: str | None,
    hours: float | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Selection:
    return Selection(
        action=action,
        entity_type=entity_type,
        entity_id=entity_id,
        actor=actor,
        ip=ip,
        outcome=_one_of(outcome, "--outcome", ("success", "failure")),
        hours=hours,
        since=_instant(since, "--since"),
        until=_instant(until, "--until"),
    )


def _row(told: dict[str, Any]) -> tuple[str, ...]:
    """An entry for people."""
    entry = Entry(
        told["stream"],
        None,
        0,
        datetime.fromisoformat(told["timestamp"]),
        told["action"],
        told["entity_type"],
        told["entity_id"],
        told["details"],
    )
    what = in_words(entry)
    cells = (
        f"{told['timestamp'][:19]}Z",
        told["tenant"] or "-",
        told["actor"] or "-",
        told["ip_address"] or "-",
        told["action"],
        f"{told['entity_type']} {told['entity_id']}",
        what if told["success"] else f"{what} (refused)",
    )
    return tuple(one_line(cell) for cell in cells)


@audit.command()
def query(
    tenant: OfTenant = None,
    stream: OfStream = None,
    action: Action = None,
    entity_type: EntityType = None,
    entity_id: EntityId = None,
    actor: Actor = None,
    ip: Ip = None,
    outcome: Outcome = None,
    hours: Hours = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Show at most so many.")] = 50,
    oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="From the beginning on: a history.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what matches all that is given, the newest first.

    Who made mallory a member of what, when and from where:
    authsvc audit query --entity-type membership --entity-id mallory
    """
    wanted = _selection(action, entity_type, entity_id, actor, ip, outcome, hours, since, until)
    wanted = replace(wanted, oldest_first=oldest_first)
    streams = _streams(stream)

    async def work(database: Database) -> tuple[list[dict[str, Any]], bool]:
        return await find(database, wanted, streams, Whose(tenant), limit, system_clock())

    found, more = on_tenants(work)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    elif not found:
        typer.echo("Nothing matches.")
    else:
        typer.echo(table(_HEADER, [_row(told) for told in found]))
    if more:
        warn([f"more than these {limit} match: ask for more with --limit, or for a shorter time"])


@audit.command()
def tail(
    tenant: OfTenant = None,
    stream: OfStream = None,
    action: Action = None,
    entity_type: EntityType = None,
    entity_id: EntityId = None,
    actor: Actor = None,
    ip: Ip = None,
    outcome: Outcome = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Begin with so many.")] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the newest entries, the newest last."""
    wanted = _selection(action, entity_type, entity_id, actor, ip, outcome)
    streams, whose = _streams(stream), Whose(tenant)

    def show(found: Sequence[dict[str, Any]]) -> None:
        for told in found:
            text = json.dumps(told, ensure_ascii=False) if as_json else "  ".join(_row(told))
            _write(sys.stdout, f"{text}\n")
        if found:
            _write(sys.stdout, "", at_once=True)

    async def work(database: Database) -> None:
        follower = Follower(database, wanted, streams, whose)
        # What comes while the newest are looked for is shown in either, and not twice.
        await follower.more(system_clock())
        found, _ = await find(database, wanted, streams, whose, limit, system_clock())
        show(found[::-1])
        seen = {_identity(told) for told in found}
        while follow:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                added = await follower.more(system_clock())
            except Unavailable as error:
                warn([f"{error.message}; trying again until Ctrl-C"])
                continue
            show([told for told in added if _identity(told) not in seen])

    with suppress(KeyboardInterrupt):
        on_tenants(work)


def _identity(told: dict[str, Any]) -> str:
    return json.dumps(told, sort_keys=True)


@audit.command()
def export(
    form: Annotated[str, typer.Option("--format", help="'jsonl' or 'csv'.")] = "jsonl",
    output: Annotated[
        Path | None,
        typer.Option(help="A new file, for you alone (0600). Without: printed."),
    ] = None,
    tenant: OfTenant = None,
    stream: OfStream = None,
    action: Action = None,
    entity_type: EntityType = None,
    entity_id: EntityId = None,
    actor: Actor = None,
    ip: Ip = None,
    outcome: Outcome = None,
    hours: Hours = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Write all that matches, oldest first: tenant by tenant, then the activity.

    For people and spreadsheets, in which no cell is taken for a formula. It proves nothing.
    """
    kind: Format = _one_of(form, "--format", ("jsonl", "csv"))
    wanted = _selection(action, entity_type, entity_id, actor, ip, outcome, hours, since, until)
    wanted = replace(wanted, oldest_first=True)
    streams = _streams(stream)

    async def work(database: Database, out: TextIO) -> int:
        number = 0
        begun = header(OPERATORS_FIELDS, kind)
        found = everything(database, wanted, streams, Whose(tenant), system_clock())
        async for some in found:
            _write(out, begun + "".join(line(told, OPERATORS_FIELDS, kind) for told in some))
            begun = ""
            number += len(some)
        _write(out, begun, at_once=True)
        return number

    if output is None:
        on_tenants(lambda database: work(database, sys.stdout))
        return
    with _new_file(output) as out:
        try:
            number = on_tenants(lambda database: work(database, out))
            os.fsync(out.fileno())
        except BaseException:
            # Half an export must not pass for a whole one.
            output.unlink(missing_ok=True)
            raise
    typer.echo(f"{number} entries are in {output}.", err=True)


def _write(out: TextIO, text: str, *, at_once: bool = False) -> None:
    """Write what was found; a failure to do so is no failure of the database."""
    try:
        out.write(text)
        if at_once:
            out.flush()
    except BrokenPipeError:
        # Whoever read has seen enough, and what is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        raise StartError(f"The entries cannot be written ({error.strerror})") from None


def _new_file(path: Path) -> TextIO:
    """A file that was not there before, for its owner alone. Raises SettingsError."""
    try:
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SettingsError(
            f"--output: {path} exists already and is left as it is: name a new file"
        ) from None
    except OSError as error:
        raise SettingsError(f"--output: {path} cannot be made ({error.strerror})") from None
    return os.fdopen(made, "w", encoding="utf-8", newline="")
