"""The history checker finds each kind of violation, and nothing in a history that was possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from authsvc.records import Change
from history.checker import Event, Operation, check
from history.run import World, shown
from services import PostgresServer

GRANT = Change("grant", role="admin", permission="deploy")
REVOKE = Change("revoke", role="admin", permission="deploy")
SETUP = (
    Change("add_role", role="admin"),
    Change("add_role", role="lead"),
    Change("add_parent", role="lead", parent="admin"),
    Change("add_member", user="alice", role="lead"),
)
"""Revisions 2 to 5; the tenant itself is revision 1."""


def payload(change: Change, op_id: str | None) -> dict[str, Any]:
    """The event that a change leaves."""
    action, kind, name, details = {
        "add_role": ("create", "role", change.role, {"description": ""}),
        "remove_role": ("delete", "role", change.role, {"description": ""}),
        "add_parent": ("add", "role_parent", change.role, {"parent": change.parent}),
        "grant": ("grant", "permission", change.permission, {"role": change.role}),
        "revoke": ("revoke", "permission", change.permission, {"role": change.role}),
        "add_member": (
            "add",
            "membership",
            change.user,
            {"role": change.role, "scope": None, "not_before": None, "expires_at": None},
        ),
    }[change.op]
    return {
        "action": action,
        "entity_type": kind,
        "entity_id": name,
        "details": details,
        "request_id": op_id,
    }


TENANT: dict[str, Any] = {
    "action": "create",
    "entity_type": "tenant",
    "entity_id": "acme",
    "details": {},
    "request_id": None,
}


class Written:
    """A history written by hand, and what the database has of it. Instants are milliseconds, those
    of what was there before are below 0.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.events = [Event(1, TENANT)]
        for index, change in enumerate(SETUP):
            self.write(change, index * 2 - 100, index * 2 - 99)

    def add(self, kind: Any, begin: int, end: int | None, **what: Any) -> Operation:
        """Record an operation."""
        op = Operation(
            f"op-{len(self.operations)}",
            what.pop("client", 0),
            what.pop("server", "a"),
            kind,
            "acme",
            (begin + 1000) * 1_000_000,
            None if end is None else (end + 1000) * 1_000_000,
            what.pop("outcome", "ok"),
            **what,
        )
        self.operations.append(op)
        return op

    def write(self, change: Change, begin: int, end: int | None, **what: Any) -> Operation:
        """A write that takes effect; its event is written unless ``event`` is false."""
        stored = what.pop("event", True)
        revision = len(self.events) + 1
        if what.get("outcome", "ok") == "ok":
            what = {"revision": revision, "effects": 1} | what
        op = self.add("write", begin, end, changes=(change,), **what)
        if stored:
            self.events.append(Event(revision, payload(change, op.op_id)))
        return op

    def ask(self, begin: int, end: int, revision: int, answer: bool, **what: Any) -> Operation:
        """A check whether alice may deploy."""
        return self.add(
            "check",
            begin,
            end,
            revision=revision,
            questions=(("alice", "deploy"),),
            answer=(answer,),
            **what,
        )

    def rules(self) -> list[str]:
        """Which rules are broken."""
        found = check(self.operations, {"acme": self.events})
        for violation in found:
            # Every violation can be shown.
            assert str(violation).startswith(violation.rule)
        return sorted({violation.rule.partition(" ")[0] for violation in found})


@pytest.fixture
def written() -> Written:
    """A role for alice, which may do nothing yet, at revision 5."""
    return Written()


def test_a_possible_history_has_no_violation(written: Written) -> None:
    written.ask(0, 1, 5, False)
    # Overlapping a write: both answers are possible.
    written.write(GRANT, 2, 8)
    written.ask(3, 4, 5, False, server="b")
    written.ask(5, 6, 6, True)
    written.ask(9, 10, 6, True, server="b")
    # Nothing to change, refused, not known and not done, not known and done.
    written.write(GRANT, 11, 12, revision=6, effects=0, event=False)
    written.write(REVOKE, 13, 14, outcome="refused", status=503, event=False)
    written.write(REVOKE, 15, None, outcome="unknown", event=False)
    written.ask(16, 17, 6, True)
    written.write(REVOKE, 18, None, outcome="unknown")
    written.ask(19, 20, 6, True)
    written.ask(21, 22, 7, False, server="b")
    written.write(
        replace(GRANT, role="none"), 23, 24,
        outcome="refused", status=404, error="role_not_found", event=False,
    )  # fmt: skip
    assert written.rules() == []


def test_c0_an_internal_error(written: Written) -> None:
    written.ask(0, 1, 0, False, outcome="refused", status=500, error="internal_error")
    assert written.rules() == ["C0"]


def test_c1_an_answer_that_is_not_the_state_at_its_revision(written: Written) -> None:
    written.write(GRANT, 0, 1)
    written.write(REVOKE, 2, 5)
    # The revision is the new one, what was remembered is the old one.
    written.ask(3, 4, 7, True)
    assert written.rules() == ["C1"]


def test_c1_a_write_that_wrongly_found_nothing_to_change(written: Written) -> None:
    written.write(GRANT, 0, 1, revision=5, effects=0, event=False)
    assert written.rules() == ["C1"]


