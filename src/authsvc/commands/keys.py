"""``authsvc keys``: a tenant's client keys, in the hands of the operator."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer

from authsvc.clock import system_clock
from authsvc.commands.running import Json, on_tenants, table, warn
from authsvc.database import Database
from authsvc.errors import SettingsError
from authsvc.records import SCOPES, ClientKey
from authsvc.sanitizer import check_text
from authsvc.services import operator

keys = typer.Typer(
    help="The client keys of a tenant, and the keys that its names are encrypted under.",
    no_args_is_help=True,
)

TenantName = Annotated[str, typer.Option("--tenant", help="The tenant's name.")]
KeyName = Annotated[str, typer.Argument(metavar="KEY_ID", help="As 'authsvc keys list' shows it.")]


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _shown(key: ClientKey) -> dict[str, Any]:
    return {
        "key_id": key.id,
        "label": key.label,
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "created_at": _moment(key.created_at),
        "expires_at": _moment(key.expires_at),
        "last_used_at": _moment(key.last_used_at),
        "revoked_at": _moment(key.revoked_at),
    }


def _print_key(issued: operator.Issued, tenant: str, *, as_json: bool) -> None:
    """The one time a key is shown."""
    if as_json:
        shown = _shown(issued.key) | {"tenant": tenant, "key": issued.secret}
        if issued.old_end is not None:
            shown["old_key_expires_at"] = _moment(issued.old_end)
        typer.echo(json.dumps(shown))
        return
    typer.echo(
        f"Key {issued.key.id} of tenant '{tenant}', shown this once:\n\n    {issued.secret}\n"
    )
    if issued.old_end is not None:
        typer.echo(f"The old key ends at {_minute(issued.old_end)}.")


def _minute(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment.isoformat()[:16]}Z"


@keys.command()
def issue(
    tenant: TenantName,
    label: Annotated[str, typer.Option(help="What the key is for.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(SCOPES)}; again for more. Without: all of them."),
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="End after so many days.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a client key and print it, once."""
    scopes = tuple(scope or SCOPES)
    for one in scopes:
        if one not in SCOPES:
            raise SettingsError(f"--scope: {one!r} is none of {', '.join(SCOPES)}")
    check_text(label, "--label")
    lifetime = None if days is None else timedelta(days=days)

    async def work(database: Database) -> operator.Issued:
        return await database.write(
            tenant,
            lambda tx: operator.issue_key(tx, tenant, label, scopes, lifetime, system_clock),
        )

    _print_key(on_tenants(work), tenant, as_json=as_json)


@keys.command("list")
def list_(tenant: TenantName, as_json: Json = False) -> None:
    """Show the client keys of a tenant, ended ones too; never the keys themselves."""

    async def work(database: Database) -> list[ClientKey]:
        async with database.read() as tx:
            return await operator.list_keys(tx, tenant)

    found = on_tenants(work)
    if as_json:
        typer.echo(json.dumps([_shown(key) for key in found]))
        return
    now = system_clock()
    rows = [
        (
            key.id,
            key.label or "-",
            ",".join(scope for scope in SCOPES if scope in key.scopes),
            _minute(key.created_at),
            _minute(key.expires_at),
            _minute(key.last_used_at),
            _state(key, now),
        )
        for key in found
    ]
    typer.echo(table(("KEY_ID", "LABEL", "SCOPES", "MADE", "ENDS", "LAST USED", "STATE"), rows))


def _state(key: ClientKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"


@keys.command()
def revoke(
    key_id: KeyName,
    tenant: TenantName,
    even_last: Annotated[
        bool,
        typer.Option(
            "--even-last",
            help="Also the last key that can administer the tenant, which then"
            " only this command can help.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """End a client key at once, on every process."""

    async def work(database: Database) -> bool:
        return await database.write(
            tenant,
            lambda tx: operator.revoke(tx, tenant, key_id, system_clock, even_last=even_last),
        )

    if even_last:
        warn([f"if {key_id} was the last, nobody but 'authsvc keys issue' gives '{tenant}' a key"])
    revoked = on_tenants(work)
    if as_json:
        typer.echo(json.dumps({"key_id": key_id, "tenant": tenant, "revoked": revoked}))
    else:
        typer.echo(f"Key {key_id} is revoked{'' if revoked else ', as it was'}.")


@keys.command()
def rotate(
    key_id: KeyName,
    tenant: TenantName,
    overlap: Annotated[
        int, typer.Option(min=0, max=2_592_000, help="Seconds that the old key goes on.")
    ] = 86_400,
    as_json: Json = False,
) -> None:
    """Replace a client key by a fresh one with its label and scopes, and print that, once."""

    async def work(database: Database) -> operator.Issued:
        return await database.write(
            tenant,
            lambda tx: operator.rotate(
                tx, tenant, key_id, timedelta(seconds=overlap), system_clock
            ),
        )

    _print_key(on_tenants(work), tenant, as_json=as_json)
