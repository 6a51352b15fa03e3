"""The parts without I/O: the decision, the graph, the change set, the chain, cursors."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc import audit_chain, decision
from authsvc.change_set import ChangeSet, Touched
from authsvc.cursor import decode_cursor, encode_cursor
from authsvc.errors import InputError, NotFound, RoleCycle
from authsvc.records import EMPTY, GENESIS, AuditEvent, Change, Membership, Role, Stamp
from authsvc.role_graph import RoleGraph, RoleNode, covering
from replay import Bounds, NotEffective, Policy, StoredRole, apply_event, covers, replayed

TENANT = UUID("6f2d1c1e-4a0b-4a6e-9a52-1f6f0b1a2c3d")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)

# --- Wildcards -------------------------------------------------------------------------------

segments = st.lists(st.sampled_from(["a", "b", "", "a-b", "*x"]), min_size=1, max_size=4)
permissions = segments.map(":".join)
grants = st.one_of(permissions, segments.map(lambda parts: ":".join([*parts, "*"])))


@given(grants, permissions)
def test_a_grant_covers_what_the_rule_says(grant: str, permission: str) -> None:
    assert (grant in covering(permission)) is covers(grant, permission)


@pytest.mark.parametrize(
    ("grant", "permission", "covered"),
    [
        ("invoice:*", "invoice:read", True),
        ("invoice:*", "invoice", False),
        ("invoice:*", "invoice:line:read", False),
        ("invoice:line:*", "invoice:line:read", True),
        ("invoice:*", "invoices:read", False),
        ("invoice:*", "Invoice:read", False),
        ("invoice", "invoice", True),
        ("invoice", "invoice:read", False),
        ("a.*", "a.b", False),
    ],
)
def test_wildcards_by_example(grant: str, permission: str, covered: bool) -> None:
    assert (grant in covering(permission)) is covered
    assert covers(grant, permission) is covered


# --- Graph and decision ----------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> RoleGraph:
    """Acyclic graphs, with edges to roles that were not loaded among them."""
    size = draw(st.integers(1, 7))
    order = draw(st.permutations(range(1, size + 1)))
    nodes = []
    for place, role_id in enumerate(order):
        above = st.sampled_from([*order[:place], 99])
        parents = draw(st.sets(above, max_size=3))
        direct = draw(st.frozensets(grants, max_size=3))
        nodes.append(RoleNode(role_id, f"r{role_id}", tuple(sorted(parents)), direct))
    return RoleGraph(nodes)


def as_policy(graph: RoleGraph, memberships: list[Membership]) -> Policy:
    """The same in the model's form."""
    nodes = graph.nodes.values()
    return Policy(
        roles={node.id: StoredRole(node.name, "", NOON) for node in nodes},
        grants={(node.id, grant) for node in nodes for grant in node.grants},
        edges={(n.id, parent) for n in nodes for parent in n.parents if parent in graph.nodes},
        memberships={
            (m.user, m.role_id, m.scope): Bounds(m.not_before, m.expires_at) for m in memberships
        },
    )


@given(graphs(), st.integers(0, 8), st.integers(1, 7))
def test_reach_and_paths(graph: RoleGraph, start: int, goal: int) -> None:
    policy = as_policy(graph, [])
    if start not in graph.nodes:
        assert graph.reach(start) == {}
        assert graph.effective(start) == frozenset()
        return
    assert set(graph.reach(start)) == policy.above(start)
    assert graph.effective(start) == policy.effective(start)
    if goal in graph.reach(start):
        path = [policy.id_of(name) for name in graph.path(graph.reach(start), goal)]
        assert (path[0], path[-1]) == (start, goal)
        assert len(set(path)) == len(path)
        assert set(itertools.pairwise(path)) <= policy.edges


instants = st.none() | st.sampled_from([NOON - SECOND, NOON, NOON + SECOND])
scopes = st.sampled_from(["", "eu", "EU"])


@st.composite
def memberships_of_u(draw: st.DrawFn) -> list[Membership]:
    """What the user ``u`` holds, each role once per scope."""
    keys = draw(st.sets(st.tuples(st.integers(1, 7), scopes), max_size=4))
    return [Membership("u", role, scope, draw(instants), draw(instants)) for role, scope in keys]


