"""Bodies and answers about client keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from authsvc.schemas.changes import Body
from authsvc.schemas.names import Instant, Text

Scope = Literal["check", "read", "write", "audit", "admin"]


class KeyBody(Body):
    """A wanted client key; without scopes it may do everything."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"label": "web", "scopes": ["check", "read"]}]}
    )

    label: Text = ""
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=5)] | None = None
    expires_at: Instant | None = None


class RotateBody(Body):
    """How long the old key goes on."""

    overlap_seconds: int = Field(default=86_400, ge=0, le=2_592_000)


class KeyItem(BaseModel):
    """A client key, without the key."""

    key_id: str
    label: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class KeyMinted(KeyItem):
    """A key just made."""

    key: str = Field(description="The client key, shown this once")


class KeyRotated(BaseModel):
    """The new key, and when the old one ends."""

    new_key: str = Field(description="The client key, shown this once")
    key_id: str
    old_key_expires_at: datetime


class KeyRevoked(BaseModel):
    """What became of a key."""

    key_id: str
    removed: bool
