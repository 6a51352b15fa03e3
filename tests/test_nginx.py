"""The shipped nginx configuration in a real nginx with TLS, in front of a real server.

What matters is asked twice, through nginx and directly: neither may understand a request in a way
that the other does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from certificates import server_context
from http_api import HEADERS, PROBLEM_FIELDS
from test_cli import FIRST_KEY, Home, Serving, eventually, free_port

DOCKER = Path(__file__).parents[1] / "docker"
KEY = {"Authorization": f"Bearer {FIRST_KEY}"}
GUESS = "0b9a2e8e-0d0e-4c57-9a6e-3f6c8a5b1c2d"
CHECK = "/api/has_permission/alice/deploy"

pytestmark = pytest.mark.timeout(400)


@dataclass
class Front:
    """nginx, and the server behind it."""

    port: int
    folder: Path
    server: Serving
    home: Home

    @property
    def url(self) -> str:
        """Where nginx answers."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def direct_port(self) -> int:
        """Where the server answers without it."""
        return int(self.server.url.rpartition(":")[2])

    def context(self) -> ssl.SSLContext:
        """Trust in its certificate."""
        return ssl.create_default_context(cafile=str(self.folder / "certificate.pem"))

    def client(self, source: str = "127.0.0.1") -> httpx.Client:
        """A client of nginx at another address of this machine: its limits are per address."""
        transport = httpx.HTTPTransport(verify=self.context(), local_address=source)
        return httpx.Client(base_url=self.url, transport=transport, timeout=30)


