"""The names of api.md as types: validated whole, never rewritten."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from authsvc import sanitizer
from authsvc.errors import InputError

strict_names: ContextVar[bool] = ContextVar("strict_names", default=False)
"""Whether names with a bare SQL keyword as a segment are refused (``AUTH_STRICT_NAMES``).

Set for each request by the entry point, because pydantic's types know no settings.
"""


class _NameRule(Protocol):
    def __call__(self, text: str, *, strict: bool = False) -> str: ...


def _checked(rule: Callable[[str], str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            return rule(text)
        except InputError as error:
            raise PydanticCustomError(
                "name", "{rule}", {"rule": error.details[0].message}
            ) from None

    return check


def _name(rule: _NameRule) -> AfterValidator:
    return AfterValidator(_checked(lambda text: rule(text, strict=strict_names.get())))


def _instant(value: Any) -> datetime:
    """RFC 3339 text with an offset, as UTC; numbers and naive times are refused."""
    if not isinstance(value, str) or len(value) > 40:
        raise _NOT_A_TIME
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None or "T" not in value.upper():
            raise _NOT_A_TIME
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _NOT_A_TIME from None


_NOT_A_TIME = PydanticCustomError(
    "instant", "This must be a date and time with an offset, such as 2026-01-31T12:00:00Z."
)


def _pattern(rest: str) -> dict[str, Any]:
    """For OpenAPI alone, which has no other way to say what the rules of ``sanitizer`` say."""
    return {"pattern": rf"^(?!\.{{1,2}}$){rest}$"}


RoleName = Annotated[
    str,
    _name(sanitizer.check_role),
    Field(
        description="Name of a role: 1 to 64 of `A-Z a-z 0-9 _ - . :`",
        min_length=1,
        max_length=sanitizer.ROLE_MAX,
        examples=["admin"],
        json_schema_extra=_pattern("[A-Za-z0-9_.:-]{1,64}"),
    ),
]
PermissionName = Annotated[
    str,
    _name(sanitizer.check_permission),
    Field(
        description="Name of a permission: 1 to 128 of `A-Z a-z 0-9 _ - . :`",
        min_length=1,
        max_length=sanitizer.PERMISSION_MAX,
        examples=["deploy"],
        json_schema_extra=_pattern("[A-Za-z0-9_.:-]{1,128}"),
    ),
]
GrantName = Annotated[
    str,
    _name(sanitizer.check_grant),
    Field(
        description="Name of a permission, or a name and `:*` for exactly one further segment",
        min_length=1,
        max_length=sanitizer.PERMISSION_MAX,
        examples=["invoice:*"],
        json_schema_extra=_pattern("([A-Za-z0-9_.:-]{1,128}|(?!:+\\*)[A-Za-z0-9_.:-]{1,126}:\\*)"),
    ),
]
UserName = Annotated[
    str,
    _name(sanitizer.check_user),
    Field(
        description="Your identifier of a user: 1 to 254 of `A-Z a-z 0-9 _ - . : @ + |`",
        min_length=1,
        max_length=sanitizer.USER_MAX,
        examples=["alice"],
        json_schema_extra=_pattern("[A-Za-z0-9_.:@+|-]{1,254}"),
    ),
]
ScopeName = Annotated[
    str,
    _name(sanitizer.check_scope),
    Field(
        description="Where it holds: 1 to 254 of `A-Z a-z 0-9 _ - . : @ + /`",
        min_length=1,
        max_length=sanitizer.SCOPE_MAX,
        examples=["project/42"],
        json_schema_extra=_pattern("[A-Za-z0-9_.:@+/-]{1,254}"),
    ),
]
KeyId = Annotated[
    str,
    Field(
        description="The public name of a client key",
        pattern="^key_[0-9a-f]{20}$",
        examples=["key_5c0d3a61f2b94e8c9a17"],
    ),
]
Text = Annotated[
    str,
    AfterValidator(_checked(sanitizer.check_text)),
    Field(
        description="Up to 512 printable characters in NFC, no `<` or `>`",
        max_length=sanitizer.TEXT_MAX,
        examples=["May deploy"],
    ),
]
Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    Field(description="RFC 3339 with an offset", examples=["2026-12-24T18:00:00Z"]),
]
