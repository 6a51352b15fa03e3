"""The one JSON parser: strict, bounded, and the same as the standard library where it accepts."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.api.json_body import MAX_DEPTH, parse_json
from authsvc.errors import BadRequest, InputError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='ab"\\[]{}é'), inner),
    max_leaves=20,
)


@given(JSON, st.booleans())
def test_what_is_json_is_parsed(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


def _object(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{json.dumps(k, ensure_ascii=False)}:{v}" for k, v in pairs) + "}"


_SCALARS = st.sampled_from(['"a"', '"b]"', '"{"', '"é"', '""', "null", "1", "NaN", r'"\""', "[]"])
_PAIRS = st.lists(st.tuples(st.sampled_from(["user", "permission", "a", ""]), _SCALARS), max_size=4)


@given(st.lists(_PAIRS, max_size=4), st.sampled_from(["checks", "a]"]), st.booleans())
def test_a_flat_list_of_objects_is_read_as_anything_else(
    items: list[list[tuple[str, str]]], name: str, spaced: bool
) -> None:
    """The quick look at long bodies finds what the careful one finds: the same twice-used keys."""
    comma = " , " if spaced else ","
    body = f'{{"{name}":[{comma.join(map(_object, items))}]}}'.encode()
    with_an_escape = body[:-1] + rb', "\u0061a": 1}'
    try:
        expected = parse_json(with_an_escape)
    except (BadRequest, InputError) as refusal:
        with pytest.raises(type(refusal)):
            parse_json(body)
    else:
        del expected["aa"]
        assert parse_json(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"{'a':1}",
        b"{a:1}",
        b"{}{}",
        b"[1]x",
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"0x10",
        b"tru",
        b"True",
        b"NaN",
        b"[Infinity]",
        b'{"a":-Infinity}',
        b'"a\nb"',
        b'"a\x00b"',
        b'"\\x41"',
        b'"\\u12"',
        b"/* c */ 1",
        b"\xff",
        b'"\xc0\xaf"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-32-le"),
        b'{"user":"a","user":"b"}',
        b'{"a":1,"\\u0061":1}',
        b'[{"b":{"c":1,"c":1}}]',
        b"]" * 100,
        b"[}" * 100,
    ],
)
def test_what_is_not_json_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"9223372036854775808",
        b"-9223372036854775809",
        b"1" * 100,
        b"[" + b"9" * 100_000 + b"]",
        b"1e400",
        b"-1e400",
        b'{"a":1e999999999}',
        b'"\\ud800"',
        b'"\\udc00"',
        b'{"\\ud800":1}',
        b'"\\uD83D\\uD83D\\uDE00"',
        b'"\\ude00\\ud83d"',
        b'"\\ud83d\\\\\\ude00"',
        b'"\\ud83d \\ude00"',
    ],
)
def test_what_cannot_be_used_is_refused(body: bytes) -> None:
    with pytest.raises(InputError) as refusal:
        parse_json(body)
    assert refusal.value.details[0].field == "body"


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"9223372036854775807", 2**63 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b'"1234567890123456789012345"', "1234567890123456789012345"),
        (b"0.1234567890123456789012345", 0.1234567890123456789),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\\\ud800"', "\\ud800"),
        (b'"NaN"', "NaN"),
        (b" \t\r\n[] ", []),
        (b'{"a":{"a":1},"b":{"a":1}}', {"a": {"a": 1}, "b": {"a": 1}}),
    ],
)
def test_the_edges_of_what_is_accepted(body: bytes, value: Any) -> None:
    assert parse_json(body) == value


def nested(depth: int, opening: str, closing: str) -> bytes:
    return (opening * depth + "1" + closing * depth).encode()


@pytest.mark.parametrize(
    ("opening", "closing", "deepest"),
    [
        ("[", "]", 32),
        ('{"a":', "}", 32),
        ('{"[{":[', "]}", 16),
        ('["]",', "]", 32),
        ('["\\"]",', "]", 32),
        ('["\\\\",', ',"}"]', 32),
        ("[[],{},", ",[[]]]", 30),
    ],
)
def test_depth_is_counted_outside_strings(opening: str, closing: str, deepest: int) -> None:
    parse_json(nested(deepest, opening, closing))
    with pytest.raises(InputError, match=f"{MAX_DEPTH} levels"):
        parse_json(nested(deepest + 1, opening, closing))


def test_brackets_in_strings_are_text() -> None:
    for text in ("[" * 1000, "{" * 1000, '"[' * 500, "\\[" * 500):
        assert parse_json(json.dumps([text, {text: text}]).encode()) == [text, {text: text}]


@pytest.mark.parametrize("count", [33, 1_000, 100_000])
@pytest.mark.parametrize("unit", ["[", '{"a":', '["]",', "[[],"])
def test_brackets_never_closed_end_quickly(unit: str, count: int) -> None:
    body = (unit * count).encode()
    began = time.perf_counter()
    with pytest.raises(InputError):
        parse_json(body)
    assert time.perf_counter() - began < 1


def test_a_full_bulk_body_takes_linear_time() -> None:
    item = {"user": "alice@example.com", "permission": "invoice:read", "scope": "eu/de"}
    full = json.dumps({"checks": [item] * 95_000}).encode()
    assert 7_000_000 < len(full) < 8 * 1024 * 1024
    hostile = [
        b'["["' + b',"["' * 2_000_000 + b"]",
        b"[]" * 4_000_000,
        b'"' * 8_000_000,
        b"[" + b"1," * 4_000_000 + b"1]",
        b'"' + b"\\\\" * 4_000_000 + b'"',
        b'"' + b"\\u0061" * 1_300_000 + b'"',
    ]
    for body in (full, *hostile):
        began = time.perf_counter()
        with contextlib.suppress(BadRequest):
            parse_json(body)
        assert time.perf_counter() - began < 5


def test_messages_never_repeat_the_body() -> None:
    for body in (b'{"secret1":', b'{"secret1":1,"secret1":2}', b"[secret1]", b'"secret1\xff"'):
        with pytest.raises(BadRequest) as refusal:
            parse_json(body)
        assert "secret1" not in str(refusal.value)
        assert refusal.value.__cause__ is None
