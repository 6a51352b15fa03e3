"""Bodies and answers about the API keys of a tenant's users."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from authsvc.schemas.changes import Body
from authsvc.schemas.names import Instant, PermissionName, Text

_SECRET = "rak_" + "0" * 43


class ApiKeyBody(Body):
    """A wanted key for a user."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"label": "laptop"}]})

    label: Text = ""
    expires_at: Instant | None = None


class PresentedKey(Body):
    """A key that somebody presented to the tenant's service."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"api_key": _SECRET}]})

    api_key: str = Field(repr=False, max_length=512, description="The key, as it was presented")


class PresentedKeyQuestion(PresentedKey):
    """A presented key, and what its user wants to do."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"api_key": _SECRET, "permission": "deploy"}]}
    )

    permission: PermissionName


class ApiKeyMinted(BaseModel):
    """A key just made."""

    api_key: str = Field(description="The key, shown this once")
    key_id: str
    user: str
    label: str
    key_prefix: str
    created: datetime
    expires_at: datetime | None


class ApiKeyItem(BaseModel):
    """A user's key, without the key."""

    key_id: str
    key_prefix: str
    label: str
    is_active: bool
    created: datetime
    revoked_at: datetime | None
    expires_at: datetime | None
    last_used_at: datetime | None


class ApiKeyList(BaseModel):
    """The keys of one user."""

    count: int = Field(description="How many are on this page")
    keys: list[ApiKeyItem]


class ApiKeyRevoked(BaseModel):
    """What became of a key."""

    revoked: Literal[True]
    already_revoked: bool


class ApiKeyValid(BaseModel):
    """A key in force."""

    valid: Literal[True]
    user: str
    key_id: str
    label: str
    expires_at: datetime | None


class ApiKeyInvalid(BaseModel):
    """A key that is not accepted; another tenant's key is an unknown one."""

    valid: Literal[False]
    reason: Literal["unknown_key", "revoked", "expired"]


class ApiKeyMay(ApiKeyValid):
    """A key in force, and whether its user has the permission."""

    has_permission: bool


class ApiKeyMayNot(ApiKeyInvalid):
    """A key that is not accepted may nothing."""

    has_permission: Literal[False]
