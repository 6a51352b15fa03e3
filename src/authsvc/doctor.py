"""The thirteen items of the security guide's pre-production checklist, looked at one by one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from functools import partial

from authsvc import migrations, selftest
from authsvc.app import create_app
from authsvc.clock import system_clock
from authsvc.connections import open_database
from authsvc.database import Database
from authsvc.database_choice import SqliteFile, mode_over_network
from authsvc.database_refusals import refusals
from authsvc.errors import AuthsvcError
from authsvc.host_review import argument_checks, database_file_checks
from authsvc.http_probe import Ask, in_process, over_http
from authsvc.production import Check, settings_checks
from authsvc.repositories.server_rights import ServerRights, server_rights
from authsvc.services import audit_review
from authsvc.services.encryption import Status, require_master_keys, status
from authsvc.services.tenants import NewTenant, end_lent_key, lend_key
from authsvc.settings import Settings, build_settings
from authsvc.tls_review import tls_checks

LENT_TENANTS = ("authsvc:selftest:one", "authsvc:selftest:two")
_LENT_FOR = timedelta(minutes=10)
_GUIDE = {
    "x-content-type-options": ("nosniff",),
    "x-frame-options": ("DENY",),
    "x-xss-protection": ("1; mode=block", "1", "0"),
    "strict-transport-security": ("max-age=31536000; includeSubDomains",),
    "content-security-policy": (
        "default-src 'self'",
        "default-src 'none'; frame-ancestors 'none'",
    ),
}
"""The five headers of the guide with the values that they may have."""
_OUTCOMES = (
    ("GET", "/ping", None, 200),
    ("GET", "/api/roles", None, 401),
    ("GET", "/nowhere", None, 404),
    ("DELETE", "/ping", None, 405),
    ("POST", "/api/check", "x" * 9_000_000, 413),
)
_SCRAM = ("scram-sha-256", "cert", "peer", "gss", "sspi", "ldap")


async def examine(settings: Settings) -> list[Check]:
    """Every finding, in the order of the checklist. Nothing is changed by looking, except what the
    flows of item 12 do in two tenants of their own.
    """
    found = list(settings_checks(settings))
    found += _unbuilt()
    found += tls_checks(settings.public_url, time.time())
    secrets = {
        f"AUTH_{name.upper()}": value.get_secret_value()
        for name in settings.secret_names()
        if (value := getattr(settings, name)) is not None
    }
    found += argument_checks(secrets)
    found += _limits(settings)
    found += [check async for check in _database_checks(settings)]
    production = settings.environment == "production"
    found = [check if production else _as_local(check) for check in found]
    return sorted(found, key=lambda check: check.item)


def _as_local(check: Check) -> Check:
    """What production refuses and a laptop may do is a warning there."""
    if check.verdict == "fail" and check.fatal:
        return Check(check.item, "warn", check.evidence, check.mend)
    return check


def _unbuilt() -> Iterator[Check]:
    for item in (11, 13):
        yield Check(item, "fail", "not in this version")


def _limits(settings: Settings) -> Iterator[Check]:
    profile = settings.rate_limit_profile
    if profile == "off":
        yield Check(9, "fail", "AUTH_RATE_LIMIT_PROFILE: is off", "set it to service or strict")
    elif settings.workers > 1 and settings.rate_limit_storage_url is None:
        evidence = "AUTH_RATE_LIMIT_STORAGE_URL: is not set, so each worker counts for itself"
        yield Check(9, "fail", evidence, "set it to a Redis that all share, or AUTH_WORKERS=1")
    else:
        shared = "in a shared store" if settings.rate_limit_storage_url else "in one process"
        yield Check(9, "pass", f"AUTH_RATE_LIMIT_PROFILE: {profile}, counted {shared}")


# --- What needs the database, and an application on it ---


async def _database_checks(settings: Settings) -> AsyncIterator[Check]:
    target = settings.database
    there = True
    if isinstance(target, SqliteFile):
        mend = "set AUTH_POSTGRESQL_URL"
        yield Check(3, "fail", "the database is a SQLite file, not PostgreSQL", mend)
        there = target.path.exists()
        for check in database_file_checks(target.path):
            yield check
    probed = _probed(settings)
    ask = in_process(create_app(probed, beside_server=True), _host(settings))
    yield await _headers(ask)
    if not there:
        for item in (6, 12):
            yield Check(item, "fail", "there is no database yet", "run 'authsvc migrate' first")
        return
    database = open_database(settings, beside_server=True)
    try:
        with refusals():
            await migrations.require_head(database)
        await require_master_keys(database)
        if not database.is_sqlite:
            async with database.read() as tx:
                rights = await server_rights(tx)
            for check in _rights(rights, encrypt=mode_over_network(target) is not None):
                yield check
    except AuthsvcError as error:
        for item in (2, 3, 6, 12):
            yield Check(item, "fail", f"the database: {error.message}")
    else:
        yield _names(await status(database), on=settings.enable_encryption)
        for check in await _audit(database):
            yield check
        yield await _flows(probed, database)
    finally:
        await database.dispose()


def _rights(rights: ServerRights, *, encrypt: bool) -> Iterator[Check]:
    if rights.excess:
        evidence = f"the role {rights.role} {', '.join(rights.excess)}"
        mend = "serve as a role of its own, given its rights by 'authsvc migrate --grant-to ROLE'"
        yield Check(3, "fail", evidence, mend)
    else:
        yield Check(3, "pass", f"the role {rights.role} reads and writes rows and no more")
    mend = "scram-sha-256 in pg_hba.conf"
    if rights.method in _SCRAM:
        yield Check(3, "pass", f"it is let in by {rights.method}")
    elif rights.method:
        yield Check(3, "fail", f"it is let in by {rights.method}", mend)
    else:
        kept = f"the server keeps passwords as {rights.encryption}"
        good = rights.encryption == "scram-sha-256"
        yield Check(3, "pass", kept) if good else Check(3, "fail", kept, mend)
    if encrypt and not rights.encrypted:
        yield Check(3, "fail", "this connection is in the clear", "use sslmode=verify-full")


def _names(found: Status, *, on: bool) -> Check:
    encrypted = sum(one.encrypted for one in found.columns)
    plain = sum(one.plain for one in found.columns)
    if found.astray:
        evidence = f"names in another form than their tenant's others: {found.astray}"
        return Check(2, "fail", evidence, "run 'authsvc verify': changed past the service")
    if on and plain:
        evidence = f"stored names: {encrypted} encrypted, {plain} not"
        return Check(2, "fail", evidence, "run 'authsvc encryption enable'")
    keys = "every master key in use is in the settings"
    return Check(2, "pass", f"stored names: {encrypted} encrypted, {plain} not; {keys}")


async def _audit(database: Database) -> Sequence[Check]:
    found = []
    try:
        await audit_review.try_to_write(database, system_clock())
        found.append(Check(6, "pass", "an audit event was written and rolled back"))
    except AuthsvcError as error:
        found.append(Check(6, "fail", f"no audit event can be written: {error.message}"))
    try:
        seen = await audit_review.review(database)
    except AuthsvcError as error:
        return [*found, Check(6, "fail", f"the audit trail cannot be read: {error.message}")]
    if seen.broken:
        names = ", ".join(seen.broken[:5])
        evidence = f"the audit trail of {len(seen.broken)} tenants is broken: {names}"
        return [*found, Check(6, "fail", evidence, "keep the database as it is, and look into it")]
    return [
        *found,
        Check(6, "pass", f"{seen.events} events of {seen.tenants} tenants verified"),
    ]


def _probed(settings: Settings) -> Settings:
    """The settings for an application that only this process asks: without limits, and without
    making a secret in a file where none is set.
    """
    values = {name: getattr(settings, name) for name in settings.model_fields_set}
    values |= {"environment": "local", "rate_limit_profile": "off"}
    if settings.jwt_private_key is None and settings.jwt_secret_key is None:
        values["jwt_secret_key"] = "only for the flows of one doctor in one process"  # noqa: S105
    return build_settings(**values)


def _host(settings: Settings) -> str:
    first = settings.allowed_hosts[0] if settings.allowed_hosts else "*"
    return "localhost" if first == "*" else first.replace("*.", "doctor.")


async def _headers(ask: Ask) -> Check:
    wrong = []
    for method, path, body, expected in _OUTCOMES:
        answer = await ask(method, path, None, body)
        if answer.status != expected:
            wrong.append(f"{method} {path} answers {answer.status} instead of {expected}")
        for name, values in _GUIDE.items():
            if answer.headers.get(name) not in values:
                wrong.append(f"{name} on {answer.status}")
    if wrong:
        return Check(10, "fail", f"missing or wrong: {', '.join(wrong)}")
    statuses = ", ".join(str(expected) for *_, expected in _OUTCOMES)
    return Check(10, "pass", f"all five headers on answers with {statuses}")


async def _flows(settings: Settings, database: Database) -> Check:
    app = create_app(settings, beside_server=True)
    try:
        async with app.router.lifespan_context(app):
            steps = await run_selftest(in_process(app, _host(settings)), database)
    except AuthsvcError as error:
        return Check(12, "fail", f"the flows could not be walked through: {error.message}")
    broken = [f"{step.name}: {step.seen}" for step in steps if not step.good]
    if broken:
        return Check(12, "fail", "; ".join(broken))
    return Check(12, "pass", f"{len(steps)} flows: {', '.join(step.name for step in steps)}")


async def run_selftest(ask: Ask, database: Database) -> Sequence[selftest.Step]:
    """The flows against the service behind ``ask``, with keys lent by its database."""
    lent: list[NewTenant] = []
    try:
        for name in LENT_TENANTS:
            lend = partial(lend_key, name=name, now=system_clock(), life=_LENT_FOR)
            lent.append(await database.write(name, lend))
        return await selftest.run(ask, lent[0].key, lent[1].key)
    finally:
        for one in lent:
            await database.write(one.id, partial(end_lent_key, lent=one, now=system_clock()))


async def selftest_at(url: str, settings: Settings) -> Sequence[selftest.Step]:
    """The flows against a running service whose database the settings name."""
    database = open_database(settings, beside_server=True)
    try:
        await migrations.require_head(database)
        return await run_selftest(over_http(url), database)
    finally:
        await database.dispose()
