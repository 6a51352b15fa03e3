"""How a route shows itself in OpenAPI: an example of its answer, and its failures."""

from __future__ import annotations

from typing import Any

from authsvc.api.envelope import ABSENT
from authsvc.api.problems import error_responses

_ALWAYS: tuple[int | str, ...] = (400, 401, "insufficient_scope", "tenant_disabled", 500, 503)


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


WRITES: tuple[int | str, ...] = ("busy", "read_only", "outcome_unknown")
"""Failures that only writes have."""
BODIES: tuple[int | str, ...] = (413, 415)
"""Failures that only requests with a body have."""
