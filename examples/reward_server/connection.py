"""Connections that do not send a request are closed."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's connection, closed when the head of a request is not complete ``head_seconds`` after its first byte.

    uvicorn waits for it without end, so that silent clients would use up the process's files. Idle connections that
    have had an answer are closed by uvicorn's ``timeout_keep_alive``, slow bodies by ``Limits.upload_seconds``.
    """

    head_seconds = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel()

    def _watch(self) -> None:
        if not self._without_request():
            self._cancel()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if self._without_request():
            self.transport.close()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _without_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete
