"""The load: prebuilt requests over keep-alive connections, every answer checked.

    python bench/load.py PLAN

PLAN is a JSON file: ``port`` and ``pid`` of the server, ``core`` to run on, ``connections``,
``seconds``, ``warm_up`` (seconds that are not counted), ``once`` (go through the requests one
time instead of in a circle) and ``requests``, each a list of the whole request and of a piece
that its answer must contain. One JSON object with what was measured goes to standard output.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
_STUCK_SECONDS = 120.0


def cpu_seconds(pid: int) -> float:
    """What a process and its threads have used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def quantile(ordered: list[float], share: float) -> float:
    """The value that this share of the others does not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


class _Connection:
    __slots__ = ("answer", "began", "expected", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.expected = self.answer = b""
        self.began = 0.0


def _whole(answer: bytes) -> bool:
    """Whether all of an answer with a declared length is there."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    at = answer.find(b"content-length: ", 0, end)
    if at < 0:
        raise SystemExit(f"an answer without a length: {answer[:200]!r}")
    length = int(answer[at + 16 : answer.index(b"\r", at, end + 2)])
    return len(answer) == end + 4 + length


class Load:
    """One measurement."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._pid: int = plan["pid"]
        self._seconds: float = plan["seconds"]
        self._warm_up: float = plan["warm_up"]
        self._once: bool = plan["once"]
        self._requests = [(r.encode(), expected.encode()) for r, expected in plan["requests"]]
        self._next = 0
        self._connections = [_Connection(plan["port"]) for _ in range(plan["connections"])]

    def run(self) -> dict[str, Any]:
        """Send, check, count."""
        poll = select.epoll()
        by_number = {one.socket.fileno(): one for one in self._connections}
        for number in by_number:
            poll.register(number, select.EPOLLIN)
        latencies: list[float] = []
        now = time.perf_counter()
        counted_from = now + self._warm_up
        until = counted_from + self._seconds
        counting = not self._warm_up
        cpu, began, waiting = cpu_seconds(self._pid), now, 0
        for one in self._connections:
            waiting += self._send(one)
        while waiting:
            events = poll.poll(_STUCK_SECONDS)
            if not events:
                raise SystemExit("the server does not answer")
            for number, _ in events:
                one = by_number[number]
                if not self._receive(one):
                    continue
                now = time.perf_counter()
                if counting:
                    latencies.append(now - one.began)
                elif now >= counted_from:
                    counting, began, cpu = True, now, cpu_seconds(self._pid)
                waiting -= 1
                if now < until:
                    waiting += self._send(one)
        used = cpu_seconds(self._pid) - cpu
        latencies.sort()
        count = len(latencies)
        return {
            "count": count,
            "seconds": now - began,
            "cpu_us": used / count * 1e6 if count else 0.0,
            "p50_ms": quantile(latencies, 0.5) * 1e3,
            "p99_ms": quantile(latencies, 0.99) * 1e3,
            "worst_ms": quantile(latencies, 1.0) * 1e3,
        }

    def _send(self, one: _Connection) -> bool:
        if self._next == len(self._requests):
            if self._once:
                return False
            self._next = 0
        request, one.expected = self._requests[self._next]
        self._next += 1
        one.answer = b""
        one.began = time.perf_counter()
        sent = one.socket.send(request)
        if sent < len(request):
            one.socket.setblocking(True)
            one.socket.sendall(request[sent:])
            one.socket.setblocking(False)
        return True

    @staticmethod
    def _receive(one: _Connection) -> bool:
        """Take in what is there; True when the answer is whole, and then it was the right one."""
        part = one.socket.recv(1 << 20)
        if not part:
            raise SystemExit("the server closed a connection")
        answer = one.answer = one.answer + part if one.answer else part
        if not _whole(answer):
            return False
        if not answer.startswith(b"HTTP/1.1 200 ") or one.expected not in answer:
            raise SystemExit(f"expected {one.expected[:200]!r} in {answer[:1000]!r}")
        return True


def main() -> None:
    """Run from the command line."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    os.sched_setaffinity(0, {plan["core"]})
    print(json.dumps(Load(plan).run()))


if __name__ == "__main__":
    main()
