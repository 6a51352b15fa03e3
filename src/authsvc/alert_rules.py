"""What is worth waking somebody for, as data. Pure.

A rules file is a JSON object; every part may be left out:

    {
      "watch": {"permissions": ["billing:*"], "roles": ["admin"]},
      "many_grants": {"more_than": 50, "seconds": 600},
      "first_time_actor": true,
      "failed_authentication": {"more_than": 100, "seconds": 60}
    }
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any

_LONGEST_WINDOW = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Threshold:
    """More than so many within so long."""

    more_than: int
    window: timedelta


@dataclass(frozen=True, slots=True)
class AlertRules:
    """The rules in force. Names of ``watch`` may hold ``*`` for any characters.

    ``many_grants`` is about one actor of one tenant (grants, memberships and parents that are
    added), ``failed_authentication`` about one address, ``first_time_actor`` about a credential
    that has never changed anything of its tenant before.
    """

    permissions: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    many_grants: Threshold | None = None
    first_time_actor: bool = False
    failed_authentication: Threshold | None = None

    @property
    def any(self) -> bool:
        """Whether there is any rule."""
        return self != NO_RULES

    def watches_permission(self, name: str) -> bool:
        """Whether a permission is on the watch list."""
        return any(fnmatchcase(name, pattern) for pattern in self.permissions)

    def watches_role(self, name: str) -> bool:
        """Whether a role is on the watch list."""
        return any(fnmatchcase(name, pattern) for pattern in self.roles)


NO_RULES = AlertRules()


def parse_rules(found: object) -> AlertRules:
    """The rules in a JSON value. Raises ValueError, which says what is wrong with which part."""
    rules = _object(found, "the file")
    known = {"watch", "many_grants", "first_time_actor", "failed_authentication"}
    _refuse_unknown(rules, known, "")
    watch = _object(rules.get("watch", {}), "watch")
    _refuse_unknown(watch, {"permissions", "roles"}, "watch.")
    first_time = rules.get("first_time_actor", False)
    if not isinstance(first_time, bool):
        raise ValueError("first_time_actor: must be true or false")  # noqa: TRY004
    return AlertRules(
        _names(watch.get("permissions", []), "watch.permissions"),
        _names(watch.get("roles", []), "watch.roles"),
        _threshold(rules.get("many_grants"), "many_grants"),
        first_time,
        _threshold(rules.get("failed_authentication"), "failed_authentication"),
    )


def _object(value: object, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: must be a JSON object")  # noqa: TRY004
    return value


def _refuse_unknown(found: Mapping[str, Any], known: set[str], place: str) -> None:
    for name in found:
        if name not in known:
            raise ValueError(f"{place}{name}: is no rule; there are {', '.join(sorted(known))}")


def _names(value: object, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"{place}: must be a list of names")
    return tuple(value)


def _threshold(value: object, place: str) -> Threshold | None:
    if value is None:
        return None
    found = _object(value, place)
    _refuse_unknown(found, {"more_than", "seconds"}, f"{place}.")
    numbers = []
    for name, most in (("more_than", 1_000_000), ("seconds", _LONGEST_WINDOW)):
        number = found.get(name)
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
            raise ValueError(f"{place}.{name}: must be a whole number from 1 to {most}")
        numbers.append(number)
    return Threshold(numbers[0], timedelta(seconds=numbers[1]))
