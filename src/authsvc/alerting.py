"""Which events are worth waking somebody for. Pure: the same events give the same alerts.

That is what makes an alert come once: whoever looks again, after a restart or in another process,
finds what was found before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from authsvc.alert_rules import AlertRules, Threshold

WATCHED_PERMISSION = "watched_permission"
WATCHED_ROLE = "watched_role"
MANY_GRANTS = "many_grants"
FIRST_TIME_ACTOR = "first_time_actor"
FAILED_AUTHENTICATION = "failed_authentication"

_GIVING = frozenset({("grant", "permission"), ("add", "membership"), ("add", "role_parent")})
_NOT_A_KEY = frozenset({None, "command", "settings", "selftest", "doctor"})
_FOUNDING = 2
"""A tenant begins with two events, itself and its first key, which are nobody's deed."""


class Seen(NamedTuple):
    """One policy event: its number, its instant, and what it says."""

    seq: int
    at: datetime
    said: dict[str, Any]

    @property
    def actor(self) -> str | None:
        """Who did it."""
        actor: str | None = self.said["actor"]
        return actor

    @property
    def gives(self) -> bool:
        """Whether somebody may do more afterwards."""
        return (self.said["action"], self.said["entity_type"]) in _GIVING


@dataclass(frozen=True, slots=True)
class Alert:
    """Something to be told; ``details`` say what happened, in plain JSON."""

    rule: str
    at: datetime
    actor: str | None
    address: str | None
    details: dict[str, Any]


def evaluate(
    rules: AlertRules,
    events: Sequence[Seen],
    before: Iterable[Seen] = (),
    known_actors: Collection[str | None] = (),
) -> list[Alert]:
    """The alerts that new events of one tenant give, in order.

    ``before`` are the giving events of two windows of ``many_grants`` before them, ``known_actors``
    those that had done something before.
    """
    found: list[Alert] = []
    bursts = None if rules.many_grants is None else _Bursts(rules.many_grants)
    if bursts is not None:
        for event in before:
            bursts.crosses(event)
    known = set(known_actors)
    for event in events:
        found += _watched(rules, event)
        if bursts is not None and (count := bursts.crosses(event)):
            details = {"count": count, "seconds": bursts.seconds, "last_seq": event.seq}
            found.append(_alert(MANY_GRANTS, event, details))
        if event.actor not in known | _NOT_A_KEY and event.seq > _FOUNDING:
            known.add(event.actor)
            if rules.first_time_actor:
                found.append(_alert(FIRST_TIME_ACTOR, event, _what(event)))
    return found


def _watched(rules: AlertRules, event: Seen) -> list[Alert]:
    if not event.gives:
        return []
    name, details = event.said["entity_id"], event.said["details"]
    if event.said["entity_type"] == "permission":
        if rules.watches_permission(name):
            return [_alert(WATCHED_PERMISSION, event, _what(event))]
        return []
    roles = [details["role"]] if "role" in details else [name, details["parent"]]
    if any(rules.watches_role(role) for role in roles):
        return [_alert(WATCHED_ROLE, event, _what(event))]
    return []


def _what(event: Seen) -> dict[str, Any]:
    words = ("action", "entity_type", "entity_id", "details")
    return {"seq": event.seq} | {word: event.said[word] for word in words}


def _alert(rule: str, event: Seen, details: dict[str, Any]) -> Alert:
    return Alert(rule, event.at, event.actor, event.said["ip_address"], details)


class _Bursts:
    """Counts what each actor gives within the window; a burst crosses the threshold once."""

    def __init__(self, threshold: Threshold) -> None:
        self._threshold = threshold
        self._times: dict[str | None, deque[datetime]] = {}
        self._over: set[str | None] = set()
        self.seconds = int(threshold.window.total_seconds())

    def crosses(self, event: Seen) -> int:
        """How many there were, if this event is the first too many; else 0."""
        if not event.gives:
            return 0
        times = self._times.setdefault(event.actor, deque())
        while times and times[0] <= event.at - self._threshold.window:
            times.popleft()
        # Judged before this event is counted, so that a burst that has ebbed away is over.
        if len(times) <= self._threshold.more_than:
            self._over.discard(event.actor)
        times.append(event.at)
        if len(times) > self._threshold.more_than and event.actor not in self._over:
            self._over.add(event.actor)
            return len(times)
        return 0
