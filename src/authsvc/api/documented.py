"""How a route shows itself in OpenAPI: an example of its answer, and its failures."""

from __future__ import annotations

from typing import Any

from authsvc.api.envelope import ABSENT
from authsvc.api.problems import error_responses
from authsvc.records import SCOPES

_ALWAYS: tuple[int | str, ...] = (
    400, 401, "insufficient_scope", "tenant_disabled", 429, 500, 503,
)  # fmt: skip


def documented(
    message: str, data: Any, *failures: int | str, result: Any = ABSENT, next: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route under ``/api``: its answer, its own failures and everybody's."""
    example: dict[str, Any] = {"success": True, "code": 200, "message": message, "data": data}
    if result is not ABSENT:
        example["result"] = result
    example |= {"revision": 17, "timestamp": "2026-11-23T10:11:12.345678Z"}
    if next is not None:
        example["next"] = next
    answered = {
        "description": "Done, or already so",
        "content": {"application/json": {"example": example}},
    }
    return {200: answered, **error_responses(*_ALWAYS, 422, *failures)}


def with_token_schemes(document: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's document, in which what takes a client key also takes a token, which the page can
    ask for. Known to the document alone: as dependencies of routes they would cost every request.
    """
    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
    scopes = {scope: f"The scope `{scope}`" for scope in SCOPES}
    schemes["token"] = {
        "type": "oauth2",
        "description": "Asks for an access token. The client key is the *client_secret*; the"
        " *client_id* may be anything.",
        "flows": {"clientCredentials": {"tokenUrl": "api/token", "scopes": scopes}},
    }
    schemes["basic"] = {
        "type": "http",
        "scheme": "basic",
        "description": "The client key as the password, any user name.",
    }
    for path in document["paths"].values():
        for operation in path.values():
            if operation.get("security") == [{"credential": []}]:
                operation["security"] = [{"credential": []}, {"token": []}]
    return document


WRITES: tuple[int | str, ...] = ("busy", "read_only", "outcome_unknown")
"""Failures that only writes have."""
BODIES: tuple[int | str, ...] = (413, 415)
"""Failures that only requests with a body have."""
