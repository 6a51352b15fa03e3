"""The audit trail for Python programs beside the service, such as a monitoring job::

from authsvc.audit import query_audit_logs

for log in query_audit_logs(action="delete", hours=24):
    print(log["timestamp"], log["actor"], log["entity_id"])
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from authsvc.audit_entries import STREAMS, Selection
from authsvc.errors import InputError

__all__ = ["query_audit_logs"]


def query_audit_logs(
    action: str | None = None,
    entity_type: str | None = None,
    entity_id: str | None = None,
    actor: str | None = None,
    client_key: str | None = None,
    hours: float | None = None,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    outcome: str | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """The entries of the audit trail that all given filters let through, the newest first.

    Of every tenant, changes of policy and activity alike: this is the operator's view, and the
    database is the one that the ``AUTH_*`` settings of this process name, as for commands. With
    ``client_key`` (the UUID; one that has ended will do) only that tenant's.

    ``since`` is inclusive, ``until`` exclusive; both are aware datetimes or RFC 3339 text, and
    ``hours`` stands for ``since``, reckoned from now. ``outcome`` is ``success`` or ``failure``.
    Without ``limit`` the list is complete, or LimitRequired is raised beyond 100 000 entries.

    Each entry has ``timestamp`` (RFC 3339, UTC), ``tenant`` (its name), ``stream`` (``policy`` or
    ``activity``), ``action``, ``entity_type``, ``entity_id``, ``details``, ``actor``,
    ``ip_address``, ``user_agent``, ``request_id``, ``success``, ``seq`` and ``hash`` (None for
    activity).

    Synchronous: the work is done in a thread with an event loop of its own, so a running loop does
    not mind, but it waits meanwhile. Raises SettingsError, StartError, InputError, NotFound,
    Unavailable.
    """
    if outcome not in (None, "success", "failure"):
        raise InputError.of("outcome", "must be 'success' or 'failure'")
    if limit is not None and limit < 1:
        raise InputError.of("limit", "must be at least 1, or left out")
    wanted = Selection(
        action=action,
        entity_type=entity_type,
        entity_id=entity_id,
        actor=actor,
        outcome=outcome,  # type: ignore[arg-type]  # looked at above
        hours=hours,
        since=_instant(since, "since"),
        until=_instant(until, "until"),
    )
    with ThreadPoolExecutor(1, thread_name_prefix="authsvc-audit") as thread:
        return thread.submit(asyncio.run, _find(wanted, client_key, limit)).result()


def _instant(given: datetime | str | None, name: str) -> datetime | None:
    if given is None:
        return None
    try:
        moment = datetime.fromisoformat(given) if isinstance(given, str) else given
        if moment.tzinfo is None:
            raise InputError.of(name, "has no time zone: say for example datetime.now(UTC)")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError.of(
            name, "must be a date and time with an offset, such as 2026-01-31T12:00:00Z"
        ) from None


async def _find(
    wanted: Selection, client_key: str | None, limit: int | None
) -> list[dict[str, Any]]:
    from authsvc import migrations
    from authsvc.clock import system_clock
    from authsvc.connections import open_database
    from authsvc.database_refusals import refusals
    from authsvc.errors import StartError
    from authsvc.services.whole_trail import Whose, find
    from authsvc.settings import SqliteFile, load_settings

    settings = load_settings()
    target = settings.database
    if isinstance(target, SqliteFile) and not target.path.exists():
        raise StartError(f"There is no database at {target.path}: run 'authsvc serve' first")
    database = open_database(settings, beside_server=True)
    try:
        with refusals():
            await migrations.require_head(database)
            found, _ = await find(
                database, wanted, STREAMS, Whose(key=client_key), limit, system_clock()
            )
            return found
    finally:
        await database.dispose()
