"""The edge: what holds for every request and every answer, on a small application."""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from authsvc import errors
from authsvc.api.middleware import ResponseCutShort, new_request_id
from edge_app import EVERYWHERE, JSON, SECRET, ask, assert_failure, connect, edge


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with connect(edge()) as made:
        yield made


# The answers


ANSWERS = [
    ("GET", "/api/flag", {}, 200, ""),
    ("POST", "/api/changes", {"content": b"{", "headers": JSON}, 400, "bad_request"),
    ("GET", "/api/fail/401", {}, 401, "unauthorized"),
    ("GET", "/api/fail/403", {}, 403, "insufficient_scope"),
    ("GET", "/api/fail/404", {}, 404, "role_not_found"),
    ("GET", "/api/nowhere", {}, 404, "not_found"),
    ("GET", "/nowhere", {}, 404, "not_found"),
    ("GET", "/api/flag/", {}, 404, "not_found"),
    ("PUT", "/api/role/x", {}, 405, "method_not_allowed"),
    ("GET", "/api/fail/409", {}, 409, "role_cycle"),
    ("POST", "/api/role/x", {"content": b" " * 65_537, "headers": JSON}, 413, "body_too_large"),
    ("POST", "/api/changes", {"data": {"a": "b"}}, 415, "unsupported_media_type"),
    ("GET", "/api/fail/422", {}, 422, "cursor_expired"),
    ("GET", "/api/flag?x=1", {}, 422, "invalid_input"),
    ("GET", "/api/flag?direct=perhaps", {}, 422, "invalid_input"),
    ("GET", "/api/fail/500", {}, 500, "internal_error"),
    ("GET", "/api/fail/500-chained", {}, 500, "internal_error"),
    ("GET", "/api/fail/500-response", {}, 500, "internal_error"),
    ("GET", "/api/fail/503", {}, 503, "busy"),
]


@pytest.mark.parametrize(("method", "path", "more", "status", "word"), ANSWERS)
async def test_every_answer_carries_the_headers(
    client: httpx.AsyncClient, method: str, path: str, more: Any, status: int, word: str
) -> None:
    found = await client.request(method, path, **more)
    assert found.status_code == status
    if status >= 400:
        assert_failure(found, status, word)
    for name, value in EVERYWHERE.items():
        assert found.headers.get_list(name) == [value]
    policy = "default-src 'none'; frame-ancestors 'none'"
    assert found.headers.get_list("content-security-policy") == [policy]
    stored = ["no-store"] if path.startswith("/api/") else []
    assert found.headers.get_list("cache-control") == stored
    assert re.fullmatch(r"[0-9a-f]{32}", found.headers["x-request-id"])
    assert "server" not in found.headers


async def test_pages_have_the_page_policy_and_no_foreign_value(client: httpx.AsyncClient) -> None:
    found = await client.get("/page")
    assert found.headers["content-security-policy"] == "default-src 'self'"
    assert found.headers.get_list("x-frame-options") == ["DENY"]
    assert found.headers["cache-control"] == "no-cache"
    assert "server" not in found.headers


async def test_the_xss_header_is_a_setting() -> None:
    async with connect(edge(xss_protection="0")) as client:
        assert (await client.get("/api/flag")).headers["x-xss-protection"] == "0"


async def test_shared_messages_are_never_changed() -> None:
    headers = [(b"content-type", b"application/json")]
    start: Message = {"type": "http.response.start", "status": 200, "headers": headers}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)
        await send({"type": "http.response.body", "body": b"{}"})

    wrapped = edge(app)
    first, second = await ask(wrapped), await ask(wrapped)
    assert start == {"type": "http.response.start", "status": 200, "headers": headers}
    assert headers == [(b"content-type", b"application/json")]
    assert len(first.headers) == len(second.headers)


async def test_observers_see_status_and_time() -> None:
    seen: list[tuple[str, int, float]] = []

    def observe(scope: Scope, status: int, seconds: float) -> None:
        seen.append((scope["path"], status, seconds))

    wrapped = edge(observe=observe)
    await ask(wrapped)
    await ask(wrapped, raw_path=b"/api//flag")
    assert [one[:2] for one in seen] == [("/api/flag", 200), ("/api//flag", 400)]
    assert all(0 <= one[2] < 10 for one in seen)


