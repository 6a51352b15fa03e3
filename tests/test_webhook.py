"""The webhook: who takes its messages can tell whose they are, and it leads nowhere inside."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from authsvc import models, webhook
from authsvc.database import Database, Transaction
from authsvc.repositories.outgoing import Outgoing
from authsvc.services import deliveries
from authsvc.services.deliveries import Deliveries
from authsvc.webhook import NotSent, Webhook, is_outside
from certificates import server_context
from conftest import ControlledClock, Storage
from planted import without

SECRET = "a secret of the webhook tests, long enough"
BODY = b'{"type":"alert","rule":"watched_role"}'


@dataclass
class Receiver:
    """A server that keeps what it is sent, with the certificate of ``hooks.example``."""

    port: int = 0
    status: int = 200
    location: str | None = None
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """TLS of the receiver; ``certificate.pem`` is its own authority."""
    return server_context(tmp_path, days=1, name="hooks.example")


@pytest.fixture
def trust(tls: ssl.SSLContext, tmp_path: Path) -> ssl.SSLContext:
    """What trusts the receiver and nobody else."""
    assert tls
    return ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))


def receiving(tls: ssl.SSLContext | None) -> Iterator[Receiver]:
    """A receiver that runs until it is not needed any more."""
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            kept.got.append((self.path, headers, body))
            self.send_response(kept.status)
            if kept.location is not None:
                self.send_header("Location", kept.location)
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    kept.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield kept
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def receiver(tls: ssl.SSLContext) -> Iterator[Receiver]:
    """Over TLS."""
    yield from receiving(tls)


@pytest.fixture
def plain() -> Iterator[Receiver]:
    """Without TLS."""
    yield from receiving(None)


def here(_host: str, _port: int) -> Sequence[str]:
    return ["127.0.0.1"]


def test_a_message_is_signed_as_the_standard_says(
    receiver: Receiver, trust: ssl.SSLContext
) -> None:
    url = f"https://hooks.example:{receiver.port}/in?tenant=1"
    now = int(time.time())
    Webhook(url, SECRET, private=True, resolver=here, trust=trust).send("msg_1", now, BODY)
    ((path, headers, body),) = receiver.got
    assert (path, body) == ("/in?tenant=1", BODY)
    assert headers["content-type"] == "application/json"
    assert headers["host"] == f"hooks.example:{receiver.port}"
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("msg_1", str(now))
    # Computed from the specification, not with our code.
    signed = b".".join([b"msg_1", str(now).encode(), body])
    expected = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest())
    assert headers["webhook-signature"] == f"v1,{expected.decode()}"


def test_the_example_of_the_specification() -> None:
    """https://github.com/standard-webhooks/standard-webhooks, the reference libraries' test."""
    key = webhook.signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = webhook.signature(
        key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_certificate_is_the_hosts(receiver: Receiver, trust: ssl.SSLContext) -> None:
    for host, context in (("other.example", trust), ("hooks.example", None)):
        hook = Webhook(
            f"https://{host}:{receiver.port}/", SECRET, private=True, resolver=here, trust=context
        )
        with pytest.raises(NotSent, match="cannot be reached"):
            hook.send("msg_1", 1, BODY)
    assert receiver.got == []


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 400, 401, 404, 500, 503])
def test_only_a_success_is_one_and_nothing_is_followed(
    plain: Receiver, status: int, receiver: Receiver
) -> None:
    plain.status, plain.location = status, f"https://127.0.0.1:{receiver.port}/"
    hook = Webhook(f"http://hooks.example:{plain.port}/", SECRET, private=True, resolver=here)
    with pytest.raises(NotSent, match=f"answered {status}"):
        hook.send("msg_1", 1, BODY)
    assert len(plain.got) == 1
    assert receiver.got == []


# --- Attack 41: the address of the webhook leads inside ---

INSIDE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "10.255.255.255", "172.16.0.1",
    "172.31.255.255", "192.168.0.1", "169.254.169.254", "169.254.0.1", "100.64.0.1",
    "100.127.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1",
    "fd12:3456::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "2002:7f00:1::", "2002:a00:1::", "2002:a9fe:a9fe::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1", "64:ff9b::808:808", "2001:0:7f00:1::", "2001:db8::1", "fec0::1",
    "not an address",
]  # fmt: skip
OUTSIDE = ["93.184.216.34", "8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_not_connected_to(address: str) -> None:
    """Attack 41."""
    assert not is_outside(address)
    hook = Webhook("https://hooks.example/", SECRET, resolver=lambda *_: [address])
    with pytest.raises(NotSent, match="private network"):
        hook.send("msg_1", 1, BODY)
    # One among good ones is enough.
    hook = Webhook("https://hooks.example/", SECRET, resolver=lambda *_: ["8.8.8.8", address])
    with pytest.raises(NotSent, match="private network"):
        hook.send("msg_1", 1, BODY)


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_address_outside_is_one(address: str) -> None:
    assert is_outside(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001",
        "0", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "localhost", "[64:ff9b::7f00:1]",
    ],
)  # fmt: skip
def test_other_spellings_of_this_machine_are_no_way_in(host: str, plain: Receiver) -> None:
    """Attack 41, with the system's own resolver."""
    hook = Webhook(f"https://{host}:{plain.port}/", SECRET)
    with pytest.raises(NotSent, match=r"private network|no address"):
        hook.send("msg_1", 1, BODY)
    assert plain.got == []


