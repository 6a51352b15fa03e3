"""What is asked of the audit trail, and what it answers. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from authsvc.errors import InputError

Stream = Literal["policy", "activity"]
STREAMS: tuple[Stream, ...] = ("policy", "activity")
LONGEST_HOURS = 876_000

FIELDS = (
    "seq", "timestamp", "action", "entity_type", "entity_id", "details", "actor", "ip_address",
    "user_agent", "request_id", "success", "hash",
)  # fmt: skip
"""What every entry shows, in this order."""
OPERATORS_FIELDS = ("tenant", "stream", *FIELDS)
"""What the operator is shown, who sees all tenants."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries are wanted: those that every filter given lets through.

    ``since`` is inclusive, ``until`` exclusive; ``hours`` before now instead of ``since``.
    """

    stream: Stream = "policy"
    action: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    actor: str | None = None
    ip: str | None = None
    outcome: Literal["success", "failure"] | None = None
    hours: float | None = None
    since: datetime | None = None
    until: datetime | None = None
    oldest_first: bool = False

    def at(self, now: datetime) -> Selection:
        """The same with ``hours`` reckoned from an instant.

        Raises InputError for bounds that contradict each other.
        """
        since = self.since
        if self.hours is not None:
            if since is not None:
                raise InputError.of("hours", "give 'hours' or 'since', not both")
            if not 0 < self.hours <= LONGEST_HOURS:
                raise InputError.of("hours", f"must be more than 0 and at most {LONGEST_HOURS}")
            since = now - timedelta(hours=self.hours)
        if since is not None and self.until is not None and self.until <= since:
            raise InputError.of("until", "must be later than where the time asked for begins")
        return replace(self, since=since, hours=None)

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells one selection from another, for cursors."""
        given = (
            self.action, self.entity_type, self.entity_id, self.actor, self.ip, self.outcome,
            self.hours, self.since, self.until, self.oldest_first,
        )  # fmt: skip
        return ("audit", self.stream, *("" if one is None else str(one) for one in given))


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the trail. ``place`` is where it stands in its stream: ``seq``, or its id.

    ``seq`` and ``hash`` are None in the activity stream, ``tenant_id`` where no tenant was known.
    """

    stream: Stream
    tenant_id: UUID | None
    place: int | bytes
    at: datetime
    action: str
    entity_type: str
    entity_id: str
    details: dict[str, Any] = field(default_factory=dict)
    actor: str | None = None
    ip_address: str | None = None
    user_agent: str | None = None
    request_id: str | None = None
    success: bool = True
    seq: int | None = None
    hash: bytes | None = None


def shown(entry: Entry) -> dict[str, Any]:
    """An entry as it is answered, with ``FIELDS``: plain JSON values."""
    return {
        "seq": entry.seq,
        "timestamp": entry.at.astimezone(UTC).isoformat(timespec="microseconds")[:26] + "Z",
        "action": entry.action,
        "entity_type": entry.entity_type,
        "entity_id": entry.entity_id,
        "details": entry.details,
        "actor": entry.actor,
        "ip_address": entry.ip_address,
        "user_agent": entry.user_agent,
        "request_id": entry.request_id,
        "success": entry.success,
        "hash": None if entry.hash is None else entry.hash.hex(),
    }
