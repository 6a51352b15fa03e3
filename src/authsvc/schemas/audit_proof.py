"""Whether a tenant's trail is what was written."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Verified(BaseModel):
    """What walking the chain found."""

    valid: bool = Field(description="Nothing contradicts, and the seals could be looked at.")
    checked: int = Field(description="How many events were walked along.")
    first_broken_seq: int | None = Field(
        description="The number of the first event that is not what was written."
    )
