"""``authsvc audit verify|checkpoint|bundle|prune|seal|verifier``: what proves the audit trail."""

from __future__ import annotations

import importlib.resources
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from authsvc.checkpoint_file import CheckpointFile
from authsvc.clock import system_clock
from authsvc.commands.running import Json, on_tenants, table
from authsvc.database import Database
from authsvc.errors import NotFound, SettingsError
from authsvc.services import audit_retention
from authsvc.services.audit_proof import Verdict, prove_all
from authsvc.services.checkpoints import make_checkpoint, stored_checkpoints
from authsvc.settings import Settings, load_settings

INTACT, TAMPERED, INCOMPLETE = 0, 1, 2
"""Exit status of what verifies."""

WORDS = {INTACT: "intact", TAMPERED: "tampered", INCOMPLETE: "incomplete"}

TenantOption = Annotated[str | None, typer.Option("--tenant", help="Only this tenant.")]
CheckpointsOption = Annotated[
    Path | None,
    typer.Option(help="A file of checkpoints; AUTH_CHECKPOINT_FILE if it is not given."),
]
PublicKeyOption = Annotated[
    Path | None,
    typer.Option(help="The public key of checkpoints; that of the settings if not given."),
]
_Kept = tuple[audit_retention.Segment, Path | None]
_Yes = Annotated[bool, typer.Option("--yes", help="Do it; without it, only show what would be.")]


def add_to(audit: typer.Typer) -> None:
    """Add these commands to the group ``audit``."""
    for command in (verify, checkpoint, bundle, prune, seal, verifier):
        audit.command()(command)


def verify(
    tenant: TenantOption = None,
    checkpoints: CheckpointsOption = None,
    public_key: PublicKeyOption = None,
    as_json: Json = False,
) -> None:
    """Walk every chain: its hashes, its seals, and what checkpoints say. Exit 0, 1 or 2.

    0: intact. 1: something is not what was written. 2: nothing contradicts, but something that
    proves it was not there. 'authsvc verify' also compares the tables with the trail.
    """
    settings = load_settings()
    key = public_key_of(public_key, settings)
    file = file_of(checkpoints, settings)

    async def work(database: Database) -> Verdict:
        async with database.read() as tx:
            return await prove_all(
                tx,
                settings.audit.keys,
                tenant=tenant,
                outside=() if file is None else CheckpointFile(file),
                public_key=key,
            )

    verdict = on_tenants(work)
    if tenant is not None and not verdict.proofs:
        raise NotFound("tenant_not_found", f"There is no tenant called '{tenant}'")
    status = TAMPERED if verdict.tampered else INCOMPLETE if verdict.incomplete else INTACT
    if as_json:
        typer.echo(json.dumps(shown_verdict(verdict, status)))
    else:
        show_verdict(verdict, outside=file is not None)
    raise SystemExit(status)


def file_of(checkpoints: Path | None, settings: Settings) -> Path | None:
    """The file of checkpoints that is asked for, or that of the settings. Raises SettingsError."""
    if checkpoints is not None and not checkpoints.exists():
        raise SettingsError(f"--checkpoints: there is no {checkpoints}")
    return checkpoints or settings.checkpoint_file