def configuration(folder: Path, port: int, server: int) -> str:
    """The shipped configuration with this machine's paths and ports."""
    for name in ("authsvc_proxy.conf", "authsvc_refusal.conf"):
        shutil.copyfile(DOCKER / name, folder / name)
    text = (DOCKER / "nginx.conf").read_text()
    for old, new in (
        ("listen 443 ssl http2", f"listen 127.0.0.1:{port} ssl http2"),
        ("server authsvc:5000", f"server 127.0.0.1:{server}"),
        ("/etc/nginx/certs/fullchain.pem", str(folder / "certificate.pem")),
        ("/etc/nginx/certs/privkey.pem", str(folder / "key.pem")),
        ("/etc/nginx/", f"{folder}/"),
        ("/dev/stdout", str(folder / "access.log")),
        ("worker_processes auto", f"pid {folder}/nginx.pid;\nworker_processes 1"),
        (
            "server_tokens off;",
            "server_tokens off;\n"
            + "\n".join(
                f"{kind}_temp_path {folder}/{kind};"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            ),
        ),
    ):
        assert old in text
        text = text.replace(old, new)
    path = folder / "nginx.conf"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """nginx with the shipped configuration in front of ``authsvc serve``."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if nginx is None:
        message = "NOT TRIED BEHIND NGINX: there is no nginx (apt-get install nginx)"
        # As with the browser: where it is expected it must be there.
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    server_context(folder, 90)
    home = Home(
        tmp_path_factory.mktemp("home"),
        {
            "AUTH_CLIENT_KEY": FIRST_KEY,
            "AUTH_CLIENT_REGISTRATION": "closed",
            "AUTH_TRUSTED_PROXIES": "127.0.0.1",
            "AUTH_RATE_LIMIT_AUTH_FAILURE": "5/hour",
        },
    )
    with home.serving() as server:
        port = free_port()
        path = configuration(folder, port, int(server.url.rpartition(":")[2]))
        tried = subprocess.run([nginx, "-t", "-p", folder, "-c", path], capture_output=True)
        assert tried.returncode == 0, tried.stderr.decode()
        command = [nginx, "-p", str(folder), "-c", path, "-g", "daemon off; user root;"]
        if os.getuid() != 0:
            command[-1] = "daemon off;"
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        made = Front(port, folder, server, home)
        try:
            eventually(lambda: _answers(made), "nginx answers")
            yield made
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait(20)


def _answers(front: Front) -> bool:
    try:
        with front.client() as client:
            return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


# TLS (the guide, "Transport Security")


def test_only_todays_tls(front: Front) -> None:
    def version(least: ssl.TLSVersion, most: ssl.TLSVersion) -> str | None:
        context = front.context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            # Python advises against what is tried to be refused here.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version, context.maximum_version = least, most
        with (
            socket.create_connection(("127.0.0.1", front.port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            return connection.version()

    assert version(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert version(ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        version(ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1)


def test_answers_are_the_services_own(front: Front) -> None:
    with front.client("127.0.0.20") as client:
        for path, headers in ((CHECK, KEY), (CHECK, {}), ("/health", {}), ("/docs", {})):
            through = client.get(path, headers=headers)
            direct = front.server.http.get(front.server.url + path, headers=headers)
            assert through.status_code == direct.status_code
            for name, value in HEADERS.items():
                assert through.headers.get_list(name) == [value]
        plain = httpx.get(f"http://127.0.0.1:{front.port}/api/roles")
        assert plain.status_code == 400


# Rate limit (the guide, "Nginx Rate Limiting")


def test_ten_a_second_and_twenty_more(front: Front) -> None:
    async def at_once(number: int) -> tuple[Counter[int], list[httpx.Response], float]:
        transport = httpx.AsyncHTTPTransport(
            verify=front.context(), local_address="127.0.0.21",
            limits=httpx.Limits(max_connections=number),
        )  # fmt: skip
        async with httpx.AsyncClient(base_url=front.url, transport=transport) as client:
            # Connected beforehand, so that the requests come together.
            await asyncio.gather(*(client.get("/health") for _ in range(number)))
            began = time.monotonic()
            sent = [client.get(CHECK, headers=KEY) for _ in range(number)]
            answers = await asyncio.gather(*sent)
            took = time.monotonic() - began
        return Counter(one.status_code for one in answers), answers, took

    found, answers, took = asyncio.run(at_once(40))
    # One, twenty more, and what a tenth of a second each gives back while they arrive.
    assert 21 <= found[200] <= 22 + took * 10
    assert found[200] + found[429] == 40
    refused = next(one for one in answers if one.status_code == 429)
    assert list(refused.json()) == PROBLEM_FIELDS
    assert refused.json()["error"] == "rate_limited"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["content-type"] == "application/json"
    for name, value in HEADERS.items():
        assert refused.headers.get_list(name) == [value]
    time.sleep(2.5)
    with front.client("127.0.0.21") as client:
        for _ in range(15):
            assert client.get(CHECK, headers=KEY).status_code == 200
            time.sleep(0.1)


# Whose request it is


def test_a_spoofed_address_is_nobodys(front: Front) -> None:
    spoofs = [{"X-Forwarded-For": f"198.51.100.{number}"} for number in range(4)] + [
        {"X-Forwarded-For": "127.0.0.1, 198.51.100.9"},
        {"Forwarded": "for=198.51.100.10"},
        {"X-Real-IP": "198.51.100.11"},
        {"X-Forwarded-For": "unknown"},
    ]
    bad = {"Authorization": f"Bearer {GUESS}"}
    with front.client("127.0.0.30") as client:
        found = [client.get("/api/roles", headers=bad | spoof).status_code for spoof in spoofs]
    assert found == [401] * 5 + [429] * 3
    # Directly, from an address that is no proxy's: forwarded headers are not looked at.
    transport = httpx.HTTPTransport(local_address="127.0.0.31")
    with httpx.Client(base_url=front.server.url, transport=transport) as client:
        found = [client.get("/api/roles", headers=bad | spoof).status_code for spoof in spoofs]
        assert found == [401] * 5 + [429] * 3
    # And another address has its own budget: the proxy's is not everybody's.
    with front.client("127.0.0.32") as client:
        assert client.get("/api/roles", headers=bad).status_code == 401


def test_the_audit_trail_has_the_real_address(front: Front) -> None:
    spoof = {"X-Forwarded-For": "198.51.100.7", "X-Request-ID": "spoofed-audit"}
    with front.client("127.0.0.40") as client:
        assert client.post("/api/role/audited", headers=KEY | spoof).status_code == 200
        found = client.get("/api/audit?entity_id=audited", headers=KEY).json()["data"]["entries"]
    (event,) = [one for one in found if one["request_id"] == "spoofed-audit"]
    assert event["ip_address"] == "127.0.0.40"


def test_a_log_without_names_of_users(front: Front) -> None:
    with front.client("127.0.0.41") as client:
        client.get("/api/has_permission/somebody-secret/deploy", headers=KEY)
    eventually(lambda: (front.folder / "access.log").stat().st_size > 0, "nginx logs")
    lines = (front.folder / "access.log").read_text()
    assert "somebody-secret" not in lines
    assert all(json.loads(line)["status"] for line in lines.splitlines())


# Raw requests, through nginx and directly


@contextlib.contextmanager
def connected(front: Front, *, through: bool, source: str) -> Iterator[socket.socket]:
    """A connection from an address of this machine, through nginx or directly."""
    port = front.port if through else front.direct_port
    connection = socket.create_connection(("127.0.0.1", port), 5, (source, 0))
    try:
        if through:
            context = front.context()
            context.set_alpn_protocols(["http/1.1"])
            connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
        connection.settimeout(1.0)
        yield connection
    finally:
        connection.close()


def exchange(front: Front, payload: bytes, *, through: bool, source: str) -> bytes:
    """All that is answered to these bytes before the other side closes, or falls silent."""
    received = b""
    with (
        connected(front, through=through, source=source) as connection,
        contextlib.suppress(OSError),
    ):
        connection.sendall(payload)
        while more := connection.recv(65536):
            received += more
    return received


def statuses(answer: bytes) -> list[int]:
    """The statuses of the answers in a stream of bytes."""
    return [int(found) for found in re.findall(rb"^HTTP/1\.1 (\d{3})", answer, re.MULTILINE)]


def plain_request(path: str, *headers: str, method: str = "GET") -> bytes:
    """A request whose connection ends with it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: auth.example.com", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


