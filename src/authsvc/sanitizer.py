"""The rules for names and free text, in one place.

Every function returns its argument unchanged or raises ``InputError`` naming the field: what is
accepted is stored and answered byte for byte, nothing is ever rewritten. Names are ASCII, so no
two spellings of one name exist; they are compared as whole strings, case-sensitively.

With ``strict`` (``AUTH_STRICT_NAMES``) a name is refused too when one of its segments is a bare
SQL keyword in any case. Segments are what lies between ``:``, ``.``, ``/``, ``|``, ``@`` and
``+``; a hyphen or an underscore joins words into one segment, so ``drop-off`` and ``update_log``
are never keywords.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from authsvc.errors import InputError

ROLE_MAX = 64
PERMISSION_MAX = 128
SCOPE_MAX = 254
USER_MAX = 254
TEXT_MAX = 512

_NOT_DOTS = r"(?!\.{1,2}\Z)"
_NAME = r"[A-Za-z0-9_\-.:]"

_Match = Callable[[str], object]
_role: _Match = re.compile(rf"{_NOT_DOTS}{_NAME}{{1,64}}").fullmatch
_permission: _Match = re.compile(rf"{_NOT_DOTS}{_NAME}{{1,128}}").fullmatch
_grant: _Match = re.compile(
    rf"{_NOT_DOTS}(?:{_NAME}{{1,128}}|(?!:+\*){_NAME}{{1,126}}:\*)"
).fullmatch
_scope: _Match = re.compile(rf"{_NOT_DOTS}[A-Za-z0-9_\-.:@+/]{{1,254}}").fullmatch
_user: _Match = re.compile(rf"{_NOT_DOTS}[A-Za-z0-9_\-.:@+|]{{1,254}}").fullmatch

_SQL_KEYWORDS = (
    "alter|call|create|declare|delete|drop|except|exec|execute|from|grant|having|insert|"
    "intersect|into|merge|replace|revoke|select|table|truncate|union|update|where"
)
_keyword_segment: _Match = re.compile(
    rf"(?<![^:./|@+])(?:{_SQL_KEYWORDS})(?![^:./|@+])", re.ASCII | re.IGNORECASE
).search

# Characters that count as printable and are not seen: joiners, fillers, variation selectors.
_invisible: _Match = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
).search

_STRICT_RULE = "A segment that is a bare SQL keyword is not allowed here (AUTH_STRICT_NAMES)."
_DOTS_RULE = "'.' and '..' are not names."
ROLE_RULE = f"A role is 1 to {ROLE_MAX} characters of A-Z a-z 0-9 _ - . : and nothing else."
PERMISSION_RULE = (
    f"A permission is 1 to {PERMISSION_MAX} characters of A-Z a-z 0-9 _ - . : and nothing else."
)
GRANT_RULE = (
    f"A granted permission is 1 to {PERMISSION_MAX} characters of A-Z a-z 0-9 _ - . : and may "
    "end in ':*' after at least one segment."
)
SCOPE_RULE = (
    f"A scope is 1 to {SCOPE_MAX} characters of A-Z a-z 0-9 _ - . : @ + / and nothing else."
)
USER_RULE = f"A user is 1 to {USER_MAX} characters of A-Z a-z 0-9 _ - . : @ + | and nothing else."
TEXT_RULE = (
    f"Up to {TEXT_MAX} printable characters in NFC, without control or invisible characters, "
    "'<' and '>'."
)


def _refusal(text: object, field: str, rule: str) -> InputError:
    if text in (".", ".."):
        rule = f"{_DOTS_RULE} {rule}"
    return InputError.of(field, rule)


def check_role(text: str, field: str = "role", *, strict: bool = False) -> str:
    """A role's name."""
    if not (isinstance(text, str) and _role(text)):
        raise _refusal(text, field, ROLE_RULE)
    if strict and _keyword_segment(text):
        raise InputError.of(field, _STRICT_RULE)
    return text


def check_permission(text: str, field: str = "permission", *, strict: bool = False) -> str:
    """A permission as asked for: one exact name, no wildcard."""
    if not (isinstance(text, str) and _permission(text)):
        raise _refusal(text, field, PERMISSION_RULE)
    if strict and _keyword_segment(text):
        raise InputError.of(field, _STRICT_RULE)
    return text


def check_grant(text: str, field: str = "permission", *, strict: bool = False) -> str:
    """A permission as granted or revoked: a name, or a name and ``:*``."""
    if not (isinstance(text, str) and _grant(text)):
        raise _refusal(text, field, GRANT_RULE)
    if strict and _keyword_segment(text):
        raise InputError.of(field, _STRICT_RULE)
    return text


def check_scope(text: str, field: str = "scope", *, strict: bool = False) -> str:
    """The scope of a membership or a question. *Everywhere* is the absence of a scope."""
    if not (isinstance(text, str) and _scope(text)):
        raise _refusal(text, field, SCOPE_RULE)
    if strict and _keyword_segment(text):
        raise InputError.of(field, _STRICT_RULE)
    return text


def check_user(text: str, field: str = "user", *, strict: bool = False) -> str:
    """A user's opaque identifier."""
    if not (isinstance(text, str) and _user(text)):
        raise _refusal(text, field, USER_RULE)
    if strict and _keyword_segment(text):
        raise InputError.of(field, _STRICT_RULE)
    return text


def check_text(text: str, field: str = "description") -> str:
    """A description or a label; may be empty, is never interpreted.

    The one kind of input that is not ASCII. ``str.isprintable`` already refuses controls, lone
    surrogates, unassigned code points and the bidirectional and zero-width format characters.
    """
    if (
        not isinstance(text, str)
        or len(text) > TEXT_MAX
        or not text.isprintable()
        or "<" in text
        or ">" in text
        or not unicodedata.is_normalized("NFC", text)
        or _invisible(text)
    ):
        raise InputError.of(field, TEXT_RULE)
    return text


def sanitize_input(text: str) -> str:
    """For embedders: text that is a valid role, permission or user, unchanged.

    Raises ``InputError`` (field ``input``) for anything else. Nothing is stripped or escaped:
    silently repaired input is how two different names become one.
    """
    return check_user(text, "input")
