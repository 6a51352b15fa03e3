"""``authsvc incident``: when a credential was in the wrong hands. Everything is shown first."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from authsvc.clock import system_clock
from authsvc.commands.running import Json, on_tenants, table
from authsvc.database import Database
from authsvc.errors import SettingsError
from authsvc.records import Change
from authsvc.sanitizer import check_text
from authsvc.services import incidents
from authsvc.services.incidents import Lockdown, Plan, Window
from authsvc.services.tenants import list_tenants

incident = typer.Typer(
    help="Look into a breach, lock it down, undo it. Shows first, acts with --yes.",
    no_args_is_help=True,
)

_Tenant = Annotated[str, typer.Option("--tenant", help="The tenant's name.")]
_Actor = Annotated[
    str, typer.Option("--actor", help="The client key's id; what keys it made did counts too.")
]
_Since = Annotated[str, typer.Option("--since", help="From when: 2026-03-01T12:00Z.")]
_Until = Annotated[str | None, typer.Option("--until", help="Until when; now if not given.")]
_Archive = Annotated[
    Path | None, typer.Option("--archive", help="The folder of the segments that were pruned.")
]
_Yes = Annotated[bool, typer.Option("--yes", help="Do it; without it, only show it.")]
_SHOWN = 40


def _instant(text: str, option: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{option}: {text!r} is no time; write 2026-03-01T12:00Z") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _window(actor: str, since: str, until: str | None) -> Window:
    end = None if until is None else _instant(until, "--until")
    return Window(actor, _instant(since, "--since"), end)


def _words(change: Change) -> str:
    where = f" in {change.scope}" if change.scope else ""
    return {
        "remove_role": f"remove the role '{change.role}'",
        "add_role": f"make the role '{change.role}' as it was",
        "grant": f"grant {change.permission} to '{change.role}'",
        "revoke": f"revoke {change.permission} from '{change.role}'",
        "add_parent": f"let '{change.role}' inherit from '{change.parent}'",
        "remove_parent": f"let '{change.role}' inherit no more from '{change.parent}'",
        "add_member": f"put '{change.user}' into '{change.role}'{where} as before",
        "remove_member": f"take '{change.user}' out of '{change.role}'{where}",
    }[change.op]


def _shown(plan: Plan) -> dict[str, Any]:
    return {
        "actors": plan.actors,
        "hostile_events": len(plan.hostile),
        "first_seq": plan.hostile[0] if plan.hostile else None,
        "last_seq": plan.hostile[-1] if plan.hostile else None,
        "changes": [_words(change) for change in plan.changes],
        "keys_ended": plan.keys,
        "api_keys_ended": plan.api_keys,
        "strict_users": plan.strict_users,
        "not_replayed": plan.skipped,
        "not_brought_back": plan.lost,
    }


def _print(plan: Plan) -> None:
    if not plan.hostile:
        typer.echo("No event of that key in that time.")
        return
    typer.echo(
        f"{len(plan.hostile)} hostile events ({plan.hostile[0]} to {plan.hostile[-1]}) by"
        f" {', '.join(plan.actors)}; {plan.size} changes undo them:\n"
    )
    sentences = [_words(change) for change in plan.changes]
    sentences += [f"end the client key {key}" for key in plan.keys]
    sentences += [f"end the API key {key}" for key in plan.api_keys]
    if plan.strict_users is not None:
        sentences.append(f"set strict_users to {plan.strict_users}")
    for sentence in sentences[:_SHOWN]:
        typer.echo(f"  {sentence}")
    if len(sentences) > _SHOWN:
        typer.echo(f"  ... and {len(sentences) - _SHOWN} more: --json shows them all")
    for title, lines in (
        ("Good changes that rested on hostile ones, and go with them:", plan.skipped),
        ("Not brought back:", plan.lost),
    ):
        if lines:
            typer.echo(f"\n{title}")
            for line in lines[:_SHOWN]:
                typer.echo(f"  {line}")


@incident.command()
def revert(
    tenant: _Tenant,
    actor: _Actor,
    since: _Since,
    until: _Until = None,
    archive: _Archive = None,
    yes: _Yes = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show it, as without --yes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Undo what a client key did: the state becomes what it would be without it.

    Later good changes stay. Keys that it made are ended.
    """
    window = _window(actor, since, until)

    async def work(database: Database) -> tuple[Plan, int]:
        async with database.read() as tx:
            seen = await incidents.plan(tx, tenant, window, archive)
        if not yes or dry_run or not seen.size:
            return seen, 0
        done = await database.write(
            seen.tenant_id,
            lambda tx: incidents.revert(tx, tenant, window, seen, system_clock, archive),
            # The whole trail is replayed under the tenant's lock.
            idle_seconds=60,
        )
        return seen, done

    seen, done = on_tenants(work)
    if as_json:
        typer.echo(json.dumps(_shown(seen) | {"events_written": done}))
        return
    _print(seen)
    if done:
        typer.echo(f"\nDone: {done} events say so in the audit trail.")
    elif seen.size:
        typer.echo("\nNothing was changed. Add --yes to do it.")