@pytest.mark.parametrize(
    "url",
    [
        "https://user@hooks.example/", "https://user:pass@127.0.0.1/", "http://hooks.example/",
        "ftp://hooks.example/", "file:///etc/passwd", "https:///path", "gopher://127.0.0.1:6379/_",
        "https://hooks.example:99999/", "//hooks.example/", "https://",
    ],
)  # fmt: skip
def test_addresses_of_other_kinds_are_refused(url: str) -> None:
    hook = Webhook(url, SECRET, resolver=lambda *_: ["8.8.8.8"])
    with pytest.raises(NotSent) as refused:
        hook.send("msg_1", 1, BODY)
    assert "pass" not in str(refused.value)
    assert "hooks" not in str(refused.value)


def test_a_name_that_is_answered_differently_a_moment_later_gains_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Attack 41, DNS rebinding: what was judged is what is connected to."""
    answers = iter([["8.8.8.8"], ["127.0.0.1"], ["127.0.0.1"]])
    tried: list[Any] = []

    def connect(address: Any, *_more: Any) -> socket.socket:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", connect)
    hook = Webhook("https://hooks.example/", SECRET, resolver=lambda *_: next(answers))
    with pytest.raises(NotSent, match="cannot be reached"):
        hook.send("msg_1", 1, BODY)
    assert tried == [("8.8.8.8", 443)]
    with pytest.raises(NotSent, match="private network"):
        hook.send("msg_1", 1, BODY)
    assert len(tried) == 1


def test_without_the_guard_the_way_is_open(plain: Receiver) -> None:
    """Attack 41 on a build without the judgement."""
    guard = "if not self.private and not all(is_outside(address) for address in found):"
    open_build = without(webhook, (guard, "if False:"))
    hook = open_build.Webhook(f"https://127.0.0.1:{plain.port}/", SECRET)
    with pytest.raises(open_build.NotSent, match=r"cannot be reached|does not answer"):
        hook.send("msg_1", 1, BODY)


# --- Delivery ---


class Taking:
    """A receiver in the test's own process, which refuses as long as it is told to."""

    def __init__(self) -> None:
        self.refuses = False
        self.got: list[tuple[str, bytes]] = []

    def send(self, message_id: str, _timestamp: int, body: bytes) -> None:
        if self.refuses:
            raise NotSent("the receiver answered 500")
        self.got.append((message_id, body))


async def put(database: Database, clock: ControlledClock, *bodies: bytes) -> None:
    async def work(tx: Transaction) -> None:
        for body in bodies:
            await Outgoing(tx).put("alert", body, clock())

    await database.write("x", work)


async def waiting(database: Database) -> list[bytes]:
    async with database.read() as tx:
        found = await tx.execute(select(models.outgoing.c.body).order_by(models.outgoing.c.id))
        return list(found.scalars())


async def test_messages_are_sent_in_order_and_once(
    database: Database, clock: ControlledClock
) -> None:
    taking = Taking()
    sender = Deliveries(database, taking, clock)
    bodies = [b"%d" % n for n in range(12)]
    await put(database, clock, *bodies)
    assert await sender.round()
    assert [body for _, body in taking.got] == bodies
    assert len({message_id for message_id, _ in taking.got}) == 12
    assert await waiting(database) == []
    assert (sender.sent, sender.failed, sender.waiting) == (12, 0, 0)


async def test_what_was_not_taken_waits_and_is_told(
    database: Database, clock: ControlledClock
) -> None:
    taking = Taking()
    sender = Deliveries(database, taking, clock)
    await put(database, clock, b"1", b"2")
    taking.refuses = True
    assert not await sender.round()
    assert await waiting(database) == [b"1", b"2"]
    assert sender.problem is None
    clock.advance(deliveries.LATE.total_seconds())
    assert "answered 500" in str(sender.problem)
    taking.refuses = False
    assert await sender.round()
    assert [body for _, body in taking.got] == [b"1", b"2"]
    assert sender.problem is None


async def test_a_message_is_given_up_after_a_day(
    database: Database, clock: ControlledClock
) -> None:
    taking = Taking()
    taking.refuses = True
    sender = Deliveries(database, taking, clock)
    await put(database, clock, b"old")
    clock.advance(deliveries.GIVEN_UP_AFTER.total_seconds())
    await put(database, clock, b"new")
    assert not await sender.round()
    assert await waiting(database) == [b"new"]


async def test_two_processes_do_not_send_the_same(storage: Storage, clock: ControlledClock) -> None:
    import asyncio

    taking = Taking()
    senders = [Deliveries(storage.open(), taking, clock) for _ in range(2)]
    await put(storage.open(), clock, *[b"%d" % n for n in range(40)])
    for _ in range(4):
        await asyncio.gather(*(sender.round() for sender in senders))
    assert sorted(int(body) for _, body in taking.got) == list(range(40))


async def test_what_a_dead_process_had_claimed_is_sent_by_another(
    storage: Storage, clock: ControlledClock
) -> None:
    taking = Taking()
    dead, alive = (Deliveries(storage.open(), taking, clock) for _ in range(2))
    await put(storage.open(), clock, b"1", b"2")
    assert len(await dead._claim()) == 2
    await alive.round()
    assert taking.got == []
    clock.advance(deliveries._CLAIM.total_seconds())
    await alive.round()
    assert [body for _, body in taking.got] == [b"1", b"2"]


def test_a_webhook_shows_nothing_of_itself() -> None:
    hook = Webhook("https://hooks.example/T0K3N", SECRET)
    assert "T0K3N" not in repr(hook)
    assert SECRET not in repr(hook)
    assert json.loads(BODY)["type"] == "alert"