def public_key_of(path: Path | None, settings: Settings) -> Ed25519PublicKey | None:
    """The public key that is asked for, or that of the settings. Raises SettingsError."""
    if path is None:
        return None if settings.audit.signs is None else settings.audit.signs.public_key()
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds no key in PEM form"
        raise SettingsError(f"--public-key: {path} cannot be read ({reason})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"--public-key: {path} is no Ed25519 key")
    return key


def shown_verdict(verdict: Verdict, status: int) -> dict[str, Any]:
    """What was found, for machines."""
    return {
        "verdict": WORDS[status],
        "checkpoints": verdict.checkpoints,
        "problems": verdict.problems,
        "lacking": verdict.lacking,
        "tenants": [
            {
                "tenant": str(proof.tenant_id),
                "name": proof.name,
                "checked": proof.checked,
                "sealed": proof.sealed,
                "pruned": proof.pruned,
                "first_broken_seq": proof.first_broken,
                "problem": proof.problem,
                "lacking": list(proof.lacking),
            }
            for proof in verdict.proofs
        ],
    }


def show_verdict(verdict: Verdict, *, outside: bool) -> None:
    """What was found, for people. ``outside``: a file of checkpoints was at hand."""
    rows = [
        (
            proof.name,
            str(proof.checked),
            str(proof.sealed),
            str(proof.pruned or "-"),
            "TAMPERED" if proof.problem else "incomplete" if proof.lacking else "intact",
        )
        for proof in verdict.proofs
    ]
    typer.echo(table(("TENANT", "EVENTS", "SEALED", "PRUNED TO", "TRAIL"), rows))
    typer.echo("")
    for problem in verdict.problems:
        typer.echo(f"TAMPERED  {problem}")
    for proof in verdict.proofs:
        if proof.problem:
            typer.echo(f"TAMPERED  {proof.name}: {proof.problem}")
    lacking = [*verdict.lacking, *(s for proof in verdict.proofs for s in proof.lacking)]
    for sentence in dict.fromkeys(lacking):
        typer.echo(f"INCOMPLETE  {sentence}")
    if not verdict.tampered and not verdict.incomplete:
        typer.echo(f"The trails are intact, {verdict.checkpoints} checkpoints agree.")
    if not outside:
        typer.echo(
            "Without a file of checkpoints from outside the database a trail whose end was cut, or"
            " an older copy, looks intact: see --checkpoints."
        )


def _signing_key(settings: Settings) -> Ed25519PrivateKey:
    if settings.audit.signs is None:
        raise SettingsError(
            "AUTH_CHECKPOINT_PRIVATE_KEY: must be set; make one with: openssl genpkey -algorithm"
            " ed25519"
        )
    return settings.audit.signs


def checkpoint(
    public_key: Annotated[
        bool, typer.Option("--public-key", help="Only print the public key, for who verifies.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Sign the heads of all trails now, and add what is new to AUTH_CHECKPOINT_FILE."""
    settings = load_settings()
    key = _signing_key(settings)
    if public_key:
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        typer.echo(pem.decode(), nl=False)
        return
    path = settings.checkpoint_file

    async def work(database: Database) -> Any:
        send = settings.webhook_url is not None
        made = await make_checkpoint(database, key, system_clock, send=send, even_empty=True)
        if path is not None:
            async with database.read() as tx:
                stored = [one async for one in stored_checkpoints(tx)]
            try:
                CheckpointFile(path).add(stored)
            except OSError as error:
                raise SettingsError(
                    f"AUTH_CHECKPOINT_FILE: {path} cannot be written ({error.strerror})"
                ) from None
        return made

    made = on_tenants(work)
    if made is None:
        typer.echo("Another process is making a checkpoint right now.")
    elif as_json:
        typer.echo(made.line.decode())
    else:
        place = f", and stands in {path}" if path is not None else "; set AUTH_CHECKPOINT_FILE to"
        more = "" if path is not None else " keep them outside the database"
        typer.echo(f"Checkpoint {made.number} is signed{place}{more}.")


def bundle(
    tenant: Annotated[str, typer.Option("--tenant", help="The tenant's name.")],
    output: Annotated[Path, typer.Option("--output", help="A file that is not there yet.")],
) -> None:
    """Write a tenant's trail to a file that proves itself: 'authsvc audit verifier' verifies it."""
    settings = load_settings()
    key = settings.audit.signs

    async def work(database: Database) -> audit_retention.Segment:
        if key is not None:
            await make_checkpoint(database, key, system_clock)
        async with database.read() as tx:
            segment = await audit_retention.whole(tx, tenant)
        await audit_retention.write_bundle(database, segment, output, key, system_clock)
        return segment

    segment = on_tenants(work)
    typer.echo(f"{segment.events} events of '{tenant}' are in {output}.")
    if key is None:
        typer.echo("It is not signed: set AUTH_CHECKPOINT_PRIVATE_KEY to have it proven.")


def prune(
    archive: Annotated[Path, typer.Option("--archive", help="The folder that keeps segments.")],
    older_than: Annotated[
        int, typer.Option("--older-than", min=1, metavar="DAYS", help="Prune what is older.")
    ] = 365,
    tenant: TenantOption = None,
    yes: _Yes = False,
    as_json: Json = False,
) -> None:
    """Take old events out of the database, once they are kept in signed files. Shows it first.

    What is left still verifies, from an anchor on. Activity of that age is deleted. On PostgreSQL
    this takes the owner's rights.
    """
    settings = load_settings()
    if not archive.is_dir():
        raise SettingsError(f"--archive: there is no folder {archive}")
    instant = datetime.now(UTC) - timedelta(days=older_than)
    key = settings.audit.signs

    async def work(database: Database) -> tuple[list[_Kept], int]:
        async with database.read() as tx:
            found = await audit_retention.older_than(tx, instant, tenant)
        if not yes:
            return [(segment, None) for segment in found], 0
        kept: list[_Kept] = []
        for segment in found:
            path = await audit_retention.prune(database, segment, archive, key, system_clock)
            typer.echo(f"authsvc: '{segment.name}' is pruned to {segment.until.revision}", err=True)
            kept.append((segment, path))
        if key is not None and found:
            await make_checkpoint(database, key, system_clock, even_empty=True)
        gone = 0 if tenant is not None else await audit_retention.prune_activity(database, instant)
        return kept, gone

    kept, gone = on_tenants(work)
    if as_json:
        shown = [
            {
                "tenant": segment.name,
                "from": segment.after.revision + 1,
                "to": segment.until.revision,
                "file": None if path is None else str(path),
            }
            for segment, path in kept
        ]
        typer.echo(json.dumps({"pruned": yes, "segments": shown, "activity": gone}))
        return
    if kept:
        rows = [
            (
                segment.name,
                f"{segment.after.revision + 1} to {segment.until.revision}",
                segment.file_name,
            )
            for segment, _ in kept
        ]
        typer.echo(table(("TENANT", "EVENTS", "FILE"), rows))
    else:
        typer.echo(f"No event is older than {older_than} days.")
    if yes:
        typer.echo(f"\n{gone} entries of activity were deleted.")
    else:
        typer.echo("\nNothing was changed. Add --yes to keep these in files and take them out.")


def seal(as_json: Json = False) -> None:
    """After AUTH_AUDIT_KEY was set for the first time: let every trail end with a sealed event."""
    settings = load_settings()
    if settings.audit.keys.key is None:
        raise SettingsError("AUTH_AUDIT_KEY: must be set; make one with: openssl rand -base64 32")
    sealed = on_tenants(lambda database: audit_retention.seal_heads(database, system_clock))
    if as_json:
        typer.echo(json.dumps({"sealed": sealed}))
    else:
        typer.echo(f"{len(sealed)} tenants were given a sealed event; the others had one.")


def verifier() -> None:
    """Print the program that verifies bundles without authsvc: > verify_bundle.py."""
    source = importlib.resources.files("authsvc").joinpath("verify_bundle.py")
    typer.echo(source.read_text(encoding="utf-8"), nl=False)
