"""What is exported for spreadsheets is never calculated by them, and entries read as sentences."""

from __future__ import annotations

import csv
import io
import itertools
import json
import unicodedata
from datetime import UTC, datetime
from typing import Any

import pytest

from authsvc import audit_lines
from authsvc.audit_entries import FIELDS, Entry, shown
from authsvc.audit_lines import csv_line, formula_safe, header, line
from authsvc.audit_words import in_words
from conftest import ControlledClock, TenantAtWork
from http_api import Api
from trail import add_activity

pytest_plugins = ["http_fixtures"]

_FORMULAS = (
    "=1+1", "+1+1", "-1+1", "@SUM(1)", "=cmd|' /C calc'!A0", "=HYPERLINK(\"http://x\",\"y\")",
    "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20SUM(1)", "=\"a\"\"b\"", "-2+3+cmd|' /C calc'!A0",
)  # fmt: skip
_BEFORE = ("", " ", "\t", "\r", "\n", "\u00a0", "\u200b", "\ufeff", " \t ")
PAYLOADS = [
    *(before + formula for before, formula in itertools.product(_BEFORE[:4], _FORMULAS)),
    *(before + "=1+1" for before in _BEFORE[4:]),
    "\tx", "\rx", "\nx", "\u22121", "\ufe631", "\ufe621", "\ufe6bx",
]  # fmt: skip


def calculated(cell: str) -> bool:
    """Whether some spreadsheet may calculate a cell, told in another way than the code tells it."""
    seen = unicodedata.normalize("NFKC", cell).replace("\u2212", "-")
    bare = "".join(c for c in seen if unicodedata.category(c) not in ("Cf", "Cc")).strip()
    return seen[:1] in ("\t", "\r", "\n") or bare[:1] in tuple("=+-@")


def test_no_payload_starts_a_formula() -> None:
    assert len(PAYLOADS) == len(set(PAYLOADS)) == 60
    assert all(calculated(payload) for payload in PAYLOADS)
    text = "".join(csv_line([payload, "plain", payload]) for payload in PAYLOADS)
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert read == [[f"'{payload}", "plain", f"'{payload}"] for payload in PAYLOADS]
    assert not [cell for record in read for cell in record if calculated(cell)]


def test_without_its_guard_a_formula_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_lines, "formula_safe", lambda text: text)
    text = "".join(csv_line([payload]) for payload in PAYLOADS)
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert all(calculated(record[0]) for record in read)


def test_ordinary_text_is_left_as_it_is() -> None:
    for text in (
        "",
        "admin",
        "a=b",
        "user+tag@example.com",
        "203.0.113.7",
        "{}",
        '{"a":"=1"}',
        " x",
    ):
        assert formula_safe(text) == text
        assert list(csv.reader([csv_line([text, text])])) == [[text, text]]
        assert csv_line([text]).startswith('"')


async def test_formulas_do_not_leave_over_http(
    api: Api, owner: TenantAtWork, clock: ControlledClock
) -> None:
    for payload in PAYLOADS:
        await add_activity(
            owner.database,
            clock(),
            owner.id,
            entity_id=payload,
            user_agent=payload,
            details={payload: payload},
        )
    path = "/api/audit?stream=activity&format="
    read = list(csv.reader(io.StringIO((await api.send("GET", f"{path}csv")).text, newline="")))
    assert len(read) == len(PAYLOADS) + 1
    assert not [cell for record in read for cell in record if calculated(cell)]
    lines = (await api.send("GET", f"{path}jsonl")).text.split("\n")[:-1]
    assert {json.loads(one)["entity_id"] for one in lines} == set(PAYLOADS)


def test_lines_have_the_fields_that_are_asked_for() -> None:
    told = shown(entry("create", "role", "admin", {"description": "é"}))
    assert list(told) == list(FIELDS)
    assert header(("seq", "hash"), "jsonl") == ""
    assert header(("seq", "hash"), "csv") == '"seq","hash"\r\n'
    assert line(told, ("action", "success", "seq"), "csv") == '"create","true",""\r\n'
    assert line(told, ("details", "seq"), "jsonl") == '{"details":{"description":"é"},"seq":null}\n'