# Request ids


def test_made_ids_are_uuids() -> None:
    made = [new_request_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{3}a[0-9a-f]{15}", one) for one in made)


@pytest.mark.parametrize("sent", ["a", "A-b_c.9", "x" * 128])
async def test_good_ids_are_echoed(client: httpx.AsyncClient, sent: str) -> None:
    found = await client.get("/api/nowhere", headers={"x-request-id": sent})
    assert found.headers.get_list("x-request-id") == [sent]
    assert found.json()["request_id"] == sent


@pytest.mark.parametrize("sent", [b"", b" ", b"a b", b"x" * 129, b"a\xe9", b"a\x1b[0m", b"<b>"])
async def test_other_ids_are_replaced(sent: bytes) -> None:
    found = await ask(edge(), headers=[(b"host", b"authsvc"), (b"x-request-id", sent)])
    made = dict(found.headers)[b"x-request-id"]
    assert re.fullmatch(rb"[0-9a-f]{32}", made)


async def test_the_state_of_the_server_is_not_shared_between_requests() -> None:
    lifespan = {"engine": 1}
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"])

    for _ in range(2):
        await ask(edge(app), state=lifespan)
    assert lifespan == {"engine": 1}
    assert seen[0]["engine"] == seen[1]["engine"] == 1
    assert seen[0]["request_id"] != seen[1]["request_id"]


# Bodies


@pytest.mark.parametrize(
    ("path", "limit"),
    [("/api/role/x", 65_536), ("/api/check", 8_388_608), ("/api/changes", 8_388_608)],
)
async def test_the_limit_of_the_body(client: httpx.AsyncClient, path: str, limit: int) -> None:
    body = b"null" + b" " * (limit - 4)
    assert (await client.post(path, content=body, headers=JSON)).status_code in (200, 422)

    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(limit // 4096 + 100):
            read += 1
            yield b" " * 4096

    found = await client.post(path, content=pieces(), headers=JSON)
    assert_failure(found, 413, "body_too_large")
    assert found.headers["connection"] == "close"
    assert read <= limit // 4096 + 2


async def test_a_declared_length_is_refused_unread() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    for declared, status in ((b"65537", 413), (b"1" * 5000, 413), (b"-1", 400), (b"1_0", 400)):
        headers = [(b"host", b"authsvc"), (b"content-length", declared)]
        assert (await ask(edge(app), "POST", headers=headers)).status == status
    both = [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")]
    assert (await ask(edge(app), "POST", headers=both)).status == 400


async def test_bodies_without_any_length_are_counted_too() -> None:
    found = await ask(
        edge(),
        "POST",
        b"/api/role/x",
        headers=[(b"content-type", b"application/json")],
        chunks=[b" " * 60_000, b" " * 60_000],
        http_version="2",
    )
    assert found.status == 413
    assert b"connection" not in dict(found.headers)


async def test_a_caller_who_leaves_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    for path in (b"/api/changes", b"/api/role/x", b"/api/check"):
        found = await ask(
            edge(), "POST", path, headers=headers, chunks=[b"{", b'"'], disconnect=True
        )
        assert found.messages == []
    assert caplog.records == []


# Paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/api/role/a%2Fb",
        "/api/role/a%2fb",
        "/api%2Frole/a",
        "/api/role/a%5Cb",
        "/api/role/a%5cb",
        "/api/role/a\\b",
        "/api/role/%00",
        "/api/role/a%00b",
        "//api/role/a",
        "/api//role/a",
        "/api/role//a",
        "/api/role/a//",
        "/api/./role/a",
        "/api/../api/role/a",
        "/api/role/.",
        "/api/role/..",
        "/api/role/%2e",
        "/api/role/%2e%2e",
        "/api/role/.%2E",
        "/api/role/%2e%2e/",
        "/api/role/%c0%af",
        "/api/role/%e0%80%af",
        "/api/role/%f0%80%80%af",
        "/api/role/%c0%ae%c0%ae",
        "/api/role/%ed%a0%80",
        "/api/role/%ff",
        "/api/role/%",
        "/api/role/%4",
        "/api/role/%zz",
        "/api/role/%u0061",
        "/api/role/\xe9",
        "/api/role/a b",
        "/api/role/a\tb",
        "*",
        "",
    ],
)
async def test_ambiguous_paths_are_refused(path: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    found = await ask(edge(app), raw_path=path.encode("latin-1"))
    assert (found.status, found.body["error"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/role/admin", 200),
        ("/api/role/a%3Ab", 200),
        ("/api/role/%61dmin", 200),
        ("/api/role/...", 200),
        ("/api/role/.a", 200),
        ("/api/role/a%0A", 422),
        ("/api/role/a%0D%0A", 422),
        ("/api/role/%20a", 422),
        ("/api/role/a%1b", 422),
        ("/api/role/a%7F", 422),
        ("/api/role/caf%C3%A9", 422),
        ("/api/role/%EF%BD%81", 422),
        ("/api/role/a%252Fb", 422),
        ("/api/role/%252e%252e", 422),
        ("/api/role/a;x=1", 422),
        ("/api/role/a%3Fb", 422),
        ("/api/role/a%23b", 422),
        ("/api/role/a*", 422),
        ("/api/role/" + "a" * 65, 422),
        ("/api/role/a/", 404),
        ("/api/role/", 404),
        ("/api/flag%0A", 404),
        ("/api/flag%0a%0a", 404),
        ("/API/role/a", 404),
        ("/api/role/a%0A/", 404),
        ("/", 404),
    ],
)
async def test_other_paths_reach_their_route(path: str, status: int) -> None:
    found = await ask(edge(), raw_path=path.encode())
    assert found.status == status
    # Servers that do not hand on the raw path, and prefixes, change nothing.
    bare = await ask(edge(), raw_path=path.encode(), decoded_only=True)
    assert bare.status == status


async def test_a_newline_leads_to_no_other_route() -> None:
    assert (await ask(edge(), "POST", b"/api/keys/rotate")).status == 200
    assert (await ask(edge(), "POST", b"/api/keys/rotate%0A")).status == 404


async def test_a_path_decoded_otherwise_is_refused() -> None:
    found = await ask(edge(), raw_path=b"/api/role/%61", path="/api/role/b")
    assert found.status == 400


async def test_a_prefix_in_front() -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"70000")]
    body = [b"null" + b" " * 69_996]
    for path, status in ((b"/auth/api/check", 200), (b"/auth/api/role/x", 413)):
        found = await ask(edge(), "POST", path, headers=headers, chunks=body, root_path="/auth")
        assert found.status == status
        assert dict(found.headers)[b"cache-control"] == b"no-store"
    found = await ask(edge(), "PUT", b"/auth/api/role/x", root_path="/auth")
    assert dict(found.headers)[b"allow"] == b"DELETE, GET, POST"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/role/x", {"DELETE", "GET", "POST"}),
        ("/api/flag", {"GET"}),
        ("/api/changes", {"POST"}),
        ("/page", {"GET"}),
    ],
)
@pytest.mark.parametrize(
    "method",
    "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT PROPFIND get".split(),  # noqa: SIM905
)
async def test_other_methods_are_refused(path: str, allowed: set[str], method: str) -> None:
    found = await ask(edge(), method, path.encode())
    if method in allowed:
        assert found.status in (200, 422)
    else:
        assert found.status == 405
        assert dict(found.headers)[b"allow"].decode() == ", ".join(sorted(allowed))


