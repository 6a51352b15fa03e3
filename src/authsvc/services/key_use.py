"""When keys were last used: noted in memory, and written away from the requests.

A key's first use in a minute is noted, the others of that minute are not; it is written at most
once a minute, whichever process it was used at. So what is shown may lag by two minutes. It is no
change of policy: it takes no lock of the tenant and makes no revision. What a killed process had
noted and not written is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from uuid import UUID

from authsvc.database import Database, Transaction
from authsvc.errors import Unavailable
from authsvc.repositories.key_use import KeyUses, Use

SELDOM = timedelta(minutes=1)
"""How often the use of one key is written at most."""
_MOST_TOGETHER = 500

_Noted = dict[str, tuple[UUID, datetime]]
_Write = Callable[[KeyUses, Iterable[Use], timedelta], Awaitable[None]]


class KeyUse:
    """The uses of keys that one process has seen and not written yet."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._client_keys: _Noted = {}
        self._api_keys: _Noted = {}
        self._writer: asyncio.Task[None] | None = None

    def client_key(self, key_id: str, tenant_id: UUID, at: datetime) -> None:
        """Note that a client key, or a token given to it, was accepted."""
        if key_id not in self._client_keys:
            self._client_keys[key_id] = (tenant_id, at)

    def api_key(self, key_id: str, tenant_id: UUID, at: datetime) -> None:
        """Note that a user's API key was found valid."""
        if key_id not in self._api_keys:
            self._api_keys[key_id] = (tenant_id, at)

    def start(self) -> None:
        """Write from now on once a minute, until ``stop``."""
        self._writer = asyncio.get_running_loop().create_task(self._write_on())

    async def stop(self) -> None:
        """Write what is left and end."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
        await self._try()

    async def flush(self) -> None:
        """Write what is noted. Raises Unavailable; what was not written stays noted."""
        await self._flush(self._client_keys, KeyUses.write_client_keys)
        await self._flush(self._api_keys, KeyUses.write_api_keys)

    async def _flush(self, noted: _Noted, write: _Write) -> None:
        uses: list[Use] = sorted(
            (tenant_id, key_id, at) for key_id, (tenant_id, at) in noted.items()
        )
        noted.clear()
        for start in range(0, len(uses), _MOST_TOGETHER):
            some = uses[start : start + _MOST_TOGETHER]

            async def work(tx: Transaction, some: list[Use] = some) -> None:
                await write(KeyUses(tx), some, SELDOM)

            try:
                await self._database.write("last used", work)
            except Unavailable:
                for tenant_id, key_id, at in uses[start:]:
                    noted.setdefault(key_id, (tenant_id, at))
                raise

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(SELDOM.total_seconds())
            await self._try()

    async def _try(self) -> None:
        """Write, or leave it for the next time: nothing else depends on it."""
        try:
            await self.flush()
        except Unavailable:
            return