# In words


def entry(action: str, entity_type: str, entity_id: str, details: dict[str, Any]) -> Entry:
    """An entry that says this."""
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    return Entry("activity", None, b"", at, action, entity_type, entity_id, details)


_NO_BOUNDS = {"scope": None, "not_before": None, "expires_at": None}
_IN_SCOPE = _NO_BOUNDS | {"scope": "project/42", "expires_at": "2026-12-24T18:00:00+00:00"}


@pytest.mark.parametrize(
    ("action", "entity_type", "entity_id", "details", "words"),
    [
        ("create", "role", "admin", {"description": ""}, "made role admin"),
        ("create", "role", "admin", {"description": "x"}, "made role admin 'x'"),
        ("update", "role", "admin", {"description": "x"}, "described role admin as 'x'"),
        ("delete", "role", "admin", {"description": ""}, "removed role admin"),
        ("grant", "permission", "deploy", {"role": "ops"}, "granted deploy to role ops"),
        ("revoke", "permission", "deploy", {"role": "ops"}, "took deploy from role ops"),
        ("add", "membership", "mallory", {"role": "admin"} | _NO_BOUNDS,
         "added mallory to role admin"),
        ("add", "membership", "mallory", {"role": "admin"} | _IN_SCOPE,
         "added mallory to role admin (scope project/42, until 2026-12-24T18:00:00+00:00)"),
        ("add", "membership", "mallory",
         {"role": "admin", "before": _NO_BOUNDS} | _NO_BOUNDS | {"scope": "s"},
         "changed mallory's membership in role admin: was (no bounds), is (scope s)"),
        ("remove", "membership", "mallory",
         {"role": "admin", "scope": None, "before": [_NO_BOUNDS]},
         "removed mallory from role admin"),
        ("remove", "membership", "mallory",
         {"role": "admin", "scope": None, "before": [_IN_SCOPE]},
         "removed mallory from role admin (scope project/42)"),
        ("delete", "user", "mallory",
         {"memberships_removed": 1, "before": [{"role": "admin"} | _NO_BOUNDS],
          "api_keys_revoked": ["key_1"]},
         "removed user mallory from admin, revoked 1 API key"),
        ("add", "role_parent", "lead", {"parent": "ops"}, "let role lead inherit from ops"),
        ("update", "settings", "settings",
         {"strict_users": True, "before": {"strict_users": False}},
         "set strict_users to true, was false"),
        ("create", "key", "key_1", {"label": "web", "scopes": ["check"], "expires_at": None},
         "made client key key_1 'web' (check)"),
        ("create", "api_key", "key_1", {"label": "", "user": "alice"},
         "made API key key_1 of alice"),
        ("update", "tenant", "acme", {"disabled": True}, "disabled tenant acme"),
        ("reuse_detected", "token", "fam", {"key_id": "key_1"},
         "used a spent refresh token, which ended token family fam of client key key_1"),
        ("sign_off", "review", "march", {"by": "bob"}, 'sign_off review march {"by": "bob"}'),
        # What is not as this version writes it is told as it is.
        ("grant", "permission", "deploy", {}, "grant permission deploy"),
        ("delete", "user", "u", {"before": None, "api_keys_revoked": 3},
         'delete user u {"before": null, "api_keys_revoked": 3}'),
        # Nothing moves a terminal's cursor.
        ("check", "permission", "\x1b[2Jx\n\u202ey", {}, "check permission ?[2Jx??y"),
    ],
)  # fmt: skip
def test_an_entry_is_told_in_words(
    action: str, entity_type: str, entity_id: str, details: dict[str, Any], words: str
) -> None:
    assert in_words(entry(action, entity_type, entity_id, details)) == words


def test_details_without_words_are_cut() -> None:
    told = in_words(entry("x", "y", "z", {"a": "b" * 1000}))
    assert len(told) == 160
    assert told.endswith("...")
