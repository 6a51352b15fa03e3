"""Stand-ins for the two remote stores of secrets: their documented protocols over real HTTP."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Store:
    """What a stand-in holds, how it misbehaves, and what it was asked."""

    secrets: dict[str, Any] = field(default_factory=dict)
    broken: str = ""
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(
    store: Store, answer: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None
) -> Iterator[Store]:
    """Serve on a port of 127.0.0.1 for as long as the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (answer,), {"store": store}))
    server.daemon_threads = True
    # A caller that refuses the certificate is no news.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    store.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        store.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Answering(BaseHTTPRequestHandler):
    store: Store

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def body(self) -> Any:
        store = self.store
        store.asked.append((self.command, self.path))
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if store.broken == "silent":
            store.released.wait(30)
        return json.loads(text or b"{}")

    def say(self, status: int, body: Any, kind: str = "application/json") -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


TOKEN = "hvs.planted-token-of-the-vault"
ROLE = {"role_id": "a-role", "secret_id": "planted-secret-id-of-the-role"}
NAMESPACE = "team/one"


class Vault(_Answering):
    """AppRole login and one KV v2 path, in one namespace."""

    def do_POST(self) -> None:
        given = self.body()
        if self.store.broken == "sealed":
            return self.say(503, {"errors": ["Vault is sealed"]})
        if self.path != "/v1/auth/approle/login" or given != ROLE:
            return self.say(400, {"errors": ["invalid role or secret ID"]})
        return self.say(200, {"data": None, "auth": {"client_token": TOKEN, "renewable": True}})

    def do_GET(self) -> None:
        self.body()
        store = self.store
        if store.broken == "sealed":
            return self.say(503, {"errors": ["Vault is sealed"]})
        if store.broken == "not json":
            return self.say(200, b"<html>", "text/html")
        if store.broken == "kv1":
            return self.say(200, {"data": store.secrets})
        asked = (self.headers["X-Vault-Token"], self.headers["X-Vault-Namespace"])
        if asked != (TOKEN, NAMESPACE) or self.headers["X-Vault-Request"] != "true":
            return self.say(403, {"errors": ["permission denied"]})
        if self.path != "/v1/secret/data/auth/config":
            return self.say(404, {"errors": []})
        return self.say(200, {"data": {"data": store.secrets, "metadata": {"version": 3}}})


class Aws(_Answering):
    """``GetSecretValue`` of AWS Secrets Manager, in its JSON 1.1 protocol."""

    def do_POST(self) -> None:
        given = self.body()
        kind = "application/x-amz-json-1.1"
        assert self.headers["X-Amz-Target"] == "secretsmanager.GetSecretValue"
        assert self.headers["Authorization"].startswith("AWS4-HMAC-SHA256 ")
        if self.store.broken == "denied":
            return self.say(400, {"__type": "AccessDeniedException", "message": "no"}, kind)
        if given["SecretId"] != "auth/production":
            return self.say(400, {"__type": "ResourceNotFoundException", "message": "no"}, kind)
        if self.store.broken == "binary":
            return self.say(200, {"Name": given["SecretId"], "SecretBinary": "AAAA"}, kind)
        held = "[1]" if self.store.broken == "list" else json.dumps(self.store.secrets)
        return self.say(200, {"Name": given["SecretId"], "SecretString": held}, kind)