@given(graphs(), memberships_of_u(), permissions, st.none() | scopes.filter(bool))
def test_decisions_and_their_grounds(
    graph: RoleGraph, memberships: list[Membership], permission: str, scope: str | None
) -> None:
    known = [m for m in memberships if m.role_id in graph.nodes]
    policy = as_policy(graph, known)
    arguments = (memberships, graph, permission, scope, NOON)
    allowed = decision.allowed(*arguments)
    assert allowed is policy.user_can("u", permission, scope, NOON)
    grounds = decision.grounds(*arguments)
    assert bool(grounds) is allowed
    assert len(set(grounds)) == len(grounds)
    expected = {
        (policy.name_of(r), grant)
        for held in policy.held("u", scope, NOON)
        for r, grant in policy.grants
        if r in policy.above(held) and covers(grant, permission)
    }
    assert {(ground.role, ground.permission) for ground in grounds} == expected
    if not allowed:
        reason = decision.denial(*arguments)
        leading = [m for m in known if policy.role_can(m.role_id, permission)]
        assert (reason == "no_such_user") is (not memberships)
        if memberships:
            assert (reason == "no_role_grants_it") is (not leading)


@pytest.mark.parametrize(
    ("not_before", "expires_at", "in_force"),
    [
        (None, None, True),
        (NOON, None, True),
        (NOON + timedelta(microseconds=1), None, False),
        (None, NOON, False),
        (None, NOON + timedelta(microseconds=1), True),
        (NOON, NOON, False),
    ],
)
def test_bounds_include_their_start_and_exclude_their_end(
    not_before: datetime | None, expires_at: datetime | None, in_force: bool
) -> None:
    assert decision.in_force(Membership("u", 1, "", not_before, expires_at), NOON) is in_force


def test_reasons_tell_what_is_nearest_to_allow() -> None:
    graph = RoleGraph([RoleNode(1, "r", (), frozenset({"p"})), RoleNode(2, "s", (), frozenset())])
    other, ended = Membership("u", 2, "", None, None), Membership("u", 1, "", None, NOON)
    later = Membership("u", 1, "a", NOON + SECOND, None)
    elsewhere = Membership("u", 1, "b", None, None)

    def reason(*held: Membership, scope: str | None = None) -> str:
        assert not decision.allowed(held, graph, "p", scope, NOON)
        return decision.denial(held, graph, "p", scope, NOON)

    assert reason() == "no_such_user"
    assert reason(other) == "no_role_grants_it"
    assert reason(other, ended) == "membership_expired"
    assert reason(other, later, scope="a") == "membership_not_started"
    assert reason(later) == "membership_not_started"
    assert reason(ended, later, scope="a") == "membership_not_started"
    assert reason(ended, elsewhere, scope="a") == "out_of_scope"


# --- Change sets -----------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c", "d"])
users = st.sampled_from(["u", "v"])
changes = st.one_of(
    st.builds(
        Change, st.just("add_role"), role=names, description=st.sampled_from([None, "", "x"])
    ),
    st.builds(Change, st.just("remove_role"), role=names),
    st.builds(
        Change,
        st.sampled_from(["grant", "revoke"]),
        role=names,
        permission=st.sampled_from(["p", "q"]),
    ),
    st.builds(Change, st.sampled_from(["add_parent", "remove_parent"]), role=names, parent=names),
    st.builds(
        Change, st.just("add_member"), role=names, user=users, scope=st.sampled_from([None, "s"]),
        not_before=instants, expires_at=instants,
    ),
    st.builds(
        Change, st.just("remove_member"), role=names, user=users,
        scope=st.sampled_from([None, "s"]),
    ),
    st.builds(Change, st.just("remove_user"), user=users),
)  # fmt: skip


def touched_by_all(policy: Policy) -> Touched:
    """The whole of a policy, as the write path would load what a list touches."""
    return Touched(
        roles={r.name: Role(i, *r) for i, r in policy.roles.items()},
        grants=set(policy.grants),
        memberships=[Membership(*key, *bounds) for key, bounds in policy.memberships.items()],
        edges=set(policy.edges),
        names={i: r.name for i, r in policy.roles.items()},
    )


