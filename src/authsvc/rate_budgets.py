"""How many requests of each kind are let through: profiles, and what the settings say instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limits import parse_many

CHECK, READ, WRITE = "check", "read", "write"
ROLE_CREATE, TOKEN, AUTH_FAILURE = "role_create", "token", "auth_failure"
BUDGETS = (CHECK, READ, WRITE, ROLE_CREATE, TOKEN, AUTH_FAILURE)
OFF = "off"
_LARGEST = 10**9


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in a window of so many seconds; windows begin at whole multiples of it."""

    amount: int
    seconds: int


Rates = tuple[Rate, ...]
"""All of them hold at once, the shortest window first; none means unlimited."""

PROFILES: Mapping[str, Mapping[str, str]] = {
    OFF: dict.fromkeys((CHECK, READ, WRITE, TOKEN, AUTH_FAILURE), OFF),
    "service": {
        CHECK: "20000/second",
        READ: "1000/second",
        WRITE: "200/second",
        TOKEN: "60/minute",
        AUTH_FAILURE: "30/minute",
    },
    "strict": {
        CHECK: "100/hour;10/minute",
        READ: "100/hour;10/minute",
        WRITE: "100/hour;10/minute",
        ROLE_CREATE: "5/minute",
        TOKEN: "10/minute",
        AUTH_FAILURE: "10/minute",
    },
}
"""A profile without a budget for making roles counts them as writes."""


def parse_rates(text: str) -> Rates:
    """Rates as slowapi writes them, ``100/hour;10/minute``; ``off`` is none. Raises ValueError."""
    if text.strip().lower() == OFF:
        return ()
    try:
        found = [Rate(item.amount, item.get_expiry()) for item in parse_many(text)]
    except ValueError:
        found = []
    if not found or any(
        not 1 <= rate.amount <= _LARGEST or not 1 <= rate.seconds <= _LARGEST for rate in found
    ):
        raise ValueError("must be rates such as 10/minute, several with ';' between them, or 'off'")
    return tuple(sorted(found, key=lambda rate: rate.seconds))


def budgets_of(settings: Any) -> dict[str, Rates]:
    """The rates of each budget. ``role_create`` is missing where roles are made as any write."""
    made = {}
    for name in BUDGETS:
        given = getattr(settings, f"rate_limit_{name}")
        text = PROFILES[settings.rate_limit_profile].get(name) if given is None else given
        if text is not None:
            made[name] = parse_rates(text)
    return made
