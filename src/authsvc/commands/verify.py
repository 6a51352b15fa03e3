"""``authsvc verify``: the audit trail, and whether the tables are what it leads to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from authsvc.checkpoint_file import CheckpointFile
from authsvc.commands.audit_proof import (
    INCOMPLETE,
    INTACT,
    TAMPERED,
    WORDS,
    CheckpointsOption,
    PublicKeyOption,
    TenantOption,
    file_of,
    public_key_of,
    show_verdict,
    shown_verdict,
)
from authsvc.commands.running import Json, on_tenants
from authsvc.database import Database
from authsvc.errors import NotFound, SettingsError
from authsvc.services.audit_proof import Verdict, prove_all
from authsvc.services.replay_review import MOST_FINDINGS, Review, review_tenant
from authsvc.settings import load_settings

_LONG = 10_000
"""With more events than this, it takes long enough to say so."""


@dataclass(frozen=True, slots=True)
class _Found:
    verdict: Verdict
    reviews: dict[str, Review]

    @property
    def status(self) -> int:
        if self.verdict.tampered or any(review.findings for review in self.reviews.values()):
            return TAMPERED
        lacking = any(review.lacking for review in self.reviews.values())
        return INCOMPLETE if lacking or self.verdict.incomplete else INTACT


def verify(
    tenant: TenantOption = None,
    archive: Annotated[
        Path | None, typer.Option(help="The folder of the segments that were pruned.")
    ] = None,
    checkpoints: CheckpointsOption = None,
    public_key: PublicKeyOption = None,
    as_json: Json = False,
) -> None:
    """Verify the audit trail, and replay it against the tables. Exit 0, 1 or 2.

    0: the trail is intact and every role, grant, membership and key is what it tells. 1: something
    was put in, changed or taken out past the service. 2: something needed for that was not there.
    """
    settings = load_settings()
    key = public_key_of(public_key, settings)
    file = file_of(checkpoints, settings)
    if archive is not None and not archive.is_dir():
        raise SettingsError(f"--archive: there is no folder {archive}")

    async def work(database: Database) -> _Found:
        async with database.read() as tx:
            verdict = await prove_all(
                tx,
                settings.audit.keys,
                tenant=tenant,
                outside=() if file is None else CheckpointFile(file),
                public_key=key,
            )
            reviews = {}
            for number, proof in enumerate(verdict.proofs, 1):
                if proof.checked > _LONG:
                    typer.echo(
                        f"authsvc: replaying {proof.checked} events of '{proof.name}'"
                        f" ({number} of {len(verdict.proofs)})",
                        err=True,
                    )
                reviews[proof.name] = await review_tenant(tx, proof.tenant_id, archive)
        return _Found(verdict, reviews)

    found = on_tenants(work)
    if tenant is not None and not found.verdict.proofs:
        raise NotFound("tenant_not_found", f"There is no tenant called '{tenant}'")
    if as_json:
        shown = shown_verdict(found.verdict, found.status)
        shown["tables"] = {
            name: {"findings": review.findings, "lacking": review.lacking}
            for name, review in found.reviews.items()
        }
        typer.echo(json.dumps(shown))
    else:
        _show(found, outside=file is not None)
    raise SystemExit(found.status)


def _show(found: _Found, *, outside: bool) -> None:
    show_verdict(found.verdict, outside=outside)
    for name, review in found.reviews.items():
        for finding in review.findings:
            typer.echo(f"TAMPERED  {name}: {finding}")
        if len(review.findings) == MOST_FINDINGS:
            typer.echo(f"          {name}: there may be more")
        if review.lacking:
            typer.echo(f"INCOMPLETE  {name}: {review.lacking}")
    if not any(review.findings or review.lacking for review in found.reviews.values()):
        typer.echo(f"The tables are what the trail tells: {WORDS[found.status]}.")