def write_rows(policy: Policy, change_set: ChangeSet) -> None:
    """What the write path does to the tables, strict: nothing is written twice or removed twice."""
    rows = change_set.rows()
    for role_id in rows.roles_removed:
        del policy.roles[role_id]
        policy.grants = {g for g in policy.grants if g[0] != role_id}
        policy.edges = {e for e in policy.edges if role_id not in e}
        policy.memberships = {k: b for k, b in policy.memberships.items() if k[1] != role_id}
    for role in rows.roles_added:
        assert role.id not in policy.roles
        policy.roles[role.id] = StoredRole(role.name, role.description, role.created_at)
    for role_id, text in rows.descriptions:
        policy.roles[role_id] = policy.roles[role_id]._replace(description=text)
    assert rows.edges_removed <= policy.edges
    policy.edges -= rows.edges_removed
    assert rows.edges_added.isdisjoint(policy.edges)
    policy.edges |= rows.edges_added
    assert rows.grants_removed <= policy.grants
    policy.grants -= rows.grants_removed
    assert rows.grants_added.isdisjoint(policy.grants)
    policy.grants |= rows.grants_added
    for m in rows.memberships_removed:
        del policy.memberships[m.user, m.role_id, m.scope]
    for m in rows.memberships_rebound:
        assert (m.user, m.role_id, m.scope) in policy.memberships
        policy.memberships[m.user, m.role_id, m.scope] = Bounds(m.not_before, m.expires_at)
    for m in rows.memberships_added:
        assert (m.user, m.role_id, m.scope) not in policy.memberships
        assert m.role_id in policy.roles
        policy.memberships[m.user, m.role_id, m.scope] = Bounds(m.not_before, m.expires_at)


@given(st.lists(st.lists(changes, min_size=1, max_size=8), min_size=1, max_size=5))
def test_rows_are_the_sum_of_the_events(lists: list[list[Change]]) -> None:
    tables, told, seq = Policy(), Policy(), 1
    for wanted in lists:
        change_set = ChangeSet(touched_by_all(tables), seq, NOON)
        changed = 0
        for index, change in enumerate(wanted):
            try:
                effect = change_set.apply(index, change)
            except (NotFound, RoleCycle):
                break
            events = len(change_set.events)
            assert events == changed + effect.changed
            assert (effect.index, effect.op) == (index, change.op)
            assert effect.changed or not effect.updated
            changed = events
        else:
            for number, event in enumerate(change_set.events, seq):
                apply_event(told, number, NOON, event)
            seq += len(change_set.events)
            write_rows(tables, change_set)
            assert tables == told


@given(st.lists(changes, max_size=12))
def test_what_is_wanted_twice_is_done_once(wanted: list[Change]) -> None:
    for change in wanted:
        change_set = ChangeSet(Touched(), 1, NOON)
        for name in "abcd":
            change_set.apply(0, Change("add_role", role=name))
        try:
            change_set.apply(1, change)
        except RoleCycle:
            assert change.role == change.parent
            continue
        assert change_set.apply(2, change).changed is False


def test_errors_name_the_change_and_its_field() -> None:
    change_set = ChangeSet(Touched(), 1, NOON)
    change_set.apply(0, Change("add_role", role="a"), "changes.0")
    change_set.apply(1, Change("add_role", role="b"), "changes.1")
    change_set.apply(2, Change("add_parent", role="a", parent="b"), "changes.2")
    for change, field in (
        (Change("grant", role="x", permission="p"), "changes.3.role"),
        (Change("add_member", role="x", user="u"), "changes.3.role"),
        (Change("add_parent", role="x", parent="a"), "changes.3.role"),
        (Change("add_parent", role="a", parent="x"), "changes.3.parent"),
    ):
        with pytest.raises(NotFound) as missing:
            change_set.apply(3, change, "changes.3")
        assert (missing.value.field, missing.value.code) == (field, "role_not_found")
    with pytest.raises(RoleCycle) as cycle:
        change_set.apply(3, Change("add_parent", role="b", parent="a"), "changes.3")
    assert (cycle.value.field, "b -> a -> b" in cycle.value.message) == ("changes.3.parent", True)
    with pytest.raises(RoleCycle, match="a -> a"):
        change_set.apply(3, Change("add_parent", role="a", parent="a"))


