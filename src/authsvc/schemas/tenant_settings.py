"""What a tenant chooses for itself."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from authsvc.schemas.changes import Body

_STRICT = "Users without an API key in force may do nothing, and can be put into no role"


class SettingsBody(Body):
    """All settings, as they are to be."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"strict_users": True}]})

    strict_users: bool = Field(description=_STRICT)


class Settings(BaseModel):
    """All settings, as they are."""

    strict_users: bool = Field(description=_STRICT)
