"""HTTP connections whose requests have to arrive: uvicorn knows no deadline for a slow one."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_SECONDS = 10.0
"""How long a request may take to arrive, and a new connection to begin one."""
BYTES_PER_SECOND = 32 * 1024
"""A large body may take longer as long as it comes at this pace on average."""
_LOOK_SECONDS = 2.5


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a look at every connection from time to time.

    One timer a connection and none a request, because every check would pay for that. Connections
    between two requests are uvicorn's own to close.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._began: float | None = self.loop.time()
        self._received = 0
        self._look_again()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._began = self.loop.time()
        self._received = 0
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._began = None
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._looking: asyncio.TimerHandle = self.loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        if self._began is not None:
            waited = self.loop.time() - self._began
            if waited > REQUEST_SECONDS and self._received < waited * BYTES_PER_SECOND:
                # At once: what is still to be sent would wait for the same slow other end.
                self.transport.abort()
                return
        self._look_again()
