"""Calls from web pages of other origins (Fetch standard, section 3.2; api.md, section 5).

Used by ``Edge``, so that refusals of every kind carry the same headers as successes. No answer
ever carries ``Access-Control-Allow-Credentials``: the service knows no cookies.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import Message, Scope, Send

from authsvc.api.security_headers import Pairs
from authsvc.network_names import ANY

MAX_AGE_SECONDS = 600

_EXPOSED = (
    b"access-control-expose-headers",
    b"X-Request-ID, Retry-After, RateLimit, RateLimit-Policy,"
    b" X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset",
)
_PREFLIGHT: Message = {
    "type": "http.response.start",
    "status": 204,
    "headers": [
        (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
        (
            b"access-control-allow-headers",
            b"Authorization, Content-Type, Idempotency-Key, X-Request-ID",
        ),
        (b"access-control-max-age", b"%d" % MAX_AGE_SECONDS),
    ],
}


class Cors:
    """Which origins' pages may read the answers: those listed, byte for byte, or with ``*`` all.

    A page of any other origin is answered as if there were no such thing as CORS.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origin.encode("ascii") for origin in origins)
        self._any = ANY in origins
        self.always: Pairs = (
            ((b"access-control-allow-origin", b"*"), _EXPOSED)
            if self._any
            # One answer to all would end up in caches and be given to the wrong page.
            else ((b"vary", b"Origin"),)
        )
        """What the answers to requests without an origin carry, too."""

    def headers_for(self, scope: Scope, origin: bytes | None) -> Pairs:
        """What the answer to a request from this origin carries."""
        if self._any or not self._allows(scope, origin):
            return self.always
        return (*self.always, (b"access-control-allow-origin", origin or b""), _EXPOSED)

    def is_preflight(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        """Whether this is a browser's question that ``answer_preflight`` answers."""
        return (
            scope["method"] == "OPTIONS"
            and b"access-control-request-method" in headers
            and self._allows(scope, headers.get(b"origin"))
        )

    async def answer_preflight(self, send: Send) -> None:
        """What may be asked: the same for all; the browser judges by it."""
        await send(_PREFLIGHT)
        await send({"type": "http.response.body", "body": b""})

    def _allows(self, scope: Scope, origin: bytes | None) -> bool:
        if origin is None or sum(name == b"origin" for name, _ in scope["headers"]) != 1:
            return False
        return self._any or origin in self._origins