AUTH = f"Authorization: Bearer {FIRST_KEY}"
TRICKS = [
    "/api/role/%2e%2e", "/api/role/..", "/api/role/%2E%2E/roles", "/api/role/a%2Fb",
    "/api/role/%2f", "/api/role/a%00", "/api/role/%252F", "/api/role/a;x", "/api/role/a;x=1/b",
    "//api/roles", "/refused/limited",
    "/api//roles", "/api/roles//", "/api/roles/", "/api/./roles", "/api/role/./roles",
    "/api/keys/../roles", "/health/../api/roles", "/health/%2e%2e/api/roles", "/api/role/a\\b",
    "/api/role/%5c", "/api/role/%c0%af", "/api/role/%c0%2e", "/api/role/%e0%80%af",
    "/api/role/%ff", "/api/role/%zz", "/api/role/%", "/api/role/%u0041", "/api/role/a%0a",
    "/api/role/a%0d%0aX:1", "/api/role/a%20b", "/api/role/\uff41", "/API/roles", "/api/ROLES",
    "/api/roles?", "/api/roles?limit=1&limit=2", "/api/roles?%6cimit=1", "/api/roles;limit=1",
    "/api/roles%3flimit=1", "/api/roles#x", "/api%2Froles", "/%61pi/roles", "/api/role/%61dmin",
    "/./api/roles", "/../api/roles", "/..%2fapi/roles", "/.well-known/../api/roles",
    "/docs/../api/roles", "/static/..%2f..%2fsettings.py", "/static/../../settings.py",
    "/static/%2e%2e/%2e%2e/settings.py", "/static/swagger-ui/..%5c..%5csettings.py",
    "/api/has_permission/alice/deploy/", "/api/has_permission//deploy",
    "/api/has_permission/alice%2Fdeploy/x", "/api/has_permission/%2e/deploy",
]  # fmt: skip


