"""``authsvc access-review``: what nobody needs, and a list that a person signs off."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from authsvc.audit_lines import csv_line
from authsvc.audit_words import one_line
from authsvc.clock import system_clock
from authsvc.commands.running import on_tenants, table
from authsvc.database import Database
from authsvc.errors import SettingsError
from authsvc.sanitizer import check_text
from authsvc.services import access_review as service
from authsvc.services.access_review import SECTIONS, Item, Review

FIELDS = ("tenant", "made_at", "section", "subject", "detail")
_FORMATS = ("text", "csv", "json")
_SHOWN = 20


def access_review(
    tenant: Annotated[str, typer.Option("--tenant", help="The tenant's name.")],
    unused_days: Annotated[
        int, typer.Option("--unused-days", min=1, help="Unused for so long is unused.")
    ] = 90,
    many_roles: Annotated[
        int, typer.Option("--many-roles", min=1, help="More roles than this are many.")
    ] = 5,
    form: Annotated[str, typer.Option("--format", help="text, csv or json.")] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", help="A file that is not there yet.")
    ] = None,
    sign_off: Annotated[
        str | None,
        typer.Option("--sign-off", metavar="REVIEWER", help="Record that --list was reviewed."),
    ] = None,
    reviewed: Annotated[
        Path | None, typer.Option("--list", help="The file that was reviewed: csv or json.")
    ] = None,
) -> None:
    """List grants nobody uses, roles nobody holds, dormant keys and all memberships.

    With --sign-off the audit trail keeps who reviewed which list, by its digest.
    """
    if form not in _FORMATS:
        raise SettingsError(f"--format: {form!r} is none of {', '.join(_FORMATS)}")
    if (sign_off is None) != (reviewed is None):
        raise SettingsError("--sign-off and --list belong together: who reviewed which file")
    signed = None if reviewed is None else _read(reviewed, tenant)
    if sign_off is not None:
        check_text(sign_off, "--sign-off")

    async def look(database: Database) -> Review:
        async with database.read() as tx:
            return await service.review(
                tx, tenant, system_clock(), unused_days=unused_days, many_roles=many_roles
            )

    if signed is None or sign_off is None:
        _put(_written(on_tenants(look), form), output)
        return
    digest, made_at, items = signed
    reviewer = sign_off

    async def sign(database: Database) -> tuple[Review, int]:
        now = await look(database)
        seq = await database.write(
            tenant,
            lambda tx: service.sign_off(
                tx, tenant, reviewer, digest, made_at, len(items), system_clock
            ),
        )
        return now, seq

    now, seq = on_tenants(sign)
    typer.echo(f"Event {seq}: {reviewer} reviewed the list with the SHA-256 {digest}.")
    for word, some in (
        ("new", sorted(set(now.items) - items)),
        ("gone", sorted(items - set(now.items))),
    ):
        for item in some[:_SHOWN]:
            typer.echo(f"  {word} since: {item.section} {item.subject}: {item.detail}")
        if len(some) > _SHOWN:
            typer.echo(f"  {word} since: {len(some) - _SHOWN} more")


def _written(review: Review, form: str) -> str:
    made_at = review.made_at.isoformat()
    if form == "json":
        since = review.recorded_since
        shown = {
            "tenant": review.tenant,
            "made_at": made_at,
            "use_recorded_since": None if since is None else since.isoformat(),
            "items": [item._asdict() for item in review.items],
        }
        return json.dumps(shown, indent=1) + "\n"
    if form == "csv":
        lines = [csv_line(FIELDS)]
        lines += [csv_line((review.tenant, made_at, *item)) for item in review.items]
        return "".join(lines)
    return _for_people(review)


def _for_people(review: Review) -> str:
    parts = [f"Access of '{review.tenant}', {review.made_at.date().isoformat()}"]
    if review.recorded_since is None:
        parts.append("The use of grants is not on record yet: none can be told from unused ones.")
    else:
        parts.append(f"Use is on record since {review.recorded_since.date().isoformat()}.")
    for section, title in SECTIONS.items():
        items = review.of(section)
        parts.append(f"\n{title}: {len(items) or 'none'}")
        if items:
            rows = [(f"  {one_line(i.subject)}", one_line(i.detail)) for i in items[:_SHOWN]]
            parts.append(table(("", ""), rows).lstrip("\n"))
        if len(items) > _SHOWN:
            parts.append(f"  ... and {len(items) - _SHOWN} more: --format csv lists them all")
    parts.append(
        "\nTo sign off: --format csv --output FILE, read it, then --sign-off NAME --list FILE"
    )
    return "\n".join(parts) + "\n"


def _put(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
        return
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(output, flags, 0o600)
    except FileExistsError:
        raise SettingsError(f"--output: {output} is there already and was left as it is") from None
    except OSError as error:
        raise SettingsError(f"--output: {output} cannot be made ({error.strerror})") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode())
    typer.echo(f"{output} holds the list; only you can read it.")


def _read(path: Path, tenant: str) -> tuple[str, str, set[Item]]:
    """The digest, the time and the items of a list that was written earlier."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"--list: {path} cannot be read ({error.strerror})") from None
    try:
        rows = _rows(content.decode())
        made_at = str(rows[0]["made_at"])
        names = {str(row["tenant"]) for row in rows}
        items = {Item(str(row["section"]), str(row["subject"]), str(row["detail"])) for row in rows}
    except (ValueError, KeyError, IndexError, TypeError):
        raise SettingsError(f"--list: {path} is no list of this command, csv or json") from None
    if names != {tenant}:
        raise SettingsError(f"--list: {path} is the list of {', '.join(sorted(names))}")
    return hashlib.sha256(content).hexdigest(), made_at, items


def _rows(text: str) -> list[dict[str, Any]]:
    if text.lstrip().startswith("{"):
        found = json.loads(text)
        head = {"tenant": found["tenant"], "made_at": found["made_at"]}
        return [head | item for item in found["items"]]
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    # The apostrophe is for spreadsheets, not part of what is said.
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and csv_line([cell[1:]]).startswith("\"'") else cell