@pytest.mark.parametrize(
    "header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "_method"]
)
async def test_no_header_changes_the_method(client: httpx.AsyncClient, header: str) -> None:
    found = await client.post("/api/flag", headers={header: "GET"})
    assert_failure(found, 405, "method_not_allowed")


async def test_two_credentials_stay_visible(client: httpx.AsyncClient) -> None:
    found = await client.get(
        "/api/credentials", headers=[("authorization", "Bearer a"), ("Authorization", "Bearer b")]
    )
    assert found.json()["data"] == ["Bearer a", "Bearer b"]


# Hosts


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"auth.example.com", 200),
        (b"AUTH.example.com:8443", 200),
        (b"a.internal", 200),
        (b"b.a.internal:80", 200),
        (b"[::1]:5000", 200),
        (b"internal", 400),
        (b".internal", 400),
        (b"evil.com", 400),
        (b"auth.example.com.evil.com", 400),
        (b"evil.com/auth.example.com", 400),
        (b"auth.example.com@evil.com", 400),
        (b"auth.example.com:x", 400),
        (b"auth.example.com:", 400),
        (b"auth.example.com, evil.com", 400),
        (b"evil.com#.internal", 400),
        (b"", 400),
        (None, 400),
    ],
)
async def test_only_allowed_hosts_are_answered(host: bytes | None, status: int) -> None:
    app = edge(allowed_hosts=["Auth.example.com", "*.internal", "[::1]"])
    headers = [] if host is None else [(b"host", host)]
    found = await ask(app, headers=headers)
    assert found.status == status
    assert all(b"evil" not in value for _, value in found.headers)


