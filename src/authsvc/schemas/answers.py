"""The ``data`` of answers, for OpenAPI."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field


class RoleWritten(BaseModel):
    role: str
    description: str
    created: bool


class RoleDetails(BaseModel):
    role: str
    description: str
    parents: list[str] = Field(description="The roles it inherits from directly")
    permissions: list[str] = Field(description="What is granted to it directly")
    members_count: int = Field(description="Users who hold it directly, in force or not")
    created_at: datetime


class RoleRemoved(BaseModel):
    result: bool = Field(description="The same as `removed`")
    role: str
    removed: bool


class RoleItem(BaseModel):
    role: str
    description: str


class ParentWritten(BaseModel):
    role: str
    parent: str
    added: bool


class ParentRemoved(BaseModel):
    role: str
    parent: str
    removed: bool


class PermissionGranted(BaseModel):
    role: str
    permission: str
    granted: bool


class PermissionRemoved(BaseModel):
    role: str
    permission: str
    removed: bool


class MembershipWritten(BaseModel):
    user: str
    role: str
    added: bool
    updated: bool
    not_before: datetime | None
    expires_at: datetime | None
    scope: str | None


class MembershipRemoved(BaseModel):
    user: str
    role: str
    removed: bool


class Ground(BaseModel):
    role: str = Field(description="The role that holds the grant")
    via: list[str] = Field(description="From the role the user holds to the one with the grant")
    permission: str = Field(description="The grant that covers, perhaps a wildcard")
    scope: str | None = Field(description="What the membership is bound to")


class Why(BaseModel):
    """`allowed_by` for a yes, `denied_because` for a no."""

    allowed_by: list[Ground] = Field(default=[])
    denied_because: Literal[
        "no_such_user",
        "no_role_grants_it",
        "membership_not_started",
        "membership_expired",
        "out_of_scope",
        "user_not_key_backed",
    ] = Field(default="no_role_grants_it")


class HasPermission(BaseModel):
    has_permission: bool
    reason: Literal["user_not_key_backed"] = Field(
        default="user_not_key_backed",
        description="Only on a no that strict users are the reason of",
    )


class HasPermissionWhy(HasPermission):
    why: Why = Field(default=Why(), description="Only with `explain`")


class PermissionItem(BaseModel):
    name: str


class UserPermissions(BaseModel):
    count: int = Field(description="How many are on this page")
    permissions: list[PermissionItem]


class UserRole(BaseModel):
    user: str
    role: str


class StoredMembership(BaseModel):
    """With `direct=true`: a stored row."""

    user: str
    role: str
    scope: str | None
    not_before: datetime | None
    expires_at: datetime | None


class RoleName(BaseModel):
    role: str


class WorkflowUsers(BaseModel):
    count: int = Field(description="How many are on this page")
    members: list[UserRole]


class CheckResults(BaseModel):
    results: list[bool] | list[HasPermissionWhy] | dict[str, bool] | dict[str, HasPermissionWhy]
    allowed: int = Field(default=0, description="Absent from the short form")
    denied: int = Field(default=0, description="Absent from the short form")


class UserRemoved(BaseModel):
    memberships_removed: int
    api_keys_revoked: int


class PlannedEffect(BaseModel):
    index: int
    op: str
    changed: bool
    updated: bool
    count: int = Field(description="How many memberships go")


class ChangesApplied(BaseModel):
    applied: int = Field(description="How many changes had an effect")
    unchanged: int
    effects: list[PlannedEffect] = Field(default=[], description="Only with `dry_run`")
