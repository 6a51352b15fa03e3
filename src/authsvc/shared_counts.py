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

ANSWER_SECONDS = 0.05
"""How long a request waits for Redis, at most; the first one that waits in vain is the last."""
_CONNECT_SECONDS = 1.0
_PROBE_SECONDS = (0.5, 1, 2, 4)
_PROBE_PATIENCE = 0.2
_TURNS = 3

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
        """Not asked at the moment."""
        self.missed = False
        """Away for longer than one late answer."""

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
        """The count, or None if that is not told in time; then Redis is away until it is probed."""
        counting = asyncio.ensure_future(self._storage.incr(key, seconds, amount))
        try:
            await asyncio.wait({counting}, timeout=patience)
            # On a busy machine the answer may have been there before anybody came to look.
            for _ in range(_TURNS):
                if counting.done():
                    break
                await asyncio.sleep(0)
            else:
                self._lost("no answer in time")
                return None
            count = counting.result()
            if type(count) is int and count >= amount:
                return count
            self._lost("it does not count")
        except Exception as error:
            # Not its text, which may name the server with its password.
            self._lost(type(error).__name__)
        finally:
            if not counting.done():
                counting.cancel()
        return None

    def _lost(self, reason: str) -> None:
        if not self.away:
            self.away = True
            self._probing = asyncio.create_task(self._probe(reason))

    async def _probe(self, reason: str) -> None:
        """Ask until there is an answer; one that comes at once was only late."""
        if await self._attempt("probe", 1, 1, _PROBE_PATIENCE) is None:
            self.missed = True
            _log.warning(
                "rate limits are counted by each process alone: Redis does not answer (%s)", reason
            )
            number = 0
            while await self._attempt("probe", 1, 1, _PROBE_PATIENCE) is None:
                await asyncio.sleep(_PROBE_SECONDS[min(number, len(_PROBE_SECONDS) - 1)])
                number += 1
            _log.warning("rate limits are counted together again: Redis answers")
        self.away = self.missed = False
