"""``authsvc tenants``: make, show, disable, enable and erase tenants."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from authsvc.clock import system_clock
from authsvc.commands.running import Json, on_tenants, require_name, table
from authsvc.database import Database
from authsvc.errors import SettingsError
from authsvc.services import operator
from authsvc.services import tenants as tenant_service

tenants = typer.Typer(help="The client applications that ask.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The tenant's name.")]


@tenants.command("create")
def create(
    name: Annotated[str, typer.Argument(help="1 to 64 of A-Z a-z 0-9 _ - . :")],
    as_json: Json = False,
) -> None:
    """Make a tenant and print its client key, once."""
    require_name(name)

    async def work(database: Database) -> tenant_service.NewTenant:
        return await database.write(
            name,
            lambda tx: tenant_service.create_tenant(
                tx, name, system_clock(), actor="command", label="first key"
            ),
        )

    made = on_tenants(work)
    if as_json:
        shown = {"tenant": str(made.id), "name": name, "key_id": made.key_id, "key": made.key}
        typer.echo(json.dumps(shown))
        return
    typer.echo(f"Tenant '{name}' is made. Its client key, shown this once:\n\n    {made.key}\n")
    typer.echo("Send it as 'Authorization: Bearer <client key>'; keep it out of your sources.")


@tenants.command("list")
def list_(as_json: Json = False) -> None:
    """Show all tenants with their revisions."""

    async def work(database: Database) -> list[dict[str, Any]]:
        async with database.read() as tx:
            found = await tenant_service.list_tenants(tx)
        return [
            {
                "tenant": str(tenant.id),
                "name": tenant.name,
                "created_at": tenant.created_at.isoformat(),
                "revision": revision,
                "disabled": tenant.disabled_at is not None,
            }
            for tenant, revision in found
        ]

    found = on_tenants(work)
    if as_json:
        typer.echo(json.dumps(found))
    elif not found:
        typer.echo("No tenants yet: authsvc tenants create NAME")
    else:
        typer.echo(
            table(
                ("NAME", "REVISION", "MADE", "STATE"),
                [
                    (
                        row["name"],
                        str(row["revision"]),
                        f"{row['created_at'][:19]}Z",
                        "disabled" if row["disabled"] else "enabled",
                    )
                    for row in found
                ],
            )
        )


def _set_disabled(name: str, *, disabled: bool, as_json: bool) -> None:
    async def work(database: Database) -> bool:
        return await database.write(
            name,
            lambda tx: operator.set_disabled(tx, name, system_clock, disabled=disabled),
        )

    changed = on_tenants(work)
    if as_json:
        typer.echo(json.dumps({"name": name, "disabled": disabled, "changed": changed}))
        return
    state = "disabled" if disabled else "enabled"
    typer.echo(f"Tenant '{name}' is {state}{'' if changed else ', as it was'}.")


@tenants.command()
def disable(name: Name, as_json: Json = False) -> None:
    """Refuse every request of a tenant from now on. Nothing of it is lost."""
    _set_disabled(name, disabled=True, as_json=as_json)


@tenants.command()
def enable(name: Name, as_json: Json = False) -> None:
    """Let a disabled tenant go on."""
    _set_disabled(name, disabled=False, as_json=as_json)


@tenants.command()
def erase(
    name: Name,
    yes: Annotated[str, typer.Option(help="The name once more: what is erased is gone.")] = "",
    as_json: Json = False,
) -> None:
    """Erase a tenant with its keys, its policy and its audit trail. There is no way back.

    It is disabled first. If the command is interrupted, it stays so: run it again.
    """
    if yes != name:
        raise SettingsError(f"Say it twice: authsvc tenants erase {name} --yes {name}")

    async def work(database: Database) -> int:
        return await operator.erase_tenant(database, name, system_clock)

    rows = on_tenants(work)
    if as_json:
        typer.echo(json.dumps({"name": name, "rows": rows}))
    else:
        typer.echo(f"Tenant '{name}' is erased: {rows} rows.")
