"""``authsvc encryption`` and ``authsvc keys rewrap|reseal``: names at rest, and what opens them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from authsvc.clock import system_clock
from authsvc.commands.one_at_work import one_at_work
from authsvc.commands.running import Json, on_tenants, table
from authsvc.database import Database
from authsvc.errors import Busy
from authsvc.services import encryption as service
from authsvc.services.encryption import Aim, Candidate, Rewrapped, Status, short
from authsvc.settings import Settings, load_settings

encryption = typer.Typer(help="Encryption of names at rest.", no_args_is_help=True)

LARGE = 20_000
"""Rows of a tenant beyond which its writes are refused for a while; those are asked about first."""
_ROWS_A_SECOND = 10_000
_ATTEMPTS = 30
_PAUSE = 0.2
_EVERY_SECONDS = 1.0

_TenantName = Annotated[str | None, typer.Option("--tenant", help="Only this tenant.")]
_Yes = Annotated[bool, typer.Option("--yes", help="Do not ask about large tenants.")]
_DONE = {Aim.ENABLE: "encrypted", Aim.DISABLE: "decrypted", Aim.RESEAL: "under a new data key"}


@encryption.command()
def enable(tenant: _TenantName = None, yes: _Yes = False, as_json: Json = False) -> None:
    """Encrypt the names of tenants that are stored as they are, while they are served.

    Each tenant in one transaction: checks go on, its writes wait. Interrupted, it can be repeated.
    Events written before stay as they are.
    """
    _change(Aim.ENABLE, "authsvc encryption enable", tenant, yes=yes, as_json=as_json)


@encryption.command()
def disable(tenant: _TenantName = None, yes: _Yes = False, as_json: Json = False) -> None:
    """Store names as they are again, while they are served. Set AUTH_ENABLE_ENCRYPTION=false too.

    Events stay encrypted, so the keys are needed as long as they are.
    """
    _change(Aim.DISABLE, "authsvc encryption disable", tenant, yes=yes, as_json=as_json)


def reseal(
    tenant: Annotated[str, typer.Option("--tenant", help="The tenant's name.")],
    yes: _Yes = False,
    as_json: Json = False,
) -> None:
    """Give a tenant a new data key, for when the one it has may have leaked.

    All its rows are rewritten in one transaction: checks go on, its writes wait. Its events stay
    under the key they were written with.
    """
    _change(Aim.RESEAL, "authsvc keys reseal", tenant, yes=yes, as_json=as_json)


def _change(aim: Aim, command: str, name: str | None, *, yes: bool, as_json: bool) -> None:
    settings = load_settings()

    async def work(database: Database) -> int:
        if aim is not Aim.DISABLE:
            service.require_key(database)
        async with one_at_work(settings, command):
            async with database.read() as tx:
                found = await service.candidates(tx, aim, name)
            if not yes:
                _ask(found, settings)
            return await _each(database, aim, found)

    count = on_tenants(work)
    if as_json:
        typer.echo(json.dumps({"tenants": count}))
    elif count:
        typer.echo(f"The names of {_counted(count, 'tenant')} are {_DONE[aim]}.")
    else:
        typer.echo("There is nothing to do: see 'authsvc encryption status'.")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _ask(found: Sequence[Candidate], settings: Settings) -> None:
    """Have a person agree to the time in which large tenants take no writes."""
    large = [one for one in found if one.rows > LARGE]
    if not large:
        return
    whose = "of every tenant" if settings.gate is None else "of that tenant"
    typer.echo(f"While one of these is at work, writes {whose} answer 503; checks go on:", err=True)
    for one in large:
        seconds = max(1, round(one.rows / _ROWS_A_SECOND))
        typer.echo(f"  {one.tenant.name}: {one.rows} rows, about {seconds} s", err=True)
    typer.confirm("Go on?", abort=True, err=True)


async def _each(database: Database, aim: Aim, found: Sequence[Candidate]) -> int:
    rows, done, count = sum(one.rows for one in found), 0, 0
    told = time.monotonic()
    for number, one in enumerate(found, 1):
        count += await _patiently(database, aim, one)
        done += one.rows
        if time.monotonic() - told > _EVERY_SECONDS:
            told = time.monotonic()
            typer.echo(
                f"authsvc: {number} of {_counted(len(found), 'tenant')}, {done} of {rows} rows",
                err=True,
            )
    return count


async def _patiently(database: Database, aim: Aim, one: Candidate) -> bool:
    """One tenant; where its own writers are quicker, again."""
    for attempt in range(_ATTEMPTS):
        try:
            return await database.write(
                one.tenant.id,
                lambda tx: service.change_tenant(tx, one.tenant, aim, system_clock),
                idle_seconds=service.IDLE_SECONDS,
            )
        except Busy:
            if attempt == _ATTEMPTS - 1:
                raise
            await asyncio.sleep(_PAUSE)
    return False


def rewrap(as_json: Json = False) -> None:
    """Put every data key under AUTH_ENCRYPTION_KEY, and say which old keys may go.

    No row of policy is touched: one statement for each tenant. First have every process of the
    service started with the new key in AUTH_ENCRYPTION_OLD_KEYS, then with it as
    AUTH_ENCRYPTION_KEY and the old one in AUTH_ENCRYPTION_OLD_KEYS. Exit 1 if a data key is left.
    """
    settings = load_settings()
    told = time.monotonic()

    def progress(looked_at: int) -> None:
        nonlocal told
        if time.monotonic() - told > _EVERY_SECONDS:
            told = time.monotonic()
            typer.echo(f"authsvc: {_counted(looked_at, 'data key')} looked at", err=True)

    async def work(database: Database) -> Rewrapped:
        service.require_key(database)
        async with one_at_work(settings, "authsvc keys rewrap"):
            return await service.rewrap(database, system_clock, progress)

    done = on_tenants(work)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
    else:
        typer.echo(
            f"{_counted(done.total, 'data key')}, {done.changed} rewrapped,"
            f" {done.left} left under another key."
        )
        for one in done.unreadable:
            typer.echo(f"Does not open with any key of the ring: {one}")
        if done.free:
            named = ", ".join(short(one) for one in done.free)
            typer.echo(
                f"Nothing is under {named} any more: it may leave AUTH_ENCRYPTION_OLD_KEYS, once"
                " every process is started with the new AUTH_ENCRYPTION_KEY. Keep it as long as"
                " backups from before."
            )
    if done.left:
        raise typer.Exit(1)


@encryption.command()
def status(as_json: Json = False) -> None:
    """Show how names are stored, column by column, and what the data keys are under.

    Exit 1 if a value is in another form than its tenant's others.
    """
    settings = load_settings()
    found = on_tenants(service.status)
    active = settings.master_keys.key
    if as_json:
        typer.echo(json.dumps(_shown(found, settings)))
    else:
        _print(found, None if active is None else active.id, on=settings.enable_encryption)
    if found.astray:
        raise typer.Exit(1)


def _shown(found: Status, settings: Settings) -> dict[str, Any]:
    active = settings.master_keys.key
    return {
        "enabled": settings.enable_encryption,
        "tenants": {"encrypted": found.encrypted_tenants, "plain": found.plain_tenants},
        "columns": {
            one.column: {"encrypted": one.encrypted, "plain": one.plain, "astray": one.astray}
            for one in found.columns
        },
        "events": {
            one.column: {"encrypted": one.encrypted, "plain": one.plain} for one in found.events
        },
        "master_keys": [
            {
                "check_value": name,
                "data_keys": count,
                "wraps": active is not None and active.id == name,
                "present": name in settings.master_keys.ids,
            }
            for name, count in found.master_keys.items()
        ],
    }


def _print(found: Status, active: str | None, *, on: bool) -> None:
    new = "encrypted" if on else "stored as they are"
    typer.echo(
        f"{_counted(found.encrypted_tenants, 'tenant')} encrypted, {found.plain_tenants} not;"
        f" names of new tenants are {new}.\n"
    )
    rows = [
        (one.column, str(one.encrypted), str(one.plain), str(one.astray) if one.astray else "-")
        for one in (*found.columns, *found.events)
    ]
    typer.echo(table(("COLUMN", "ENCRYPTED", "PLAIN", "ASTRAY"), rows))
    if found.master_keys:
        keys = [
            (short(name), str(count), "wraps" if name == active else "old")
            for name, count in found.master_keys.items()
        ]
        typer.echo("\n" + table(("MASTER KEY", "DATA KEYS", "STATE"), keys))
    if found.plain_tenants and on:
        typer.echo("\nEncrypt the rest with: authsvc encryption enable")
    if found.astray:
        typer.echo(
            "\nValues are in another form than their tenant's: they were changed past the service."
            " Run 'authsvc verify'"
        )
