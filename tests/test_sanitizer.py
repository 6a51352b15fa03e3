"""Names and texts: what is accepted is unchanged, what is hostile is refused by name."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.errors import InputError
from authsvc.sanitizer import (
    check_grant,
    check_permission,
    check_role,
    check_scope,
    check_text,
    check_user,
    sanitize_input,
)

Check = Callable[[str], str]

NAME = string.ascii_letters + string.digits + "_-.:"
KINDS: list[tuple[Check, str, str, int]] = [
    (check_role, "role", NAME, 64),
    (check_permission, "permission", NAME, 128),
    (check_grant, "permission", NAME, 128),
    (check_scope, "scope", NAME + "@+/", 254),
    (check_user, "user", NAME + "@+|", 254),
    (sanitize_input, "input", NAME + "@+|", 254),
]
CHECKS = [kind[0] for kind in KINDS]

# Attacks 20 to 23 of the threat model, and what people paste into forms to see what happens.
HOSTILE = [
    "",
    " ",
    "admin ",
    " admin",
    "ad min",
    "admin\n",
    "\nadmin",
    "admin\r\n",
    "admin\t",
    "admin\x00",
    "\x00",
    "admin\x1b[31m",
    "admin\x7f",
    "admin\x85",
    "admin\u2028",
    "\ud800",
    "admin\udfff",
    "caf\u00e9",
    "cafe\u0301",
    "\uff41\uff44\uff4d\uff49\uff4e",
    "o\ufb03ce",
    "\u0430dmin",
    "\u0391dmin",
    "adm\u0131n",
    "\u212aey",
    "admin\u200b",
    "ad\u200dmin",
    "\u202enimda",
    "\u2066admin\u2069",
    "admin\ufe0f",
    "\ufeffadmin",
    "admin\U000e0041",
    "\u0661\u0662\u0663",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "{{7*7}}",
    "${jndi:ldap://x}",
    "admin' OR '1'='1",
    "admin'; DROP TABLE roles; --",
    'admin" UNION SELECT 1',
    "1;SELECT pg_sleep(5)",
    "%27",
    "a%2Fb",
    "a\\b",
    "a,b",
    "a;b",
    "a#b",
    "a?b",
    "a=b",
    "a*b",
    "*",
    "()",
    "~",
    ".",
    "..",
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_no_name(check: Check, text: str) -> None:
    with pytest.raises(InputError) as refusal:
        check(text)
    assert len(refusal.value.details) == 1
    if len(text) > 3:
        assert text not in refusal.value.message


@pytest.mark.parametrize(("check", "field", "characters", "longest"), KINDS)
def test_the_limits_of_every_kind(check: Check, field: str, characters: str, longest: int) -> None:
    for character in characters.replace(".", ""):
        assert check(character) == character
    assert check("a" * longest) == "a" * longest
    assert check("...") == "..."
    with pytest.raises(InputError) as refusal:
        check("a" * (longest + 1))
    assert refusal.value.details[0].field == field
    assert str(longest) in refusal.value.details[0].message


@pytest.mark.parametrize(("check", "field", "characters", "longest"), KINDS)
def test_every_other_character_is_refused(
    check: Check, field: str, characters: str, longest: int
) -> None:
    for point in range(0x3000):
        if chr(point) not in characters:
            with pytest.raises(InputError):
                check(f"a{chr(point)}b")


@pytest.mark.parametrize("check", CHECKS)
def test_names_that_are_accepted_come_back_unchanged(check: Check) -> None:
    @given(st.one_of(st.text(), st.text(alphabet=NAME + "@+|/*", max_size=300)))
    def accepted_is_unchanged(text: str) -> None:
        try:
            kept = check(text)
        except InputError:
            return
        assert kept is text
        assert text.isascii()
        assert text.isprintable()
        assert unicodedata.normalize("NFKC", text) == text

    accepted_is_unchanged()


@pytest.mark.parametrize("check", [*CHECKS, check_text])
@pytest.mark.parametrize("value", [None, True, 1, 1.5, b"admin", ["admin"], {"a": 1}])
def test_what_is_no_string_is_refused(check: Callable[[object], str], value: object) -> None:
    with pytest.raises(InputError):
        check(value)


@pytest.mark.parametrize("text", ["invoice:*", "a:b:*", ".hidden:*", "a::*", "a" * 126 + ":*"])
def test_wildcards_are_grants_and_never_questions(text: str) -> None:
    assert check_grant(text) is text
    for check in (check_role, check_permission, check_scope, check_user, sanitize_input):
        with pytest.raises(InputError):
            check(text)


@pytest.mark.parametrize(
    "text", ["*", ":*", "::*", "a*", "a:*:b", "a:*:*", "*:a", "a.*", "a:**", "a" * 127 + ":*"]
)
def test_other_wildcards_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        check_grant(text)


STRICT = [check_role, check_permission, check_grant, check_scope, check_user]


@pytest.mark.parametrize("check", STRICT)
@pytest.mark.parametrize(
    "text", ["select", "DROP", "Union", "invoice:delete", "a.update.b", "from:a", "a:where"]
)
def test_strict_names_have_no_keyword_segment(check: Callable[..., str], text: str) -> None:
    assert check(text) == text
    with pytest.raises(InputError, match="AUTH_STRICT_NAMES"):
        check(text, strict=True)


@pytest.mark.parametrize("check", STRICT)
@pytest.mark.parametrize(
    "text", ["selection", "drop-off", "update_log", "reunion", "a:selected", "invoice:read"]
)
def test_strict_names_may_contain_a_keyword(check: Callable[..., str], text: str) -> None:
    assert check(text, strict=True) == text


def test_strict_looks_at_the_segments_of_every_kind() -> None:
    for check, text in (
        (check_scope, "eu/delete"),
        (check_user, "drop|1"),
        (check_user, "select@example.com"),
        (check_user, "a+union"),
        (check_grant, "delete:*"),
    ):
        with pytest.raises(InputError):
            check(text, strict=True)


def test_the_field_can_be_named() -> None:
    with pytest.raises(InputError) as refusal:
        check_role("a b", "changes.3.role")
    assert refusal.value.details[0].field == "changes.3.role"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Reads invoices",
        "L\u00f6scht R\u00e4ume",
        "\u6d4b\u8bd5",
        "a" * 512,
        "'; DROP TABLE x",
        "5 & 6",
    ],
)
def test_texts_for_people(text: str) -> None:
    assert check_text(text) is text


@pytest.mark.parametrize(
    "text",
    [
        "a" * 513,
        "<b>",
        "a > b",
        "two\nlines",
        "tab\t",
        "nul\x00",
        "\x1b[31mred",
        "cafe\u0301",
        "\u212b",
        "\ud800",
        "a\u200bb",
        "a\u200db",
        "\u202eabc",
        "\u2066abc\u2069",
        "\ufeffa",
        "a\u00adb",
        "a\u3164b",
        "a\ufe0f",
        "a\U000e0101",
        "a\U000e0041",
        "a\u2028b",
        "a\ue000",
        "a\u0378",
    ],
)
def test_texts_that_are_refused(text: str) -> None:
    with pytest.raises(InputError) as refusal:
        check_text(text, "label")
    assert refusal.value.details[0].field == "label"


@given(st.text(max_size=600))
def test_texts_that_are_accepted_come_back_unchanged(text: str) -> None:
    try:
        kept = check_text(text)
    except InputError:
        return
    assert kept is text
    assert unicodedata.normalize("NFC", text) == text
    assert not re.search(r"[<>\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", text)
    text.encode()