@incident.command()
def affected(
    tenant: _Tenant,
    actor: _Actor,
    since: _Since,
    until: _Until = None,
    archive: _Archive = None,
    as_json: Json = False,
) -> None:
    """Show who can do other things than without what a client key did: whom to tell."""
    window = _window(actor, since, until)

    async def work(database: Database) -> list[incidents.Affected]:
        async with database.read() as tx:
            seen = await incidents.plan(tx, tenant, window, archive)
        return incidents.affected(seen, system_clock())

    found = on_tenants(work)
    if as_json:
        shown = [
            {"user": one.user, "gained": _pairs(one.gained), "lost": _pairs(one.lost)}
            for one in found
        ]
        typer.echo(json.dumps(shown))
    elif not found:
        typer.echo("Nobody can do anything else than without it.")
    else:
        rows = [(one.user, _listed(one.gained), _listed(one.lost)) for one in found]
        typer.echo(table(("USER", "CAN, AND WOULD NOT", "CANNOT, AND WOULD"), rows))


def _pairs(pairs: list[tuple[str, str]]) -> list[dict[str, str | None]]:
    return [{"permission": permission, "scope": scope or None} for permission, scope in pairs]


def _listed(pairs: list[tuple[str, str]]) -> str:
    words = [permission + (f" in {scope}" if scope else "") for permission, scope in pairs[:5]]
    if len(pairs) > len(words):
        words.append(f"{len(pairs) - len(words)} more")
    return ", ".join(words) or "-"


@incident.command()
def lockdown(
    reason: Annotated[str, typer.Option("--reason", help="What the audit trail shall say.")],
    tenant: Annotated[str | None, typer.Option("--tenant", help="The tenant's name.")] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Every tenant.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="End every client key as well.")] = False,
    disable: Annotated[
        bool, typer.Option("--disable", help="Refuse every request of the tenant as well.")
    ] = False,
    yes: _Yes = False,
    as_json: Json = False,
) -> None:
    """End every access and refresh token at once, on every process, without a restart."""
    if (tenant is None) != everybody:
        raise SettingsError("Name one tenant with --tenant, or say --all")
    check_text(reason, "--reason")

    async def work(database: Database) -> list[Lockdown]:
        async with database.read() as tx:
            names = [tenant] if tenant is not None else [t.name for t, _ in await list_tenants(tx)]
            shown = [await incidents.preview_lockdown(tx, name, system_clock()) for name in names]
        if not yes:
            return shown
        return [
            await database.write(
                name,
                lambda tx, name=name: incidents.lock_down(  # type: ignore[misc]
                    tx, name, reason, system_clock, keys=keys, disable=disable
                ),
            )
            for name in names
        ]

    found = on_tenants(work)
    if as_json:
        shown = [{"name": o.name, "families": o.families, "keys": o.keys} for o in found]
        typer.echo(json.dumps({"done": yes, "tenants": shown}))
        return
    rows = [(one.name, str(one.families), str(one.keys) if keys else "kept") for one in found]
    typer.echo(table(("TENANT", "TOKEN FAMILIES", "CLIENT KEYS"), rows))
    if not yes:
        typer.echo("\nNothing was changed. Add --yes to end all of these.")
        return
    typer.echo("\nEnded: every token given out before now is refused from the next request on.")
    if keys:
        typer.echo("Give out new ones: authsvc keys issue --tenant NAME")