async def test_two_hosts_are_refused_always() -> None:
    headers = [(b"host", b"authsvc"), (b"accept", b"*/*"), (b"host", b"authsvc")]
    assert (await ask(edge(), headers=headers)).status == 400
    assert (await ask(edge(allowed_hosts=["*"]), headers=[(b"host", b"any")])).status == 200


# Failures of our own


async def test_bugs_are_logged_without_what_they_held(caplog: pytest.LogCaptureFixture) -> None:
    async with connect(edge()) as client:
        found = await client.get("/api/fail/500?trace=x", headers={"x-request-id": "abc"})
    assert_failure(found, 500, "internal_error")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("authsvc.edge", logging.ERROR)
    text = record.getMessage()
    assert "RuntimeError" in text
    assert "request abc" in text
    assert "edge_app.py" in text
    assert SECRET not in text
    assert record.exc_info is None
    assert "\n" not in text


async def test_bugs_below_the_framework(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError(SECRET) from KeyError(SECRET)

    found = await ask(edge(app))
    assert (found.status, found.body["error"]) == (500, "internal_error")
    assert "ValueError from KeyError" in caplog.text
    assert SECRET not in caplog.text


async def test_refusals_below_the_framework_are_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise errors.Unavailable

    found = await ask(edge(app))
    assert (found.status, found.body["error"]) == (503, "storage_unavailable")
    assert dict(found.headers)[b"retry-after"] == b"1"
    assert caplog.records == []


async def test_a_begun_answer_is_cut_and_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ResponseCutShort) as raised:
        await ask(edge(), raw_path=b"/api/cut")
    assert SECRET not in str(raised.value)
    assert raised.value.__suppress_context__
    assert "RuntimeError" in caplog.text
    assert SECRET not in caplog.text


async def test_a_finished_answer_stands(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        raise RuntimeError(SECRET)

    found = await ask(edge(app))
    assert (found.status, len(found.messages)) == (200, 2)
    assert "RuntimeError" in caplog.text


async def test_other_protocols_pass() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await ask(edge(app), type="lifespan")
    await ask(edge(app), type="websocket")
    assert seen == ["lifespan", "websocket"]


# On a real server


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(edge(), log_level="error", access_log=False, server_header=False)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=10)
    listener.close()


def converse(port: int, *parts: bytes) -> bytes:
    """Send the parts and read until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        answered = b""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65_536):
                answered += piece
        return answered


def test_headers_on_the_wire(port: int) -> None:
    found = converse(port, b"GET /api/flag HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head = found.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 200")
    names = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:]]
    assert len(set(names)) == len(names)
    assert {b"date", b"x-request-id", *(name.encode() for name in EVERYWHERE)} <= set(names)
    assert b"server" not in names


def test_an_endless_body_is_cut_off(port: int) -> None:
    head = (
        b"POST /api/role/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield head
        while sent < 1 << 30:
            sent += 0x8000
            yield chunk

    assert converse(port, *itertools.islice(endless(), 40)).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        sent = 0
        with pytest.raises(ConnectionError):
            collections.deque(map(connection.sendall, endless()), maxlen=0)
        # What the kernels on both sides hold is the most that was taken off our hands.
        assert sent < 64 << 20


def test_a_request_of_two_lengths_hides_no_other(port: int) -> None:
    hidden = b"GET /api/role/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    for lengths in (
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: identity\r\nContent-Length: 4\r\n",
        b"Content-Length: +4\r\n",
    ):
        head = b"POST /api/check HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + lengths
        found = converse(port, head + b"\r\n0\r\n\r\n" + hidden)
        assert found.startswith(b"HTTP/1.1 4"), lengths
        assert b'"role":"hidden"' not in found, lengths
