"""Questions to the audit trail, and its entries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field

Word = Annotated[
    str, Field(min_length=1, max_length=32, pattern="^[a-z_]{1,32}$", examples=["grant"])
]
Searched = Annotated[
    str, Field(min_length=1, max_length=254, pattern="^[ -~]{1,254}$", examples=["mallory"])
]
"""A whole value to be found; nothing stored has other characters."""


class AuditEntry(BaseModel):
    """What happened, who did it, when and from where."""

    seq: int | None = Field(description="The number of the change; null for activity")
    timestamp: datetime
    action: str
    entity_type: str
    entity_id: str = Field(description="The name of what it happened to")
    details: dict[str, Any] = Field(description="What was changed, and what it was before")
    actor: str | None = Field(description="The id of the client key that did it, or `command`")
    ip_address: str | None
    user_agent: str | None
    request_id: str | None
    success: bool
    hash: str | None = Field(description="The event's place in the chain; null for activity")


class AuditPage(BaseModel):
    """Some entries of the trail."""

    entries: list[AuditEntry]
    next: str | None = Field(description="The cursor of the next page, null on the last one")
