"""Questions asked in a body."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from authsvc.schemas.changes import Body
from authsvc.schemas.names import PermissionName, ScopeName, UserName

CHECKS_MAX = 10_000
"""The most checks one request may hold."""


class CheckItem(Body):
    """May this user do this (here)?"""

    user: UserName
    permission: PermissionName
    scope: ScopeName | None = None


class CheckBody(Body):
    """Many checks, or the short form: one user and a list of permissions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "checks": [
                        {"user": "alice", "permission": "deploy"},
                        {"user": "bob", "permission": "deploy"},
                    ]
                },
                {"user": "alice", "permissions": ["deploy", "invoice:read"]},
            ]
        }
    )

    checks: list[CheckItem] | None = Field(default=None, min_length=1, max_length=CHECKS_MAX)
    user: UserName | None = None
    permissions: list[PermissionName] | None = Field(
        default=None, min_length=1, max_length=CHECKS_MAX
    )
    scope: ScopeName | None = None
    explain: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> CheckBody:
        short = self.user is not None and self.permissions is not None
        partly = any(part is not None for part in (self.user, self.permissions, self.scope))
        if self.checks is not None and partly:
            raise PydanticCustomError("form", "Send either 'checks', or 'user' and 'permissions'.")
        if self.checks is None and not short:
            raise PydanticCustomError("form", "Send either 'checks', or 'user' and 'permissions'.")
        return self


class PlainChecks(CheckBody):
    """The usual body, many checks without a scope, with its items as they came.

    Their names are yet to be looked at: those that memory knows need not be.
    """

    def validated(self) -> CheckBody:
        """The same with every item looked at. Raises ValidationError."""
        return CheckBody.model_validate({"checks": self.checks})


def _plain_or_whole(value: Any, whole: ValidatorFunctionWrapHandler) -> CheckBody:
    items = value.get("checks") if type(value) is dict and len(value) == 1 else None
    if (
        type(items) is list
        and 0 < len(items) <= CHECKS_MAX
        and set(map(type, items)) == {dict}
        and set(map(len, items)) == {2}
    ):
        return PlainChecks.model_construct(checks=items)
    body: CheckBody = whole(value)
    return body


Checks = Annotated[CheckBody, WrapValidator(_plain_or_whole)]
"""A ``CheckBody``, or a ``PlainChecks`` that is not validated yet."""


def why_schema() -> dict[str, Any]:
    """An example of ``why``, for the documentation of both forms."""
    return {
        "allowed_by": [
            {"role": "admin", "via": ["lead", "admin"], "permission": "deploy", "scope": None}
        ]
    }
