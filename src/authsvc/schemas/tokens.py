"""What the token endpoints answer, for OpenAPI."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Issued(BaseModel):
    """RFC 6749, section 5.1; times in seconds."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    scope: str


class Refused(BaseModel):
    """RFC 6749, section 5.2."""

    error: Literal[
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unsupported_grant_type",
        "invalid_scope",
    ]
    error_description: str


class Introspection(BaseModel):
    """RFC 7662, section 2.2; the rest is there only for an active token."""

    active: bool
    scope: str = ""
    client_id: str = ""
    token_type: str = ""
    exp: int = Field(default=0, description="Seconds since 1970")
    iat: int = 0
    nbf: int = 0
    sub: str = ""
    aud: str = ""
    iss: str = ""
    jti: str = ""


class Jwks(BaseModel):
    """RFC 7517, section 5."""

    keys: list[dict[str, str]]