def test_paths_mean_the_same_on_both_ways(front: Front) -> None:
    differing = []
    for number, path in enumerate(TRICKS):
        try:
            asked = plain_request(path, AUTH)
        except UnicodeEncodeError:
            asked = plain_request(path.encode().decode("latin-1"), AUTH)
        source = f"127.0.1.{number + 1}"
        through = statuses(exchange(front, asked, through=True, source=source))
        direct = statuses(exchange(front, asked, through=False, source=source))
        # The same answer, or a refusal by nginx of what the service might have understood.
        if through != direct and not (through and through[0] >= 400):
            differing.append((path, through, direct))
        assert through != [500], path
        assert direct != [500], path
    assert differing == []


SMUGGLED = b"GET /api/role/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def _smuggling() -> list[bytes]:
    """Requests whose length can be read in two ways, each with another request inside."""
    length = len(SMUGGLED)
    head = f"POST /api/check HTTP/1.1\r\nHost: auth.example.com\r\n{AUTH}\r\n"
    head += "Content-Type: application/json\r\n"
    ways = [
        f"Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n",
        f"Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n",
        f"Content-Length: {length}\r\nContent-Length: 0\r\n",
        f"Content-Length: 0\r\nContent-Length: {length}\r\n",
        f"Content-Length: 0, {length}\r\n",
        "Content-Length: +5\r\n", "Content-Length: -1\r\n", "Content-Length: 0x5\r\n",
        "Content-Length: 5 \r\n", "Content-Length : 5\r\n", "Content-Length: \r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Transfer-Encoding: xchunked\r\n", "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n", "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding:\tchunked\r\n", "Transfer-Encoding:\x0bchunked\r\n",
        "transfer-encoding: CHUNKED\r\nContent-Length: 3\r\n",
        "X: y\r\n Transfer-Encoding: chunked\r\n", "Transfer-Encoding: chunk\r\n",
        'Transfer-Encoding: "chunked"\r\n', "Transfer-Encoding: chunked;x\r\n",
    ]  # fmt: skip
    made = [f"{head}{way}\r\n0\r\n\r\n".encode("latin-1") + SMUGGLED for way in ways]
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()
    made += [
        chunked + b"2\r\n{}\r\n0\r\nX: y\r\n\r\n",
        chunked + b"2;ext=1\r\n{}\r\n0\r\n\r\n",
        chunked + b"2;\n{}\r\n0\r\n\r\n",
        chunked + b"02\r\n{}\r\n0\r\n\r\n" + SMUGGLED,
        chunked + b"0x2\r\n{}\r\n0\r\n\r\n",
        chunked + b"FFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
        chunked + b"2\n{}\n0\n\n" + SMUGGLED,
        head.replace("\r\n", "\n").encode() + b"Content-Length: 2\n\n{}" + SMUGGLED,
    ]
    return made


def test_no_request_is_smuggled_into_anothers_connection(front: Front) -> None:
    payloads = _smuggling()
    assert len(payloads) >= 30
    for number, payload in enumerate(payloads):
        source = f"127.0.2.{number + 1}"
        for through in (True, False):
            answer = exchange(front, payload, through=through, source=source)
            assert 500 not in statuses(answer), payload
            # Without a credential of its own the request inside could only be refused; had it
            # been taken for the next one of somebody with a credential, it would say 404.
            assert b"role_not_found" not in answer, payload
        # The next one on nginx's connections to the server is answered as itself.
        with front.client(f"127.0.3.{number + 1}") as victim:
            answer_to = victim.get(CHECK, headers=KEY)
        assert answer_to.status_code == 200
        assert answer_to.json()["data"] == {"has_permission": False}


