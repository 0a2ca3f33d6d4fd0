"""What a request may cost, and how it is refused."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

MIB = 2**20


class Refused(Exception):
    """A request that is answered by ``status`` and ``{"error": message}``."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


@dataclass(frozen=True)
class Limits:
    """Upper bounds; what exceeds one is refused before it is held in memory or decoded.

    Of one request: ``body`` bytes, ``images``, ``pixels`` of an image or of a picture in metadata, ``decoded`` bytes of
    all its images as uint8, and as many of its pictures, ``prompt`` characters, ``metadata`` bytes per image as JSON
    (without the pictures that are given by index), nested at most ``depth`` deep, ``values`` in the JSON text (braces,
    brackets and commas are counted), ``upload_seconds`` from first to last byte, ``score_seconds`` from then to the
    answer. Of all requests: ``memory`` bytes at once, and ``queue`` requests waiting per reward: more than
    the processes of a run, each of which sends one at a time.
    """

    body: int = 128 * MIB
    images: int = 64
    pixels: int = 2048 * 2048
    decoded: int = 256 * MIB
    prompt: int = 4000
    metadata: int = 64 * 1024
    depth: int = 16
    values: int = 500_000
    upload_seconds: float = 60.0
    score_seconds: float = 600.0
    memory: int = 2048 * MIB
    queue: int = 256


class Budget:
    """The bytes that all requests hold; a request that would exceed ``total`` is refused with 503."""

    def __init__(self, total: int) -> None:
        self.total, self.held, self._lock = total, 0, Lock()

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """One request's part of the budget; given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.hold(0)

    def change(self, difference: int) -> None:
        """Take ``difference`` bytes, or give them back where it is negative."""
        with self._lock:
            if difference > 0 and self.held + difference > self.total:
                raise busy("the server holds as many requests as its memory allows")
            self.held += difference


class Share:
    """The bytes that one request holds."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.size = budget, 0

    def hold(self, size: int) -> None:
        """Hold ``size`` bytes from now on; 503 where the budget has no room."""
        self.budget.change(size - self.size)
        self.size = size


def busy(message: str) -> Refused:
    """503, to be tried again in a second."""
    return Refused(503, f"{message}; try again", {"Retry-After": "1"})
