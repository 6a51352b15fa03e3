"""The data set: a tenant of any number of users, and what is true of them by arithmetic alone.

There are 1000 roles with four permissions each. Every user holds ten of them, in 5000 different
combinations, and the first 100 000 users hold one role in common.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

ROLES = 1000
COMBINATIONS = 5000
OWN_ROLES = 10
VERBS = ("read", "write", "list", "remove")
EVERYBODY = "everybody"
EVERYBODY_MAY = "enter"
EVERYBODY_MOST = 100_000


def user_name(number: int) -> str:
    """The user with this number; names sort as numbers do."""
    return f"user-{number:08}"


def roles_of(number: int) -> list[int]:
    """The numbers of the roles of a user, all different."""
    base, turn = number % ROLES, number % COMBINATIONS // ROLES
    return [(base + step * (97 + 2 * turn)) % ROLES for step in range(OWN_ROLES)]


def policy() -> list[dict[str, str]]:
    """All roles and grants as changes."""
    names = [f"role-{number}" for number in range(ROLES)]
    changes = [{"op": "add_role", "role": name} for name in (*names, EVERYBODY)]
    changes += [
        {"op": "grant", "role": name, "permission": f"area-{number}:{verb}"}
        for number, name in enumerate(names)
        for verb in VERBS
    ]
    return [*changes, {"op": "grant", "role": EVERYBODY, "permission": EVERYBODY_MAY}]


def rows(users: int, ids: dict[str, int]) -> Iterator[tuple[str, int]]:
    """All memberships as (user, role id), ordered, with ids by role name."""
    for number in range(users):
        held = [ids[f"role-{role}"] for role in roles_of(number)]
        if number < EVERYBODY_MOST:
            held[-1] = ids[EVERYBODY]
        user = user_name(number)
        for role_id in sorted(held):
            yield user, role_id


def question(number: int, chance: random.Random) -> tuple[str, str, bool]:
    """A user, a permission, and whether the one has the other; yes as often as no."""
    verb = chance.choice(VERBS)
    expected = chance.random() < 0.5
    # The role after a user's first is never one of theirs: their steps are longer.
    role = chance.choice(roles_of(number)[:-1]) if expected else (number + 1) % ROLES
    return user_name(number), f"area-{role}:{verb}", expected