# --- Chain -----------------------------------------------------------------------------------

payloads = st.lists(
    st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=9)),
    min_size=1,
    max_size=6,
)


def chained(contents: list[dict[str, Any]], start: Stamp = EMPTY) -> tuple[list[AuditEvent], Stamp]:
    """Events with these payloads, in two batches as two writes would append them."""
    middle = len(contents) // 2
    events = audit_chain.extend(TENANT, start, NOON, contents[:middle])
    stamp = Stamp(events[-1].seq, events[-1].hash) if events else start
    events += audit_chain.extend(TENANT, stamp, NOON + SECOND, contents[middle:])
    return events, Stamp(events[-1].seq, events[-1].hash)


@given(payloads)
def test_a_chain_says_what_was_written_and_is_whole(contents: list[dict[str, Any]]) -> None:
    events, end = chained(contents)
    assert [audit_chain.read_payload(event) for event in events] == contents
    assert [event.seq for event in events] == list(range(1, len(contents) + 1))
    assert audit_chain.first_broken(TENANT, EMPTY, events, end) is None
    half = len(events) // 2
    middle = Stamp(half, events[half - 1].hash if half else GENESIS)
    assert audit_chain.first_broken(TENANT, middle, events[half:], end) is None


def flipped(content: bytes, bit: int) -> bytes:
    place = bit // 8 % len(content)
    return content[:place] + bytes([content[place] ^ 1 << bit % 8]) + content[place + 1 :]


@given(
    payloads,
    st.integers(0, 5),
    st.sampled_from(["seq", "at", "payload_hash", "hash", "payload"]),
    st.integers(0, 4000),
)
def test_one_tampered_field_is_found_where_it_is(
    contents: list[dict[str, Any]], which: int, field: str, amount: int
) -> None:
    events, end = chained(contents)
    which %= len(events)
    event = events[which]
    changed: dict[str, Any] = {
        "seq": event.seq + 1 + amount,
        "at": event.at + timedelta(microseconds=1 + amount),
        "payload_hash": flipped(event.payload_hash, amount),
        "hash": flipped(event.hash, amount),
        "payload": flipped(event.payload, amount),
    }
    events[which] = replace(event, **{field: changed[field]})
    assert audit_chain.first_broken(TENANT, EMPTY, events, end) == which + 1


@given(payloads.filter(lambda contents: len(contents) > 1), st.data())
def test_lost_swapped_repeated_and_foreign_events_are_found(
    contents: list[dict[str, Any]], data: st.DataObject
) -> None:
    events, end = chained(contents)
    place = data.draw(st.integers(0, len(events) - 1))

    def broken(changed: list[AuditEvent], stamp: Stamp = end, tenant: UUID = TENANT) -> int | None:
        return audit_chain.first_broken(tenant, EMPTY, changed, stamp)

    assert broken(events[:place] + events[place + 1 :]) == place + 1
    assert broken([*events[: place + 1], *events[place:]]) == place + 2
    other = data.draw(st.integers(0, len(events) - 1).filter(lambda n: n != place))
    swapped = list(events)
    swapped[place], swapped[other] = events[other], events[place]
    assert broken(swapped) == min(place, other) + 1
    assert broken(events, tenant=UUID(int=TENANT.int ^ 1)) == 1
    assert broken(events, Stamp(end.revision, flipped(end.head, place))) == len(events)
    # A history made up from some event on does not reach the head that is known.
    rewritten = audit_chain.extend(TENANT, EMPTY, NOON, contents)
    assert broken(rewritten) == len(events)
    assert broken([*events[:place], *rewritten[place:]]) is not None


@given(payloads)
def test_hashes_tell_no_payload_by_guessing(contents: list[dict[str, Any]]) -> None:
    """Equal payloads have different hashes: 16 random bytes stand before each."""
    twice = audit_chain.extend(TENANT, EMPTY, NOON, [*contents, *contents])
    assert len({event.payload_hash for event in twice}) == len(twice)


def test_the_hash_stays_what_it_is() -> None:
    """Fixed vectors: a chain written by one version verifies with every later one."""
    payload = audit_chain.canonical({"b": "\N{SNOWMAN}", "a": [1, None]})
    assert payload == '{"a":[1,null],"b":"\N{SNOWMAN}"}'.encode()
    at = NOON + timedelta(microseconds=5)
    found = audit_chain.event_hash(TENANT, 7, at, GENESIS, b"x" * 32)
    spelled_out = (
        b"\x01\x01"
        + (b"\x10" + TENANT.bytes)
        + bytes.fromhex("08 0000000000000007")
        + (b"\x08" + (1772366400 * 10**6 + 5).to_bytes(8, "big"))
        + (b"\x20" + bytes(32))
        + (b"\x20" + b"x" * 32)
    )
    assert found == hashlib.sha256(spelled_out).digest()
    assert found.hex() == "74d7abcc1a8ebe1e1e4c3326a3a2409ce2089c58ace9983a5e81040c2313fe27"


def test_an_event_of_no_known_kind_cannot_be_replayed() -> None:
    events, _ = chained([{"action": "x", "entity_type": "y", "entity_id": "", "details": {}}])
    with pytest.raises(NotEffective):
        replayed(events)


# --- Cursors ---------------------------------------------------------------------------------

positions = st.lists(
    st.one_of(
        st.integers(0, 2**63 - 1),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=254),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
questions = st.lists(st.text(max_size=8), max_size=3)


@given(questions, positions)
def test_a_cursor_comes_back_as_its_position(question: list[str], position: Any) -> None:
    start = tuple("" if isinstance(part, str) else 0 for part in position)
    cursor = encode_cursor(question, position)
    assert cursor.isascii()
    assert cursor.replace("-", "").replace("_", "").isalnum()
    assert decode_cursor(question, cursor, start) == position
    assert decode_cursor(question, None, start) == start


@given(questions, questions, positions)
def test_a_cursor_of_another_question_is_refused(
    question: list[str], other: list[str], position: Any
) -> None:
    start = tuple("" if isinstance(part, str) else 0 for part in position)
    cursor = encode_cursor(question, position)
    if question != other:
        with pytest.raises(InputError):
            decode_cursor(other, cursor, start)
    for wrong in ((*start, 0), start[1:], tuple(0 if part == "" else "" for part in start)):
        with pytest.raises(InputError):
            decode_cursor(question, cursor, wrong)


def spelled(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.one_of(st.text(), st.binary().map(lambda b: base64.b64encode(b).decode()),
                 json_values.map(spelled)))  # fmt: skip
def test_garbage_is_refused_as_input(cursor: str) -> None:
    for start in ((0,), ("", ""), (0, "", 0)):
        with pytest.raises(InputError) as refused:
            decode_cursor(["q"], cursor, start)
        assert refused.value.details[0].field == "cursor"
        assert cursor not in refused.value.message or len(cursor) < 5


@given(st.integers() | st.booleans() | st.floats() | st.none() | st.text() | json_values)
def test_a_forged_position_is_a_possible_one_or_refused(part: Any) -> None:
    [mark, *_] = json.loads(base64.urlsafe_b64decode(encode_cursor(["q"], ()) + "==="))
    for example in (0, ""):
        try:
            [found] = decode_cursor(["q"], spelled([mark, part]), (example,))
        except InputError:
            continue
        assert found == part
        assert type(found) is type(example)
        assert 0 <= found < 2**63 if isinstance(found, int) else found.isascii()


@pytest.mark.parametrize(
    "cursor",
    ["", "=", "e30", "[" * 3000, spelled("[" * 400), "A" * 2049, "\ud800", "\x00", "é", "bnVsbA",
     base64.urlsafe_b64encode(b"[" * 1500).decode(), base64.b64encode(b"9" * 1500).decode()],
)  # fmt: skip
def test_odd_cursors_are_refused(cursor: str) -> None:
    with pytest.raises(InputError):
        decode_cursor(["q"], cursor, (0,))
