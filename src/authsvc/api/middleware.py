"""The outermost layer: what holds for every request and every answer, whoever made it.

Pure ASGI and only prebuilt bytes, because every check pays for it. Messages that come from below
are copied, never changed: some of them are shared between requests.
"""

from __future__ import annotations

import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from authsvc.api.cors import Cors
from authsvc.api.paths import path_refused
from authsvc.api.problems import body_too_large, render
from authsvc.api.security_headers import Answer, header_sets
from authsvc.clock import Clock, system_clock
from authsvc.errors import AuthsvcError, BadRequest

BODY_LIMIT = 64 * 1024
BULK_BODY_LIMIT = 8 * 1024 * 1024
BULK_PATHS = frozenset({"/api/check", "/api/changes"})

Observer = Callable[[Scope, int, float], None]

_log = logging.getLogger("authsvc.edge")
_request_id = re.compile(rb"[A-Za-z0-9._\-]{1,128}").fullmatch
_host_and_port = re.compile(
    rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._\-]*)(?::[0-9]{1,5})?"
).fullmatch

_ids: list[str] = []
os.register_at_fork(after_in_child=_ids.clear)


def new_request_id() -> str:
    """32 hexadecimal digits: a random version-4 UUID without its hyphens."""
    if not _ids:
        # A call into the system for each id would cost more than the rest of this layer.
        digits = os.urandom(16 * 256).hex()
        _ids.extend(
            f"{digits[i : i + 12]}4{digits[i + 13 : i + 16]}a{digits[i + 17 : i + 32]}"
            for i in range(0, len(digits), 32)
        )
    return _ids.pop()


def request_id_of(sent: bytes | None, new_id: Callable[[], str] = new_request_id) -> str:
    """The id a request was sent with, if it is a fit one, else a new one."""
    return sent.decode("ascii") if sent and _request_id(sent) else new_id()


class ResponseCutShort(RuntimeError):
    """An answer failed after it had begun; the server must close the connection."""


class Edge:
    """ASGI middleware around the whole application.

    Gives every request an id (``scope["state"]["request_id"]``), refuses ambiguous paths, foreign
    hosts and large bodies, puts the security headers on every answer, and turns what nobody
    handled into a logged 500. ``observe`` is called with the scope, the status and the seconds.

    ``allowed_hosts`` empty allows any; an entry ``*.example.com`` allows every name below.
    Without ``cors`` no other origin's page may read anything.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        clock: Clock = system_clock,
        allowed_hosts: Sequence[str] = (),
        xss_protection: str = "1; mode=block",
        body_limit: int = BODY_LIMIT,
        bulk_body_limit: int = BULK_BODY_LIMIT,
        bulk_paths: frozenset[str] = BULK_PATHS,
        new_id: Callable[[], str] = new_request_id,
        observe: Observer | None = None,
        cors: Cors | None = None,
    ) -> None:
        self.app = app
        self._clock = clock
        hosts = [host.lower() for host in allowed_hosts]
        self._any_host = not hosts or "*" in hosts
        self._hosts = frozenset(hosts)
        self._host_endings = tuple(host[1:] for host in hosts if host.startswith("*."))
        self._body_limit = body_limit
        self._bulk_body_limit = bulk_body_limit
        self._bulk_paths = bulk_paths
        self._new_id = new_id
        self._observe = observe
        self._cors = cors
        self._headers = header_sets(xss_protection)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter() if self._observe is not None else 0.0
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = request_id_of(headers.get(b"x-request-id"), self._new_id)
        state = scope.get("state")
        scope["state"] = (
            {**state, "request_id": request_id} if state else {"request_id": request_id}
        )
        path: str = scope["path"]
        if root := scope.get("root_path"):
            path = path.removeprefix(root)
        cors = self._cors
        more = () if cors is None else cors.headers_for(scope, headers.get(b"origin"))
        answer = Answer(send, scope, path, request_id, self._headers, more)
        try:
            if b"content-length" in headers or b"transfer-encoding" in headers:
                receive = self._limited(headers, receive, path)
            elif scope["http_version"] not in ("1.1", "1.0"):
                receive = _counted(receive, self._limit(path))
            self._admit(scope, headers)
            if cors is not None and cors.is_preflight(scope, headers):
                await cors.answer_preflight(answer)
            else:
                await self.app(scope, receive, answer)
        except ClientDisconnect:
            return
        except Exception as error:
            await self._failed(error, scope, answer, request_id)
        finally:
            if self._observe is not None and answer.status:
                self._observe(scope, answer.status, time.perf_counter() - began)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raise for a request no route should see."""
        if (reason := path_refused(scope)) is not None:
            raise BadRequest(reason)
        pairs: list[tuple[bytes, bytes]] = scope["headers"]
        if len(pairs) != len(headers) and sum(name == b"host" for name, _ in pairs) > 1:
            raise BadRequest("Exactly one Host header is allowed")
        if not self._any_host:
            found = _host_and_port(headers.get(b"host", b""))
            host = found[1].decode("ascii").lower() if found else ""
            if host not in self._hosts and not host.endswith(self._host_endings or ("\0",)):
                raise BadRequest("This service does not answer for that Host")

    def _limit(self, path: str) -> int:
        return self._bulk_body_limit if path in self._bulk_paths else self._body_limit

    def _limited(self, headers: dict[bytes, bytes], receive: Receive, path: str) -> Receive:
        """``receive`` for a request with a body; raises when the declared length says too much."""
        limit = self._limit(path)
        declared = headers.get(b"content-length")
        if declared is not None:
            if b"transfer-encoding" in headers or not declared.isdigit():
                raise BadRequest("The length of the body is ambiguous")
            if len(declared) > 18 or int(declared) > limit:
                raise body_too_large(limit)
        return _counted(receive, limit)

    async def _failed(
        self, error: Exception, scope: Scope, answer: Answer, request_id: str
    ) -> None:
        """Answer for an exception that came through, as far as an answer is still possible."""
        if not isinstance(error, AuthsvcError | HTTPException):
            _log.error(
                "unhandled %s in %s %s, request %s, at %s",
                _kinds(error),
                scope["method"],
                getattr(scope.get("route"), "path", "no route"),
                request_id,
                _frames(error),
            )
        if answer.finished:
            return
        if answer.status:
            raise ResponseCutShort(f"request {request_id}") from None
        status, made, body = render(error, request_id, self._clock())
        await answer({"type": "http.response.start", "status": status, "headers": made})
        await answer({"type": "http.response.body", "body": body})


def _counted(receive: Receive, limit: int) -> Receive:
    """``receive`` that raises as soon as the body has more than ``limit`` bytes."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                raise body_too_large(limit)
        return message

    return counted


def _kinds(error: BaseException) -> str:
    """The class of an exception and of what caused it; messages may hold statements and values."""
    kinds = [type(error).__qualname__]
    while (cause := error.__cause__ or error.__context__) is not None and len(kinds) < 5:
        kinds.append(type(cause).__qualname__)
        error = cause
    return " from ".join(kinds)


def _frames(error: BaseException) -> str:
    """Where it happened, innermost first: files, lines and functions, no source and no values."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return " < ".join(
        f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}"
        for frame in reversed(frames)
    )
