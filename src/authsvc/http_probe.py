"""One request and its answer, for commands that look at the service from outside.

Either to an application in this process, as a server would call it, or over HTTP to an address.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from authsvc.errors import Unavailable

SECONDS = 15.0
"""How long an answer may take."""

App = Callable[..., Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; ``headers`` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        """The body as JSON, None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


Ask = Callable[..., Awaitable[Answer]]
"""``await ask(method, path, key=None, body=None)``: a credential to be sent as Bearer, and JSON."""


def _request(key: str | None, body: object) -> tuple[dict[str, str], bytes]:
    headers = {"user-agent": "authsvc selftest"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    content = b"" if body is None else json.dumps(body).encode()
    if content:
        headers |= {"content-type": "application/json", "content-length": str(len(content))}
    return headers, content


def in_process(app: App, host: str = "localhost") -> Ask:
    """Ask an ASGI application."""

    async def ask(method: str, path: str, key: str | None = None, body: object = None) -> Answer:
        headers, content = _request(key, body)
        sent: list[Any] = []
        pairs = [(b"host", host.encode())]
        pairs += [(name.encode(), value.encode()) for name, value in headers.items()]
        plain, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": plain,
            "raw_path": plain.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": pairs,
            "client": ("127.0.0.1", 1),
            "server": (host, 443),
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        try:
            await asyncio.wait_for(app(scope, receive, send), SECONDS)
        except TimeoutError:
            raise Unavailable(f"{method} {plain} was not answered in {SECONDS:.0f} s") from None
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        text = b"".join(message.get("body", b"") for message in sent[1:])
        return Answer(sent[0]["status"], found, text)

    return ask


def over_http(url: str) -> Ask:
    """Ask the service at an address, whose certificate is checked. Raises Unavailable."""
    parts = urlsplit(url)
    base = parts.path.rstrip("/")

    def ask_here(method: str, path: str, key: str | None, body: object) -> Answer:
        headers, content = _request(key, body)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(parts.netloc, timeout=SECONDS, context=context)
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=SECONDS)
        try:
            connection.request(method, base + path, body=content or None, headers=headers)
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read())
        except (OSError, http.client.HTTPException) as error:
            kind = type(error).__name__
        finally:
            connection.close()
        raise Unavailable(f"{url} does not answer ({kind})")

    async def ask(method: str, path: str, key: str | None = None, body: object = None) -> Answer:
        return await asyncio.to_thread(ask_here, method, path, key, body)

    return ask
