"""Counts that several processes share, in Redis. Never waited for long, and never missed.

limits' asynchronous storage does the counting. Redis is not trusted: whatever it answers late or
wrong, this says that it is away, and asks again in the background until it is not.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from limits.aio.storage import RedisStorage
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

ANSWER_SECONDS = 0.02
"""How long a request waits for Redis, at most; the first one that waits in vain is the last."""
_CONNECT_SECONDS = 1.0
_PROBE_SECONDS = (0.5, 1, 2, 4)

_log = logging.getLogger("authsvc.rate_limits")


class SharedCounts:
    """Numbers by key, counted up by every process of the service."""

    def __init__(self, url: str) -> None:
        """``url``: ``redis://``, ``rediss://`` or ``unix://``, also of a Valkey."""
        options: dict[str, Any] = {
            "socket_timeout": _CONNECT_SECONDS,
            "socket_connect_timeout": _CONNECT_SECONDS,
            # A request does not wait for a second attempt.
            "retry": Retry(NoBackoff(), 0),
        }
        self._storage = RedisStorage(
            f"async+{url}", implementation="redispy", key_prefix="authsvc", **options
        )
        self._probing: asyncio.Task[None] | None = None
        self.away = False

    async def open(self) -> None:
        """Connect, so that the first request need not; what cannot be reached is away."""
        await self._attempt("started", 1, 1, _CONNECT_SECONDS)

    async def add(self, key: str, seconds: int, amount: int) -> int | None:
        """The count with ``amount`` added, in a window that ends within ``seconds``.

        None while Redis is away.
        """
        return None if self.away else await self._attempt(key, seconds, amount, ANSWER_SECONDS)

    async def close(self) -> None:
        """Let go of the connections."""
        if self._probing is not None:
            self._probing.cancel()
        client: Any = self._storage.bridge
        # Whatever state it is in: the service ends.
        await asyncio.gather(client.get_connection().aclose(), return_exceptions=True)

    async def _attempt(self, key: str, seconds: int, amount: int, patience: float) -> int | None:
        try:
            async with asyncio.timeout(patience):
                count = await self._storage.incr(key, seconds, amount)
            if type(count) is int and count >= amount:
                return count
            reason = "it does not count"
        except Exception as error:
            # Not its text, which may name the server with its password.
            reason = type(error).__name__
        self._lost(reason)
        return None

    def _lost(self, reason: str) -> None:
        if self.away:
            return
        self.away = True
        _log.warning(
            "rate limits are counted by each process alone: Redis does not answer (%s)", reason
        )
        self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        for number in range(10**9):
            await asyncio.sleep(_PROBE_SECONDS[min(number, len(_PROBE_SECONDS) - 1)])
            if await self._attempt("probe", 1, 1, ANSWER_SECONDS * 5) is not None:
                self.away = False
                _log.warning("rate limits are counted together again: Redis answers")
                return
