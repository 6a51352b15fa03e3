"""Was a recorded history possible? Checked exactly and in n log n. Pure.

Every operation was recorded with the instants of its invocation and its return, by one clock. A
tenant's policy events are the order in which its writes took effect, one revision each, so there
is nothing to search for:

C0  only answers that the contract knows: never a 500
C1  an answer is the state at its revision, rebuilt from the events
C2  a revision is at least that of every write that had returned before the invocation
C3  and no write that had not been invoked before the return can be in it
C4  revisions of writes follow real time, without gap and without double use
C5  revisions seen by checks that do not overlap never go back, whichever server answered
C6  without looking at any revision: an allow needs a way that may have been in force, a deny that
    no way was in force for certain
C8  what was acknowledged is in the audit trail once, what was refused is not, and what is not
    known is there once or not at all
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from authsvc.records import Change
from replay import NotEffective, Policy, apply_event, covers

FOREVER = 1 << 62
REFUSALS = frozenset({503, 429, 409})
_WIDTH = 48
_AT = datetime(2026, 1, 1, tzinfo=UTC)

Kind = Literal["write", "check", "batch"]
Outcome = Literal["ok", "refused", "unknown"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One request, or one write of a command. Instants are nanoseconds.

    ``t_return`` is None when no answer came. ``effects`` is the number of changes that an
    acknowledged write said it made; ``revision`` what came with an answer.
    """

    op_id: str
    client: int
    server: str
    kind: Kind
    tenant: str
    t_invoke: int
    t_return: int | None
    outcome: Outcome
    changes: tuple[Change, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    answer: tuple[bool, ...] = ()
    effects: int = 0
    revision: int = 0
    status: int = 200
    error: str = ""

    @property
    def end(self) -> int:
        """When its effect was there, or was never to come; an unknown one may come at any time."""
        return FOREVER if self.outcome == "unknown" or self.t_return is None else self.t_return

    @property
    def told(self) -> str:
        """What was asked and what was answered, for people."""
        asked = [f"{user} {permission}?" for user, permission in self.questions]
        asked += [_told(change) for change in self.changes]
        shown = ", ".join(asked[:3]) + (f" (+{len(asked) - 3})" if len(asked) > 3 else "")
        if self.outcome != "ok":
            return f"{shown} -> {self.outcome} {self.status} {self.error}".rstrip()
        said = ",".join("yes" if yes else "no" for yes in self.answer[:3]) or f"{self.effects} made"
        return f"{shown} -> {said} @{self.revision}"

    def as_json(self) -> dict[str, Any]:
        """What ``from_json`` reads."""
        row = asdict(self)
        row["changes"] = [
            {name: value for name, value in change.items() if value} for change in row["changes"]
        ]
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Operation:
        """What ``as_json`` wrote."""
        return cls(
            **row
            | {
                "changes": tuple(Change(**change) for change in row["changes"]),
                "questions": tuple((user, permission) for user, permission in row["questions"]),
                "answer": tuple(row["answer"]),
            }
        )


class Event(NamedTuple):
    """One policy event of a tenant, as stored."""

    seq: int
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule, with the fewest operations that show it."""

    rule: str
    text: str
    operations: tuple[Operation, ...] = field(default=())

    @property
    def known_at(self) -> int:
        """When the last of its operations had returned."""
        ends = [op.t_return or op.t_invoke for op in self.operations]
        return max(ends, default=FOREVER)

    def __str__(self) -> str:
        return "\n".join([f"{self.rule}: {self.text}", *timeline(self.operations)])


def _told(change: Change) -> str:
    words = (change.op, change.user, change.role, change.permission, change.parent)
    return " ".join(word for word in words if word)


def timeline(operations: Sequence[Operation]) -> Iterator[str]:
    """One line for each operation, its bar on a common scale."""
    if not operations:
        return
    begin = min(op.t_invoke for op in operations)
    finish = max(op.t_return or op.t_invoke for op in operations)
    scale = max(finish - begin, 1) / (_WIDTH - 1)
    yield f"    0 ms{'':{_WIDTH - 6}}{(finish - begin) / 1e6:.3f} ms"
    for op in sorted(operations, key=lambda one: one.t_invoke):
        left = int((op.t_invoke - begin) / scale)
        right = _WIDTH - 1 if op.t_return is None else int((op.t_return - begin) / scale)
        tip = ">" if op.end == FOREVER else "|"
        bar = " " * left + "|" + "-" * (right - left - 1) + (tip if right > left else "")
        yield f"    {bar:{_WIDTH}}  {op.op_id} on {op.server}: {op.told}"


def check(
    operations: Iterable[Operation], events: Mapping[str, Sequence[Event]]
) -> list[Violation]:
    """Everything that is wrong with a history; ``events`` are each tenant's, in order."""
    by_tenant: dict[str, list[Operation]] = {tenant: [] for tenant in events}
    for op in operations:
        by_tenant[op.tenant].append(op)
    found: list[Violation] = []
    for tenant, ops in by_tenant.items():
        history = _History(tenant, ops, events[tenant])
        for rule in _RULES:
            found.extend(rule(history))
    return found


class _History:
    """One tenant's operations and events, and who made which event."""

    def __init__(self, tenant: str, ops: list[Operation], events: Sequence[Event]) -> None:
        self.tenant = tenant
        self.ops = sorted(ops, key=lambda op: op.t_invoke)
        self.events = events
        self.by_id = {op.op_id: op for op in ops}
        self.made: dict[str, list[Event]] = {}
        for event in events:
            self.made.setdefault(event.payload.get("request_id") or "", []).append(event)
        self.answered = [op for op in self.ops if op.outcome == "ok"]

    def author(self, event: Event) -> Operation | None:
        return self.by_id.get(event.payload.get("request_id") or "")

    def effective(self, op: Operation) -> bool:
        """Whether a write changed anything: what it said, or what was found if it said nothing."""
        return op.kind == "write" and (op.effects > 0 or bool(self.made.get(op.op_id)))


def _known_answers(history: _History) -> Iterator[Violation]:
    """C0."""
    for op in history.ops:
        missing = op.status == 404 and op.error == "role_not_found" and op.kind == "write"
        if op.status not in REFUSALS | {200, 0} and not missing:
            yield Violation("C0 answers", f"{op.status} {op.error}", (op,))
        elif op.outcome == "ok" and len(op.answer) != len(op.questions):
            yield Violation("C0 answers", "as many answers as questions", (op,))


def _state(history: _History) -> Iterator[Violation]:
    """C1, for the answers of checks and for writes that found nothing to change."""
    claims = [op for op in history.answered if op.kind != "write" or not op.effects]
    claims.sort(key=lambda op: op.revision)
    policy, position = Policy(), 0
    known: dict[tuple[str, str], bool] = {}
    for op in claims:
        while position < len(history.events) and history.events[position].seq <= op.revision:
            event = history.events[position]
            try:
                apply_event(policy, event.seq, _AT, event.payload)
            except (NotEffective, KeyError) as error:
                yield Violation("C1 state", f"event {event.seq} does not follow: {error!r}")
                return
            position += 1
            known.clear()
        if position == 0 or history.events[position - 1].seq != op.revision:
            text = f"revision {op.revision} was never written"
            yield Violation("C1 state", text, (op,))
            continue
        for (user, permission), said in zip(op.questions, op.answer, strict=False):
            true = known.get((user, permission))
            if true is None:
                true = policy.user_can(user, permission, None, _AT)
                known[user, permission] = true
            if said != true:
                yield _wrong_answer(history, op, user, permission, said=said)
                break
        for change in op.changes:
            if not in_force(policy, change):
                text = f"nothing to change at {op.revision}, but '{_told(change)}' was to be done"
                yield Violation("C1 state", text, (op,))


def _wrong_answer(
    history: _History, op: Operation, user: str, permission: str, *, said: bool
) -> Violation:
    """Name the write that made the answer what it should have been."""
    policy = Policy()
    turned, before = 0, False
    for event in history.events[: op.revision]:
        apply_event(policy, event.seq, _AT, event.payload)
        if policy.user_can(user, permission, None, _AT) != before:
            before, turned = not before, event.seq
    text = f"'{user} {permission}?' answered {said} at {op.revision}, where it is {before}"
    if not turned:
        return Violation("C1 state", f"{text} since ever", (op,))
    author = history.author(history.events[turned - 1])
    shown = (author, op) if author else (op,)
    return Violation("C1 state", f"{text} since {turned}", shown)


def in_force(policy: Policy, change: Change) -> bool:
    """Whether a policy is already as a change wants it."""
    ids = {stored.name: role_id for role_id, stored in policy.roles.items()}
    role, parent = ids.get(change.role, 0), ids.get(change.parent, 0)
    holds = {
        "role": role != 0,
        "permission": (role, change.permission) in policy.grants,
        "membership": any(key[:2] == (change.user, role) for key in policy.memberships),
        "role_parent": (role, parent) in policy.edges,
        "user": any(key[0] == change.user for key in policy.memberships),
    }[_KINDS[change.op]]
    return holds == change.op.startswith(("add_", "grant"))


_KINDS = {
    "add_role": "role",
    "remove_role": "role",
    "grant": "permission",
    "revoke": "permission",
    "add_member": "membership",
    "remove_member": "membership",
    "add_parent": "role_parent",
    "remove_parent": "role_parent",
    "remove_user": "user",
}


class _Latest:
    """The operation with the highest revision among those that have returned by an instant.

    Asked with instants that never go back.
    """

    def __init__(self, ops: Iterable[Operation]) -> None:
        self._ops = sorted(ops, key=lambda op: op.end)
        self._next = 0
        self._highest: Operation | None = None

    def before(self, instant: int) -> Operation | None:
        while self._next < len(self._ops) and self._ops[self._next].end < instant:
            op = self._ops[self._next]
            if self._highest is None or op.revision > self._highest.revision:
                self._highest = op
            self._next += 1
        return self._highest


def _order(history: _History) -> Iterator[Violation]:
    """C2, C4 and C5: revisions follow real time."""
    wrote = _Latest(op for op in history.answered if op.kind == "write")
    asked = _Latest(op for op in history.answered if op.kind != "write")
    for op in history.ops:
        written, seen = wrote.before(op.t_invoke), asked.before(op.t_invoke)
        if history.effective(op):
            made = history.made.get(op.op_id)
            first = made[0].seq if made else op.revision - op.effects + 1
            for earlier in (written, seen):
                if earlier is not None and first <= earlier.revision:
                    text = f"wrote {first} although {earlier.revision} had been answered"
                    yield Violation("C4 order of writes", text, (earlier, op))
        elif op.outcome == "ok":
            if written is not None and op.revision < written.revision:
                text = f"answered from {op.revision} although {written.revision} had been written"
                yield Violation("C2 freshness", text, (written, op))
            if seen is not None and op.revision < seen.revision:
                text = f"answered from {op.revision} although {seen.revision} had been seen"
                yield Violation("C5 monotonic", text, (seen, op))


def _no_future(history: _History) -> Iterator[Violation]:
    """C3."""
    authors = [history.author(event) for event in history.events]
    latest: list[Operation | None] = []
    for author in authors:
        last = latest[-1] if latest else None
        later = author and (last is None or author.t_invoke > last.t_invoke)
        latest.append(author if later else last)
    for op in history.answered:
        if 0 < op.revision <= len(latest):
            author = latest[op.revision - 1]
            if author is not None and author.t_invoke > op.end:
                text = f"answered from {op.revision}, which was yet to be written"
                yield Violation("C3 no future", text, (op, author))


def _reconciled(history: _History) -> Iterator[Violation]:
    """C8, and what C4 says about numbers."""
    numbers = [event.seq for event in history.events]
    if numbers != list(range(1, len(numbers) + 1)):
        yield Violation("C4 gapless", f"the events of {history.tenant} are not 1 to n")
    claimed: Counter[int] = Counter()
    for op in history.ops:
        made = history.made.get(op.op_id, [])
        most = len(op.changes) if op.outcome == "unknown" else op.effects
        if not op.effects <= len(made) <= most:
            text = f"{op.outcome} with {op.effects} changes, in the audit trail {len(made)} times"
            yield Violation("C8 reconciliation", text, (op,))
            continue
        first = op.revision - op.effects + 1 if op.outcome == "ok" else made[0].seq if made else 0
        if [event.seq for event in made] != list(range(first, first + len(made))):
            text = f"revisions {[event.seq for event in made]} in the audit trail"
            yield Violation("C4 gapless", text, (op,))
        wanted = iter(op.changes)
        if not all(any(tells(event.payload, change) for change in wanted) for event in made):
            yield Violation("C8 reconciliation", "the audit trail tells another change", (op,))
        claimed.update(range(first, first + op.effects))
    for seq, count in claimed.items():
        if count > 1:
            yield Violation("C4 gapless", f"revision {seq} was acknowledged {count} times")
    for event in history.events:
        if history.author(event) is None and event.payload["entity_type"] not in ("tenant", "key"):
            yield Violation("C8 reconciliation", f"event {event.seq} was written by nobody")


def tells(payload: dict[str, Any], change: Change) -> bool:
    """Whether an event is what a change leaves in the audit trail."""
    kind = _KINDS[change.op]
    action = {
        "role": ("create", "delete"),
        "permission": ("grant", "revoke"),
        "membership": ("add", "remove"),
        "role_parent": ("add", "remove"),
        "user": ("", "delete"),
    }[kind][not change.op.startswith(("add_", "grant"))]
    name = {"permission": change.permission, "membership": change.user, "user": change.user}
    details = payload["details"]
    return (
        (payload["action"], payload["entity_type"]) == (action, kind)
        and payload["entity_id"] == name.get(kind, change.role)
        and (kind not in ("permission", "membership") or details["role"] == change.role)
        and (kind != "role_parent" or details["parent"] == change.parent)
    )


Fact = tuple[str, str, str]
"""Something that is in force or not: ``("membership", user, role)`` and the like."""


def _fact(change: Change) -> Fact:
    kind = _KINDS[change.op]
    if kind == "permission":
        return kind, change.role, change.permission
    if kind in ("membership", "user"):
        return kind, change.user, change.role
    return kind, change.role, change.parent


def _highest(ordered: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The first numbers, and how high the second ones have been up to each."""
    ordered.sort()
    return [one for one, _ in ordered], list(accumulate((other for _, other in ordered), max))


class _InForce:
    """When a fact may have been in force, and when it was for certain, from requests alone.

    A write that found nothing to change confirms the fact as well as one that changed it.
    """

    def __init__(self, adding: list[Operation], removing: list[Operation]) -> None:
        self.adding, self.removing = adding, removing
        ok = [op for op in removing if op.outcome == "ok"]
        self._removed = _highest([(op.end, op.t_invoke) for op in ok])
        self._added = _highest([(op.t_invoke, op.end) for op in adding])
        ok = [op for op in adding if op.outcome == "ok"]
        self._confirmed = _highest([(op.end, op.t_invoke) for op in ok])
        self._doubted = _highest([(op.t_invoke, op.end) for op in removing])

    @staticmethod
    def _until(found: tuple[list[int], list[int]], instant: int) -> int:
        index = bisect_left(found[0], instant)
        return found[1][index - 1] if index else -1

    def possible(self, begin: int, end: int) -> bool:
        """Some addition began before the end, and none of the removals that were over before the
        beginning began after that addition was over."""
        removed = self._until(self._removed, begin)
        added = self._until(self._added, end)
        return added >= 0 and added >= removed

    def certain(self, begin: int, end: int) -> bool:
        """Some addition was over before the beginning, and whatever removal began before the end
        was over before that addition began."""
        doubted = self._until(self._doubted, end)
        confirmed = self._until(self._confirmed, begin)
        return confirmed >= 0 and confirmed >= doubted


class _Ways:
    """The ways from users over roles to permissions, as requests alone tell of them."""

    def __init__(self, ops: Iterable[Operation]) -> None:
        adding: dict[Fact, list[Operation]] = {}
        removing: dict[Fact, list[Operation]] = {}
        going: dict[tuple[str, str], list[Operation]] = {}
        for op in ops:
            if op.kind != "write" or op.outcome == "refused":
                continue
            for change in op.changes:
                fact = _fact(change)
                adds = change.op.startswith(("add_", "grant"))
                (adding if adds else removing).setdefault(fact, []).append(op)
                if change.op in ("remove_role", "remove_user"):
                    going.setdefault((fact[0], change.role or change.user), []).append(op)
        self.facts: dict[Fact, _InForce] = {}
        self.roles_of: dict[str, list[str]] = {}
        self.above: dict[str, list[str]] = {}
        self.grants_of: dict[str, list[str]] = {}
        place = {
            "membership": self.roles_of,
            "role_parent": self.above,
            "permission": self.grants_of,
        }
        for fact, added in adding.items():
            kind, one, other = fact
            removed = list(removing.get(fact, ()))
            if kind != "role":
                place[kind].setdefault(one, []).append(other)
                removed += [op for end in _ends(fact) for op in going.get(end, ())]
            self.facts[fact] = _InForce(added, removed)

    def way(
        self, user: str, permission: str, holds: Callable[[_InForce], bool]
    ) -> list[Fact] | None:
        """Facts that lead from the user to the permission, all of which hold; None without any."""
        came: dict[str, list[Fact]] = {}
        queue: list[str] = []
        for role in self.roles_of.get(user, ()):
            fact = ("membership", user, role)
            if holds(self.facts[fact]):
                came[role] = [fact]
                queue.append(role)
        for role in queue:
            for grant in self.grants_of.get(role, ()):
                fact = ("permission", role, grant)
                if covers(grant, permission) and holds(self.facts[fact]):
                    return [*came[role], fact]
            for parent in self.above.get(role, ()):
                fact = ("role_parent", role, parent)
                if parent not in came and holds(self.facts[fact]):
                    came[parent] = [*came[role], fact]
                    queue.append(parent)
        return None

    def last_removal(self, user: str, permission: str, before: int) -> list[Operation]:
        """The removal nearest to an instant of anything that could have been a way's end."""
        found = [
            op
            for fact, known in self.facts.items()
            if (fact[0] == "membership" and fact[1] == user)
            or (fact[0] == "permission" and covers(fact[2], permission))
            for op in known.removing
            if op.outcome == "ok" and op.end < before
        ]
        return [max(found, key=lambda op: op.end)] if found else []


def _ends(fact: Fact) -> tuple[tuple[str, str], ...]:
    """What a fact goes with when it goes."""
    kind, one, other = fact
    if kind == "membership":
        return ("user", one), ("role", other)
    if kind == "permission":
        return (("role", one),)
    return ("role", one), ("role", other)


def _ways(history: _History) -> Iterator[Violation]:
    """C6."""
    ways = _Ways(history.ops)
    for op in history.ops:
        begin, end = op.t_invoke, op.end

        def possible(known: _InForce, begin: int = begin, end: int = end) -> bool:
            return known.possible(begin, end)

        def certain(known: _InForce, begin: int = begin, end: int = end) -> bool:
            return known.certain(begin, end)

        if op.error == "role_not_found":
            names = {name for c in op.changes for name in (c.role, c.parent) if name}
            known = [ways.facts.get(("role", name, "")) for name in names]
            if op.kind != "write" or all(one and certain(one) for one in known):
                yield Violation("C6 ways", "a role was not found that was there", (op,))
        if op.outcome != "ok":
            continue
        for (user, permission), said in zip(op.questions, op.answer, strict=False):
            if said and ways.way(user, permission, possible) is None:
                text = f"'{user} {permission}?' was allowed with no way left"
                shown = (*ways.last_removal(user, permission, begin), op)
                yield Violation("C6 ways", text, shown)
            elif not said and (way := ways.way(user, permission, certain)) is not None:
                text = f"'{user} {permission}?' was denied although its way was in force"
                adding = [
                    max((a for a in ways.facts[fact].adding if a.end < begin), key=lambda a: a.end)
                    for fact in way
                ]
                yield Violation("C6 ways", text, (*dict.fromkeys(adding), op))


_RULES = (_known_answers, _state, _order, _no_future, _reconciled, _ways)
