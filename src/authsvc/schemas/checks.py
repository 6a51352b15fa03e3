"""Questions asked in a body."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, model_validator
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


def why_schema() -> dict[str, Any]:
    """An example of ``why``, for the documentation of both forms."""
    return {
        "allowed_by": [
            {"role": "admin", "via": ["lead", "admin"], "permission": "deploy", "scope": None}
        ]
    }
