"""The one JSON parser for request bodies: RFC 8259 as I-JSON (RFC 7493) narrows it.

What cannot be parsed is ``BadRequest``: other encodings than UTF-8 and byte-order marks, duplicate
keys, ``NaN`` and ``Infinity``, syntax errors. What parses and cannot be used is ``InputError``:
nesting deeper than ``MAX_DEPTH``, numbers beyond 64 bits or a double, lone surrogates.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any, NoReturn

from authsvc.errors import BadRequest, InputError

MAX_DEPTH = 32

_OPENING, _CLOSING = b"[{", b"]}"
_TO_PARENTHESES = bytes.maketrans(_OPENING + _CLOSING, b"(())")
_NOT_SKELETON = bytes(set(range(256)) - set(_OPENING + _CLOSING + b'"'))
_DIGITS_TO_ZERO = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x20 for byte in range(256))
_LONG = b"0" * 19

_LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


def parse_json(body: bytes) -> Any:
    """The value a request body holds.

    Raises ``BadRequest`` and ``InputError`` as the module says; their messages never repeat the
    body. The time is linear in its length, whatever it holds.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The body is not valid UTF-8") from None
    if (flat := _flat(body, text)) is not None:
        return flat
    if _too_deep(body):
        raise InputError.of("body", f"JSON may be nested at most {MAX_DEPTH} levels deep.")
    # The escaped backslashes go first, so that "\\ud800" is seen as the plain text it is.
    if "\\u" in text and _LONE_SURROGATE.search(text.replace("\\\\", "__")):
        raise InputError.of("body", "Half of a surrogate pair is not a character.")
    # A call into Python for every integer is the price of looking at its size: paid when needed.
    decode = _decode_checking_integers if _LONG in body.translate(_DIGITS_TO_ZERO) else _decode
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON at character {error.pos}") from None


def _flat(body: bytes, text: str) -> dict[str, Any] | None:
    """The value of a body that is one list of objects of strings; None for any other.

    That is what long bodies usually are, and there no rule can be broken but the one of keys that
    appear twice. These show in the quotes: with no backslash about, each string of the text, key
    or value, has two, and a key that replaced another has taken strings away.
    """
    if b"\\" in body or body.count(b"[") != 1:
        return None
    try:
        value = _decode_plain(text)
    except (ValueError, RecursionError):
        return None
    items = next(iter(value.values())) if type(value) is dict and len(value) == 1 else None
    if type(items) is not list or set(map(type, items)) != {dict}:
        return None
    strings = list(chain.from_iterable(map(dict.values, items)))
    if set(map(type, strings)) != {str}:
        return None
    return value if body.count(b'"') == 2 + 4 * len(strings) else None


def _too_deep(body: bytes) -> bool:
    """Whether the brackets outside strings nest deeper than ``MAX_DEPTH``.

    Also true for that many brackets never closed, so the recursive parser behind this is never
    given more than twice the depth. Only whole-buffer operations: no loop over the bytes.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes side by side end nothing that matters: every bracket keeps its side of a string.
    skeleton = body.translate(_TO_PARENTHESES, _NOT_SKELETON).replace(b'""', b"")
    if b'"' in skeleton:
        skeleton = b"".join(skeleton.split(b'"')[::2])
    for _ in range(MAX_DEPTH):
        if not skeleton:
            return False
        skeleton = skeleton.replace(b"()", b"")
    return b"()" in skeleton or b"(" * (MAX_DEPTH + 1) in skeleton


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise BadRequest("A key appears twice in one JSON object")
    return made


def _integer(digits: str) -> int:
    # 20 characters hold every signed 64-bit number; longer ones are never worth converting.
    if len(digits) <= 20 and -(2**63) <= (number := int(digits)) < 2**63:
        return number
    raise InputError.of("body", "Integers must fit into 64 bits.")


def _float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise InputError.of("body", "Numbers must be finite.")
    return number


def _constant(_name: str) -> NoReturn:
    raise BadRequest("NaN and Infinity are not JSON")


_decode_plain = json.JSONDecoder().decode
_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_constant=_constant
).decode
_decode_checking_integers = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_constant=_constant, parse_int=_integer
).decode