def test_c1_a_revision_that_was_never_written(written: Written) -> None:
    written.ask(0, 1, 6, False)
    assert written.rules() == ["C1"]


def test_c2_and_c6_an_answer_from_before_an_acknowledged_write(written: Written) -> None:
    written.write(GRANT, 0, 1)
    written.write(REVOKE, 2, 3)
    written.ask(4, 5, 6, True, server="b")
    assert written.rules() == ["C2", "C6"]


def test_c2_alone_when_the_write_was_about_something_else(written: Written) -> None:
    written.write(replace(GRANT, permission="pay"), 0, 1)
    written.ask(2, 3, 5, False)
    assert written.rules() == ["C2"]


def test_c3_an_answer_from_a_write_yet_to_come(written: Written) -> None:
    written.ask(0, 1, 6, True)
    written.write(GRANT, 2, 3)
    assert written.rules() == ["C3", "C4", "C6"]


def test_c4_writes_against_their_real_order(written: Written) -> None:
    written.write(GRANT, 4, 5)
    written.write(replace(GRANT, permission="pay"), 0, 1)
    assert written.rules() == ["C3", "C4"]


def test_c4_a_gap(written: Written) -> None:
    written.write(GRANT, 0, 1)
    seq, said = written.events.pop()
    written.events.append(Event(seq + 1, said))
    assert "C4" in written.rules()


def test_c4_a_revision_that_was_given_twice(written: Written) -> None:
    written.write(GRANT, 0, 4)
    written.write(replace(GRANT, permission="pay"), 1, 5, revision=6)
    assert written.rules() == ["C4"]


def test_c5_a_revision_that_goes_back_between_servers(written: Written) -> None:
    written.write(GRANT, 0, 9)
    written.ask(1, 2, 6, True, server="a")
    written.ask(3, 4, 5, False, server="b")
    assert written.rules() == ["C5"]


def test_c6_a_lying_revision_hides_nothing(written: Written) -> None:
    """The events agree with a wrong answer: only the requests themselves tell."""
    written.write(GRANT, 0, 1)
    revoked = written.write(REVOKE, 2, 3)
    written.events.pop()
    written.operations[-1] = replace(revoked, effects=0, revision=6)
    written.ask(4, 5, 6, True)
    # That the write lied is told by C1, too; that the answer was wrong, by C6 alone.
    assert written.rules() == ["C1", "C6"]


@pytest.mark.parametrize("through", ["role", "parent", "member"])
def test_c6_a_denial_although_the_way_was_in_force(written: Written, through: str) -> None:
    written.write(GRANT, 0, 1)
    written.ask(2, 3, 5, False)
    assert "C6" in written.rules()
    # Not when any part of the way may have gone meanwhile.
    going = {
        "role": Change("remove_role", role="lead"),
        "parent": Change("remove_parent", role="lead", parent="admin"),
        "member": Change("remove_member", user="alice", role="lead"),
    }[through]
    written.write(going, 2, None, outcome="unknown", event=False)
    assert "C6" not in written.rules()


def test_c6_a_role_that_was_not_found_but_was_there(written: Written) -> None:
    written.write(GRANT, 0, 1, outcome="refused", status=404, error="role_not_found", event=False)
    assert written.rules() == ["C6"]


@pytest.mark.parametrize(
    ("outcome", "event"), [("ok", False), ("refused", True)], ids=["lost", "done all the same"]
)
def test_c8_what_was_said_and_what_is_stored(written: Written, outcome: str, event: bool) -> None:
    status = 200 if outcome == "ok" else 503
    written.write(GRANT, 0, 1, outcome=outcome, status=status, event=event)
    assert "C8" in written.rules()


def test_c8_an_effect_that_came_twice(written: Written) -> None:
    op = written.write(GRANT, 0, None, outcome="unknown")
    written.events.append(Event(7, payload(REVOKE, op.op_id)))
    assert "C8" in written.rules()


def test_c8_another_change_than_was_asked_for(written: Written) -> None:
    op = written.write(GRANT, 0, 1, event=False)
    written.events.append(Event(6, payload(replace(GRANT, permission="pay"), op.op_id)))
    assert "C8" in written.rules()


def test_c8_an_event_of_nobody(written: Written) -> None:
    written.events.append(Event(6, payload(GRANT, "somebody")))
    assert written.rules() == ["C8"]


def test_operations_survive_their_file(written: Written) -> None:
    written.write(GRANT, 0, None, outcome="unknown")
    written.ask(1, 2, 5, False)
    read: Sequence[Operation] = [Operation.from_json(op.as_json()) for op in written.operations]
    assert read == written.operations


def test_two_servers_under_load_keep_every_promise(postgres_server: PostgresServer) -> None:
    with World("postgresql", postgres=postgres_server) as world:
        world.load(5)
        report = world.check()
    assert list(shown(report.violations)) == []
    assert {op.server for op in world.operations} == {"a", "b"}
    answered = [op for op in world.operations if op.outcome == "ok"]
    assert sum(op.kind == "write" and op.effects > 0 for op in answered) >= 20
    for yes in (True, False):
        assert sum(op.answer.count(yes) for op in answered) >= 50
