"""Wanted changes: the bodies of single writes and of ``POST /api/changes``."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from authsvc.schemas.names import (
    GrantName,
    Instant,
    RoleName,
    ScopeName,
    Text,
    UserName,
)

CHANGES_MAX = 10_000
"""The most changes one request may hold."""


class Body(BaseModel):
    """Base of request bodies: unknown fields are refused, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Bounded(Body):
    """A membership's bounds; absent or null means none."""

    scope: ScopeName | None = None
    not_before: Instant | None = None
    expires_at: Instant | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Bounded:
        start, end = self.not_before, self.expires_at
        if start is not None and end is not None and end <= start:
            raise PydanticCustomError("bounds", "'expires_at' must be later than 'not_before'.")
        return self


class RoleBody(Body):
    """What a role is written with."""

    description: Text | None = None


class MembershipBody(Bounded):
    """What a membership is written with: the whole of it."""


class AddRole(Body):
    """Make a role, or give an existing one another description."""

    op: Literal["add_role"]
    role: RoleName
    description: Text | None = None


class RemoveRole(Body):
    """Remove a role with its members, grants and parents."""

    op: Literal["remove_role"]
    role: RoleName


class Grant(Body):
    """Give a permission to a role."""

    op: Literal["grant"]
    role: RoleName
    permission: GrantName


class Revoke(Body):
    """Take a permission from a role."""

    op: Literal["revoke"]
    role: RoleName
    permission: GrantName


class AddMember(Bounded):
    """Make a user a member of a role."""

    op: Literal["add_member"]
    user: UserName
    role: RoleName


class RemoveMember(Body):
    """End a user's membership; without a scope, in every scope."""

    op: Literal["remove_member"]
    user: UserName
    role: RoleName
    scope: ScopeName | None = None


class AddParent(Body):
    """Let a role inherit from another."""

    op: Literal["add_parent"]
    role: RoleName
    parent: RoleName


class RemoveParent(Body):
    """End an inheritance."""

    op: Literal["remove_parent"]
    role: RoleName
    parent: RoleName


class RemoveUser(Body):
    """Remove everything about a user."""

    op: Literal["remove_user"]
    user: UserName


AnyChange = Annotated[
    Union[  # noqa: UP007 - pydantic wants the union as a value
        AddRole,
        RemoveRole,
        Grant,
        Revoke,
        AddMember,
        RemoveMember,
        AddParent,
        RemoveParent,
        RemoveUser,
    ],
    Field(discriminator="op"),
]


class ChangesBody(Body):
    """A list of changes, applied in order, all or nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "changes": [
                        {"op": "add_role", "role": "admin", "description": "May deploy"},
                        {"op": "grant", "role": "admin", "permission": "deploy"},
                        {"op": "add_member", "user": "alice", "role": "admin"},
                    ]
                }
            ]
        }
    )

    changes: list[AnyChange] = Field(max_length=CHANGES_MAX)
    dry_run: bool = False
