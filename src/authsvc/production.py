"""What production demands of the settings: one list of checks, for the start and for ``doctor``.

The items are those of the security guide's pre-production checklist. A failed check that is
``fatal`` refuses the start of a production service; ``doctor`` shows all of them. No evidence
holds a value: it names settings and files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from authsvc.database_choice import SqliteFile, is_loopback, mode_over_network
from authsvc.errors import SettingsError
from authsvc.keyring import SHORTEST_SECRET, secrets_in
from authsvc.secret_strength import estimated_bits, is_published
from authsvc.settings_sources import ENV_FILE, variable

if TYPE_CHECKING:
    from authsvc.settings import Settings

ITEMS = (
    "Strong JWT secret",
    "Encryption of names at rest",
    "Database: password, role, connection",
    "TLS certificate of the public address",
    "CORS for named origins only",
    "Audit logging",
    "Secrets management",
    "Debug mode off",
    "Rate limits",
    "Security headers",
    "Permissions reviewed and minimised",
    "Authentication flows tested",
    "Monitoring and alerting",
)
"""The checklist, in its order; item 1 is the first."""

_JWT_BITS = 80.0
_PASSWORD_BITS = 40.0
_SHORTEST_PASSWORD = 12
_MOUNTED = (Path("/run/secrets"), Path("/var/run/secrets"))
_MAKE_SECRET = "make one with: openssl rand -base64 32"  # noqa: S105 - advice

Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding about one item: what was seen, and what mends it where it is not good."""

    item: int
    verdict: Verdict
    evidence: str
    mend: str = ""
    fatal: bool = False

    @property
    def sentence(self) -> str:
        """Evidence and mend in one."""
        return f"{self.evidence}; {self.mend}" if self.mend else self.evidence


def refuse(settings: Settings) -> list[str]:
    """The warnings for a production service. Raises SettingsError for the first fatal failure."""
    warnings = []
    for check in settings_checks(settings):
        if check.verdict == "fail" and check.fatal:
            raise SettingsError(check.sentence)
        if check.verdict == "warn":
            warnings.append(check.sentence)
    return warnings


def settings_checks(settings: Settings) -> Iterator[Check]:
    """Everything that the settings alone can tell, item by item."""
    yield from _jwt(settings)
    yield from _reuse(settings)
    yield from _encryption(settings)
    yield from _database(settings)
    yield from _cors(settings)
    yield from _audit(settings)
    yield from _files(settings)
    if settings.debug_mode:
        yield _fatal(8, "AUTH_DEBUG_MODE: is on", "must be false in production")
    else:
        yield Check(8, "pass", "AUTH_DEBUG_MODE: is off; nothing else turns debugging on")
    if settings.registration_open:
        yield Check(
            11,
            "warn",
            "AUTH_CLIENT_REGISTRATION: open, so whoever reaches the service can make a tenant",
            "set it to closed",
        )


def _fatal(item: int, evidence: str, mend: str) -> Check:
    return Check(item, "fail", evidence, mend, fatal=True)


def _jwt(settings: Settings) -> Iterator[Check]:
    if settings.jwt_secret_key is None and settings.jwt_private_key is None:
        yield _fatal(1, "AUTH_JWT_SECRET_KEY: must be set", _MAKE_SECRET)
        return
    weak = False
    for name, old in (("jwt_secret_key", False), ("jwt_old_secret_keys", True)):
        value = getattr(settings, name)
        text = "" if value is None else value.get_secret_value()
        for one in secrets_in(text) if old else [text] * bool(text):
            if reason := _weakness(one, SHORTEST_SECRET, _JWT_BITS):
                weak = True
                yield _fatal(1, f"{variable(name)}: {reason}", _MAKE_SECRET)
    if not weak:
        kind = "a private key" if settings.jwt_private_key is not None else "AUTH_JWT_SECRET_KEY"
        yield Check(1, "pass", f"{kind} signs; long enough, no known or guessable value")


def _encryption(settings: Settings) -> Iterator[Check]:
    # A key that is no key has refused the settings before this is asked.
    if settings.enable_encryption:
        yield Check(2, "pass", "AUTH_ENABLE_ENCRYPTION: is on; AUTH_ENCRYPTION_KEY is a Fernet key")
        return
    yield Check(
        2,
        "fail",
        "AUTH_ENABLE_ENCRYPTION: is off, so names of users and permissions are stored as they are",
        "set AUTH_ENCRYPTION_KEY and AUTH_ENABLE_ENCRYPTION=true, then run"
        " 'authsvc encryption enable'",
    )


def _weakness(secret: str, shortest: int, bits: float) -> str | None:
    if len(secret) < shortest:
        return f"has fewer than {shortest} characters"
    if is_published(secret):
        return "is an example out of documentation"
    if estimated_bits(secret) < bits:
        return "can be guessed: it is made of words, repeats or runs"
    return None


def _reuse(settings: Settings) -> Iterator[Check]:
    """Each secret has one purpose: what leaks from one place must not open another."""
    seen: dict[str, str] = {}
    for name in dict.fromkeys(["jwt_secret_key", *settings.secret_names()]):
        value = getattr(settings, name)
        if value is None or name.endswith("_url"):
            continue
        text = value.get_secret_value()
        for one in {part for part in (text, *secrets_in(text)) if part}:
            other = seen.setdefault(one, name)
            if other != name:
                yield _fatal(
                    1, f"{variable(other)} and {variable(name)}: are one secret", _MAKE_SECRET
                )