CREDENTIALS = [
    (AUTH, AUTH), (AUTH, "Authorization: Basic eDp5"), ("Authorization: Basic eDp5", AUTH),
    (f"{AUTH},Bearer {FIRST_KEY}",), (f"{AUTH} {FIRST_KEY}",), (f"{AUTH}\r\n more",),
    (f"Authorization: Bearer{FIRST_KEY}",), (f"Authorization: {FIRST_KEY}",),
    (f"Authorization: Token {FIRST_KEY}",), (f"X-API-Key: {FIRST_KEY}",),
    (f"Proxy-Authorization: Bearer {FIRST_KEY}",), (f"Cookie: Authorization=Bearer {FIRST_KEY}",),
    ("Authorization: Bearer",), ("Authorization:",), (f"Authorization: Bearer {FIRST_KEY}x",),
    (f"Authorization: Bearer {{{FIRST_KEY}}}",), (f"Authorization: Bearer urn:uuid:{FIRST_KEY}",),
    (f"Authorization: Bearer {FIRST_KEY.replace('-', '')}",),
    (f"Authorization : Bearer {FIRST_KEY}",), (f"Authorization\t: Bearer {FIRST_KEY}",),
]  # fmt: skip


def test_one_credential_in_one_header(front: Front) -> None:
    assert len(CREDENTIALS) == 20
    for number, headers in enumerate(CREDENTIALS):
        for through in (True, False):
            source = f"127.0.{4 + through}.{number + 1}"
            answer = exchange(front, plain_request(CHECK, *headers), through=through, source=source)
            assert statuses(answer) in ([401], [400], []), (headers, through, answer)
        also = plain_request(CHECK, AUTH, f"X-API-Key: {GUESS}")
        assert statuses(exchange(front, also, through=False, source="127.0.6.1")) == [200]


def test_a_body_without_end(front: Front) -> None:
    for path, most in (("/api/keys", 2), ("/api/check", 12)):
        for through in (True, False):
            head = plain_request(
                path, AUTH, "Content-Type: application/json", "Transfer-Encoding: chunked",
                method="POST",
            )  # fmt: skip
            chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
            source = f"127.0.7.{1 + through}"
            with connected(front, through=through, source=source) as connection:
                connection.settimeout(5)
                sent, answer = 0, b""
                with contextlib.suppress(OSError):
                    connection.sendall(head)
                    while not select.select([connection], [], [], 0)[0] and sent < 50e6:
                        connection.sendall(chunk)
                        sent += len(chunk)
                with contextlib.suppress(OSError):
                    answer = connection.recv(65536)
            assert statuses(answer) == [413] or not answer
            assert sent < (most + 4) * 1e6, (path, through)


# Slow clients


def drip(port: int, number: int) -> list[socket.socket]:
    """Connections that have begun a request and never end it."""
    made = []
    for position in range(number):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setblocking(False)
        begun = (
            b"",
            b"GET /api/roles HTTP/1.1\r\nHost: x\r\nX-A: ",
            b"POST /api/check HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 60000\r\n\r\n[",
        )[position % 3]
        if begun:
            connection.send(begun)
        made.append(connection)
    return made


def closed(connection: socket.socket) -> bool:
    """Whether the other side has ended the connection."""
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_slow_clients_are_bounded(front: Front) -> None:
    slow = drip(front.direct_port, 300)
    began = time.monotonic()
    left = list(slow)
    while left and time.monotonic() - began < 30:
        for connection in left:
            with contextlib.suppress(OSError):
                connection.send(b"a")
        # Others are answered as ever.
        asked = time.monotonic()
        assert front.server.ask(CHECK, FIRST_KEY).status_code == 200
        assert time.monotonic() - asked < 5
        time.sleep(0.5)
        left = [connection for connection in left if not closed(connection)]
    took = time.monotonic() - began
    for connection in slow:
        connection.close()
    assert not left
    assert 8 < took < 25


def test_a_body_that_comes_steadily_is_not_slow(front: Front) -> None:
    def steadily() -> Iterator[bytes]:
        yield b'{"checks": ['
        for _ in range(24):
            time.sleep(0.5)
            yield b" " * 64 * 1024
        yield b'{"user": "alice", "permission": "deploy"}]}'

    headers = KEY | {"Content-Type": "application/json"}
    answer: Any = front.server.http.post(
        f"{front.server.url}/api/check", headers=headers, content=steadily()
    )
    assert answer.status_code == 200
