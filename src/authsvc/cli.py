"""The command ``authsvc``: serving, migrating, and looking after tenants.

What only some commands need is imported by them, so that help and a refused setting do not wait
for a web framework.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Sequence
from typing import Annotated, Any

import structlog
import typer

from authsvc import __version__
from authsvc.commands import audit_proof, production
from authsvc.commands.access_review import access_review
from authsvc.commands.audit import audit
from authsvc.commands.encryption import encryption, reseal, rewrap
from authsvc.commands.incident import incident
from authsvc.commands.keys import keys
from authsvc.commands.report import report
from authsvc.commands.running import Json, warn, with_database
from authsvc.commands.tenants import tenants
from authsvc.commands.verify import verify
from authsvc.credentials import new_client_key
from authsvc.database import Database
from authsvc.database_refusals import refusals
from authsvc.errors import AuthsvcError, StartError, Unavailable
from authsvc.logs import configure_logs
from authsvc.settings import Settings, SqliteFile, load_settings
from authsvc.sqlite_file import ServingLock

cli = typer.Typer(
    help="authsvc answers: may user X do Y?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.add_typer(tenants, name="tenants")
cli.add_typer(keys, name="keys")
cli.add_typer(audit, name="audit")
cli.add_typer(encryption, name="encryption")
keys.command()(rewrap)
keys.command()(reseal)
production.add_to(cli)
audit_proof.add_to(audit)
cli.command()(verify)
cli.command()(report)
cli.command()(access_review)
cli.add_typer(incident, name="incident")

UNAVAILABLE = 69
"""Exit status when the database cannot be reached (sysexits.h, EX_UNAVAILABLE)."""
_BACKLOG = 2048


def main() -> None:
    """Run the command; every expected failure is one sentence and its own exit status."""
    # Whatever is written, is written for its owner alone.
    os.umask(0o077)
    try:
        cli()
    except AuthsvcError as error:
        typer.echo(f"authsvc: {error.message}", err=True)
        status = getattr(error, "exit_code", UNAVAILABLE if isinstance(error, Unavailable) else 1)
        raise SystemExit(status) from None


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"authsvc {__version__}")
        raise typer.Exit


@cli.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Settings come from AUTH_* variables and .env; see .env.example."""


async def _prepare(settings: Settings) -> Sequence[str]:
    from authsvc.app import prepare

    with refusals():
        return await prepare(settings)


@cli.command()
def serve() -> None:
    """Serve HTTP until stopped (Ctrl-C or SIGTERM, which lets running requests finish)."""
    settings = load_settings()
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    from authsvc.app import create_app

    configure_logs(debug=settings.debug_mode)
    if places := settings.provenance.origins:
        origins = {f"AUTH_{name.upper()}": origin for name, origin in places.items()}
        structlog.get_logger("authsvc").info("secret_sources", **origins)
    target = settings.database
    # Before anything looks at the file, which another process may be serving.
    lock = ServingLock(target.path) if isinstance(target, SqliteFile) else None
    warn(asyncio.run(_prepare(settings)))
    listener = _listen(settings)
    typer.echo(_greeting(settings), err=True)
    config = uvicorn.Config(
        create_app(settings) if settings.workers == 1 else "authsvc.app:from_environment",
        factory=settings.workers > 1,
        workers=settings.workers,
        http=_http_protocol(),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=",".join(settings.trusted_proxies) or None,
        timeout_graceful_shutdown=20,
        timeout_keep_alive=65,
        # A worker that is busy starting on a loaded machine is not a dead one.
        timeout_worker_healthcheck=30,
        lifespan="on",
    )
    started = True
    try:
        if settings.workers > 1:
            Multiprocess(config, sockets=[listener]).run()
        else:
            server = uvicorn.Server(config)
            server.run(sockets=[listener])
            started = server.started
    except KeyboardInterrupt:
        pass
    finally:
        if lock is not None:
            lock.release()
    if not started:
        raise SystemExit(StartError.exit_code)


def _http_protocol() -> Any:
    """What reads the requests: bounds slow clients, where uvicorn's fast parser is installed."""
    try:
        from authsvc.api.patient_protocol import PatientProtocol
    except ImportError:
        return "auto"
    return PatientProtocol


def _listen(settings: Settings) -> socket.socket:
    """The listening socket, bound here so that a failure is a sentence and not a traceback."""
    host, port = settings.server_host, settings.server_port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Two sockets may be bound to one port until one of them listens.
        listener.listen(_BACKLOG)
    except OSError as error:
        raise StartError(
            f"Port {port} on {host} cannot be used ({error.strerror}): stop what uses it,"
            " or set AUTH_SERVER_PORT and AUTH_SERVER_HOST"
        ) from None
    listener.set_inheritable(True)
    return listener


def _greeting(settings: Settings) -> str:
    """The first conversation, ready to be pasted into another terminal."""
    host = settings.server_host if settings.server_host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
    where = f"http://[{host}]" if ":" in host else f"http://{host}"
    base = f"{where}:{settings.server_port}"
    database = settings.database
    label = database.path if isinstance(database, SqliteFile) else "PostgreSQL"
    lines = [
        "",
        f"  authsvc {__version__} serves {base}   (database: {label})",
        f"  Documentation to click through: {base}/docs",
        "",
    ]
    if not settings.registration_open:
        return "\n".join(
            [*lines, "  Make a tenant and its key with: authsvc tenants create NAME", ""]
        )
    return "\n".join(
        [
            *lines,
            "  May alice deploy? Paste this into another terminal:",
            "",
            f"    KEY={new_client_key()}   # a fresh client key: the first write makes its tenant",
            f"    API={base}/api",
            '    ask() { curl -sS -H "Authorization: Bearer $KEY" -X "$1" "$API/$2"; echo; }',
            "    ask POST role/admin",
            "    ask POST permission/admin/deploy",
            "    ask POST membership/alice/admin",
            "    ask GET  has_permission/alice/deploy",
            "",
        ]
    )


@cli.command()
def migrate(
    grant_to: Annotated[
        str | None,
        typer.Option(help="PostgreSQL role to give the run-time rights to, now and for later."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring the database's schema to the one this version needs. Safe to repeat."""
    settings = load_settings()
    from authsvc import migrations

    async def work(database: Database) -> tuple[str | None, str, str]:
        before, after = await migrations.migrate(database)
        if grant_to is not None:
            await migrations.grant_to(database, grant_to)
        return before, after, database.label

    before, after, label = with_database(work, settings, made=True)
    if as_json:
        typer.echo(json.dumps({"before": before, "after": after, "granted_to": grant_to}))
        return
    moved = "is already at" if before == after else "is now at"
    typer.echo(f"The {label} {moved} schema {after}.")
    if grant_to is not None:
        typer.echo(f"Role {grant_to} may use its tables, also those of later versions.")


if __name__ == "__main__":
    main()