def _audit(settings: Settings) -> Iterator[Check]:
    if settings.enable_audit_logging:
        yield Check(6, "pass", "AUTH_ENABLE_AUDIT_LOGGING: is on")
    else:
        yield _fatal(6, "AUTH_ENABLE_AUDIT_LOGGING: is off", "must be true in production")
    if settings.audit_key is None:
        evidence = (
            "AUTH_AUDIT_KEY: is not set, so whoever can write to the database can forge its trail"
        )
        yield Check(6, "warn", evidence, _MAKE_SECRET)
    elif reason := _weakness(settings.audit_key.get_secret_value(), SHORTEST_SECRET, _JWT_BITS):
        yield _fatal(6, f"AUTH_AUDIT_KEY: {reason}", _MAKE_SECRET)
    else:
        yield Check(6, "pass", "AUTH_AUDIT_KEY: seals every event")
    if settings.checkpoint_private_key is None:
        evidence = (
            "AUTH_CHECKPOINT_PRIVATE_KEY: is not set, so nothing outside the database tells that"
            " the end of the trail was cut"
        )
        mend = "make one with: openssl genpkey -algorithm ed25519, and set AUTH_CHECKPOINT_FILE too"
        yield Check(6, "warn", evidence, mend)
    elif settings.checkpoint_file is None and settings.webhook_url is None:
        evidence = "AUTH_CHECKPOINT_FILE: is not set, so checkpoints stay inside the database"
        yield Check(6, "warn", evidence, "name a file on another machine's disk")
    else:
        yield Check(6, "pass", "checkpoints are signed and leave the database")


def _database(settings: Settings) -> Iterator[Check]:
    target = settings.database
    if isinstance(target, SqliteFile):
        return
    url = "postgresql_url" if settings.postgresql_url is not None else "database_url"
    name = variable("postgresql_password" if settings.postgresql_password is not None else url)
    if target.password is None:
        yield Check(3, "pass", f"{name}: has no password that could be weak")
    else:
        reason = _weakness(target.password, _SHORTEST_PASSWORD, _PASSWORD_BITS)
        if target.password in (target.user, target.database):
            reason = "is the name of the role or of the database"
        if reason:
            yield _fatal(3, f"{name}: the password {reason}", _MAKE_SECRET)
        else:
            yield Check(3, "pass", f"{name}: the password is long and not a known one")
    for field, way in ((url, target), ("postgresql_gate_url", settings.gate)):
        mode = mode_over_network(way)
        if mode is None or getattr(settings, field) is None:
            continue
        if mode == "disable":
            evidence = (
                f"{variable(field)}: sslmode=disable sends everything to another machine in the"
                " clear, which production does not"
            )
            yield _fatal(3, evidence, "use sslmode=verify-full")
        elif mode in ("allow", "prefer"):
            evidence = (
                f"{variable(field)}: without sslmode=require or stronger the connection may be in"
                " the clear"
            )
            yield Check(3, "warn", evidence, "use sslmode=verify-full")
        else:
            advice = "" if mode == "verify-full" else "; verify-full would also check the name"
            yield Check(3, "pass", f"{variable(field)}: sslmode={mode}{advice}")


def _cors(settings: Settings) -> Iterator[Check]:
    if not settings.allow_cors:
        yield Check(5, "pass", "AUTH_ALLOW_CORS: is off, no page of another origin may call")
    elif not settings.cors_origins:
        yield Check(5, "pass", "AUTH_CORS_ORIGINS: names no origin")
    elif any("*" in origin or origin == "null" for origin in settings.cors_origins):
        yield _fatal(5, "AUTH_CORS_ORIGINS: lets every page call", "name the origins one by one")
    elif any(not origin.startswith("https://") for origin in settings.cors_origins):
        yield Check(5, "warn", "AUTH_CORS_ORIGINS: an origin without TLS", "use https://")
    else:
        yield Check(5, "pass", f"AUTH_CORS_ORIGINS: {len(settings.cors_origins)} named, all https")


def _files(settings: Settings) -> Iterator[Check]:
    places = settings.provenance
    closed = True
    if places.open_env_file is not None:
        closed = False
        evidence = f"{places.open_env_file}: other users of this machine have access to it"
        yield _fatal(7, evidence, "chmod 600 it")
    for name, path in sorted(places.files.items()):
        if open_to_others(path):
            closed = False
            evidence = f"{variable(name)}: others have access to the file that holds it"
            yield _fatal(7, evidence, "chmod 600 it")
    vault = urlsplit(settings.vault_addr or "")
    if vault.scheme == "http" and not is_loopback(vault.hostname or ""):
        closed = False
        yield _fatal(7, "AUTH_VAULT_ADDR: sends secrets in the clear", "use https://")
    kept = [variable(name) for name, origin in places.origins.items() if origin == ENV_FILE]
    if kept:
        yield Check(
            7,
            "warn",
            f"{', '.join(kept)}: stands in {ENV_FILE}",
            "in production a secrets manager's file, named by the same variable with _FILE at its"
            " end, keeps a secret better",
        )
    if closed:
        shown = "; ".join(
            f"{variable(name)} from {origin}" for name, origin in places.origins.items()
        )
        yield Check(7, "pass", shown or "no secret is set")


def open_to_others(path: Path) -> bool:
    """Whether other users of the machine can read or change a file of secrets.

    A group may read it, as a pod's does. Below ``/run/secrets``, which a container has to itself,
    and in a folder that is closed to others, a file's own mode is not asked for reading.
    """
    try:
        found = path.stat()
        real = path.resolve()
        reachable = all(os.stat(folder).st_mode & stat.S_IXOTH for folder in real.parents)
    except OSError:
        return False
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return reachable
    mounted = any(path.absolute().is_relative_to(place) for place in _MOUNTED)
    return bool(found.st_mode & stat.S_IROTH) and reachable and not mounted
