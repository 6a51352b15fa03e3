"""How a command runs against the configured database, beside a server that may be running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Annotated, Any, TypeVar

import typer

from authsvc.database import Database
from authsvc.database_refusals import refusals
from authsvc.errors import InputError, SettingsError, StartError
from authsvc.logs import configure_logs
from authsvc.sanitizer import check_role
from authsvc.settings import Settings, SqliteFile, load_settings
from authsvc.sqlite_file import prepare_file

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def with_database(
    work: Callable[[Database], Coroutine[Any, Any, T]], settings: Settings, *, made: bool = False
) -> T:
    """Run a command's work against the configured database, beside a server that may be running.

    ``made``: make a SQLite file that is not there yet.
    """
    from authsvc.connections import open_database

    configure_logs(debug=settings.debug_mode)
    target = settings.database
    if isinstance(target, SqliteFile):
        if not made and not target.path.exists():
            raise StartError(f"There is no database at {target.path}: run 'authsvc serve' first")
        production = settings.environment == "production"
        warn(prepare_file(target.path, refuse_open_modes=production))

    async def run() -> T:
        database = open_database(settings, beside_server=True)
        try:
            with refusals():
                return await work(database)
        finally:
            await database.dispose()

    warn(settings.warnings)
    return asyncio.run(run())


def on_tenants(work: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    """As ``with_database``, with the environment's settings and a schema made sure of."""
    settings = load_settings()
    from authsvc import migrations
    from authsvc.services.encryption import require_master_keys

    async def checked(database: Database) -> T:
        await migrations.require_head(database)
        await require_master_keys(database)
        return await work(database)

    return with_database(checked, settings)


def warn(warnings: Iterable[str]) -> None:
    """Say what is doubtful, apart from what is printed."""
    for warning in warnings:
        typer.echo(f"authsvc: warning: {warning}", err=True)


def require_name(name: str) -> None:
    """Raise SettingsError for what is no tenant's name."""
    try:
        check_role(name, "NAME")
    except InputError:
        raise SettingsError(f"{name!r} is not a tenant name: use A-Z a-z 0-9 _ - . :") from None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what stands in them."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )
