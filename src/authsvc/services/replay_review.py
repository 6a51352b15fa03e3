"""Whether the tables are what the audit trail leads to: rows that SQL put in, changed or took."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from authsvc.audit_bundle import BundleReader
from authsvc.audit_chain import first_broken, read_payload
from authsvc.database import Transaction
from authsvc.encryption import Unreadable
from authsvc.errors import DamagedError
from authsvc.records import EMPTY, AuditEvent
from authsvc.replay import ApiKeyTold, Bounds, DoesNotFollow, KeyTold, State
from authsvc.repositories.audit_pages import pages
from authsvc.repositories.field_ciphers import cipher_of
from authsvc.repositories.live_state import LiveState
from authsvc.repositories.retention import Retention

_ABOUT_THEN = timedelta(seconds=10)
MOST_FINDINGS = 1000
"""How many are told one by one."""


@dataclass(frozen=True, slots=True)
class Review:
    """What was found about one tenant; ``lacking`` is why nothing could be told, if so."""

    findings: list[str] = field(default_factory=list)
    lacking: str | None = None


def segments_of(archive: Path, tenant_id: UUID) -> list[Path]:
    """A tenant's files in a folder of segments, oldest first."""
    return sorted(archive.glob(f"{tenant_id}-*.jsonl"))


async def events_of(
    tx: Transaction, tenant_id: UUID, archive: Path | None = None
) -> AsyncIterator[AuditEvent]:
    """All events of a tenant from the first one on: segments of an archive, then the table's.

    Raises DamagedError if the archive does not hold what was pruned.
    """
    anchor = await Retention(tx).anchor(tenant_id)
    start = EMPTY if anchor is None else anchor.stamp
    reached = EMPTY
    if start != EMPTY and archive is not None:
        for path in segments_of(archive, tenant_id):
            reader = BundleReader(path)
            if reader.tenant_id != tenant_id or reader.after != reached:
                continue
            if first_broken(tenant_id, reached, reader.events(), reader.until) is not None:
                raise DamagedError(f"{path} is not what was pruned")
            for event in reader.events():
                yield event
            reached = reader.until
    if reached != start:
        raise DamagedError(
            f"events 1 to {start.revision} were pruned: name the folder of their segments with"
            " --archive"
        )
    async for page in pages(tx, tenant_id, start.revision):
        for stored in page:
            yield stored.event
        await asyncio.sleep(0)


async def replayed(tx: Transaction, tenant_id: UUID, archive: Path | None = None) -> State:
    """The state that a tenant's events lead to. Raises DoesNotFollow, DamagedError."""
    state = State()
    async for event in events_of(tx, tenant_id, archive):
        state.apply(event.seq, event.at, read_payload(event))
    return state


async def review_tenant(tx: Transaction, tenant_id: UUID, archive: Path | None = None) -> Review:
    """Compare a tenant's tables with its trail, in one read transaction."""
    try:
        await cipher_of(tx, tenant_id)
        state = await replayed(tx, tenant_id, archive)
    except DamagedError as error:
        return Review(lacking=error.message)
    except (DoesNotFollow, ValueError) as error:
        return Review([str(error) or "an event cannot be read"])
    except Unreadable as error:
        return Review([error.message])
    live = LiveState(tx, tenant_id)
    found = _Findings()
    roles = await live.roles()
    for name in state.roles.keys() | roles.keys():
        found.compare(f"role '{name}'", state.roles.get(name), roles.get(name))
    names = {role.id: name for name, role in roles.items()}
    _compare_pairs(
        found,
        "grant",
        {(role, p) for role, grants in state.grants.items() for p in grants},
        ((names.get(role_id, f"#{role_id}"), p) for role_id, p in await live.grants()),
    )
    _compare_pairs(
        found,
        "parent",
        {(role, parent) for role, above in state.parents.items() for parent in above},
        (
            (names.get(role_id, f"#{role_id}"), names.get(parent, f"#{parent}"))
            for role_id, parent in await live.parents()
        ),
    )
    await _compare_memberships(found, state, live, names)
    keys, api_keys = await live.keys(), await live.api_keys()
    for key_id in state.keys.keys() | keys.keys():
        told, row = state.keys.get(key_id), keys.get(key_id)
        found.compare(f"client key {key_id}", _comparable(told, row), row)
    for key_id in state.api_keys.keys() | api_keys.keys():
        told_api, row_api = state.api_keys.get(key_id), api_keys.get(key_id)
        found.compare(f"API key {key_id}", _comparable(told_api, row_api), row_api)
    await _compare_tokens(found, state, live)
    return Review(found.sentences)


Told = KeyTold | ApiKeyTold


def _comparable(told: Told | None, row: Told | None) -> Told | None:
    """What events tell, with the row's fingerprint where they tell none."""
    if told is not None and told.fingerprint is None and row is not None:
        return replace(told, fingerprint=row.fingerprint)
    return told


class _Findings:
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        if len(self.sentences) < MOST_FINDINGS:
            self.sentences.append(sentence)

    def compare(self, what: str, told: object, stored: object) -> None:
        if told == stored:
            return
        if told is None:
            self.add(f"{what} is in the table, and no event tells of it")
        elif stored is None:
            self.add(f"{what} is not in the table, and no event took it away")
        else:
            self.add(f"{what} is stored otherwise than its events tell")


def _compare_pairs(
    found: _Findings, what: str, told: set[tuple[str, str]], stored: Iterable[tuple[str, str]]
) -> None:
    for pair in stored:
        if pair in told:
            told.discard(pair)
        else:
            found.compare(f"{what} {pair[0]} -> {pair[1]}", None, pair)
    for pair in sorted(told):
        found.compare(f"{what} {pair[0]} -> {pair[1]}", pair, None)


async def _compare_memberships(
    found: _Findings, state: State, live: LiveState, names: dict[int, str]
) -> None:
    told: dict[tuple[str, str, str], Bounds] = {
        (user, role, scope): bounds for user, role, scope, bounds in state.memberships()
    }
    for user, role_id, scope, bounds in await live.memberships():
        place = (user, names.get(role_id, f"#{role_id}"), scope)
        found.compare(_membership(*place), told.pop(place, None), bounds)
    for place in sorted(told):
        found.compare(_membership(*place), told[place], None)


def _membership(user: str, role: str, scope: str) -> str:
    return f"membership of '{user}' in '{role}', {f'in {scope}' if scope else 'everywhere'}"


async def _compare_tokens(found: _Findings, state: State, live: LiveState) -> None:
    for family in await live.families():
        # One that was being made at that moment may be dated before it and be right.
        down = (
            state.locked_down_at is not None
            and family.created_at < state.locked_down_at - _ABOUT_THEN
        )
        ended = family.id in state.ended_families or down
        if ended and not family.revoked:
            found.add(f"token family {family.id} is in force, and an event ended it")
        elif family.revoked and not ended and state.locked_down_at is None:
            found.add(f"token family {family.id} has ended, and no event ended it")
    owner = await live.owner()
    if owner is None:
        found.add("the tenant is not in the table, and no event took it away")
        return
    for what, told, stored in (
        ("strict_users", state.strict_users, owner.strict_users),
        ("disabled", state.disabled, owner.disabled),
        ("the generation of tokens", state.lockdowns, owner.token_generation),
    ):
        if told != stored:
            found.add(f"{what} is stored as {stored}, and the events tell {told}")
