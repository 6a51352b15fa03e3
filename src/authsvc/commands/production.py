"""The commands on the way to production: ``init``, ``doctor``, ``selftest``."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from authsvc.commands.running import Json
from authsvc.database_refusals import refusals
from authsvc.env_file import ignore_in_git, write_env_file
from authsvc.errors import SettingsError
from authsvc.logs import configure_logs
from authsvc.production import ITEMS, Check, Verdict
from authsvc.settings import Settings, load_settings

_ORDER: tuple[Verdict, ...] = ("pass", "warn", "fail")


def init() -> None:
    """Make a .env with fresh secrets in this folder, and keep it out of git."""
    path = Path(".env")
    # First what may be refused, and only then what changes another file.
    write_env_file(path)
    typer.echo(
        f"Made {path} with a client key and secrets for tokens, the audit trail and encryption;"
        " only you can read it."
    )
    if added := ignore_in_git(Path.cwd()):
        typer.echo(f"Added to .gitignore: {', '.join(added)}")
    typer.echo(
        "\nNext:\n"
        "  authsvc serve                 serves with it, on a SQLite file\n"
        "  grep CLIENT_KEY .env          shows the key that your service sends\n"
        "  authsvc doctor --production   tells what is missing before production"
    )


def production_settings() -> Settings:
    """The settings of the environment as if they were those of a production service."""
    env = {name: value for name, value in os.environ.items() if name.upper() != "AUTH_ENVIRONMENT"}
    return load_settings(env | {"AUTH_ENVIRONMENT": "production"}, refuse_weak=False)


def doctor(
    production: Annotated[
        bool, typer.Option("--production", help="Judge as in production; exit 1 if an item fails.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Go through the 13 items of the pre-production checklist, with evidence for each."""
    settings = production_settings() if production else load_settings(refuse_weak=False)
    from authsvc.doctor import examine

    configure_logs()
    found = asyncio.run(examine(settings))
    items = [_item(number, found) for number in range(1, len(ITEMS) + 1)]
    failed = [item["item"] for item in items if item["verdict"] == "fail"]
    if as_json:
        shown = {"environment": settings.environment, "failed": failed, "items": items}
        typer.echo(json.dumps(shown))
    else:
        for item in items:
            typer.echo(_shown(item))
        good = len(items) - len(failed)
        typer.echo(f"\n{good} of {len(items)} items without a failure.")
    if production and failed:
        raise typer.Exit(1)


def _item(number: int, found: Sequence[Check]) -> dict[str, Any]:
    """One item of the checklist: as good as the worst that was found about it."""
    checks = [check for check in found if check.item == number]
    verdict = max((check.verdict for check in checks), key=_ORDER.index)
    return {
        "item": number,
        "name": ITEMS[number - 1],
        "verdict": verdict,
        "fatal": any(check.fatal and check.verdict == "fail" for check in checks),
        "findings": [
            {"verdict": check.verdict, "evidence": check.evidence, "mend": check.mend or None}
            for check in checks
        ],
    }


def _shown(item: dict[str, Any]) -> str:
    fatal = "  (production does not start)" if item["fatal"] else ""
    lines = [f"{item['verdict'].upper():4}  {item['item']:>2}. {item['name']}{fatal}"]
    for finding in item["findings"]:
        mark = {"pass": " ", "warn": "!", "fail": "x"}[finding["verdict"]]
        lines.append(f"        {mark} {finding['evidence']}")
        if finding["mend"]:
            lines.append(f"          -> {finding['mend']}")
    return "\n".join(lines)


def selftest(
    url: Annotated[str, typer.Option(help="Where the service is, such as http://127.0.0.1:5000.")],
    as_json: Json = False,
) -> None:
    """Walk through the token flows of a running service, in two tenants of the command's own.

    The settings have to name the service's database, which lends a key for each that ends with
    the command.
    """
    if not url.startswith(("http://", "https://")):
        raise SettingsError("--url: must begin with http:// or https://")
    settings = load_settings()
    from authsvc.doctor import selftest_at

    configure_logs()
    with refusals():
        steps = asyncio.run(selftest_at(url, settings))
    good = all(step.good for step in steps)
    if as_json:
        shown = [{"flow": step.name, "good": step.good, "seen": step.seen} for step in steps]
        typer.echo(json.dumps({"good": good, "flows": shown}))
    else:
        for step in steps:
            typer.echo(f"{'PASS' if step.good else 'FAIL'}  {step.name}  {step.seen}".rstrip())
    if not good:
        raise typer.Exit(1)


def add_to(cli: typer.Typer) -> None:
    """Make these commands of ``authsvc``."""
    for command in (init, doctor, selftest):
        cli.command()(command)
