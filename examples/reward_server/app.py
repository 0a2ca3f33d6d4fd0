"""The HTTP side: who may ask, what is answered, with which status.

``GET /health``
    ``{"status": "ok", "protocol": 1, "version": ..., "rewards": [...], "queue": {reward: waiting}, "served": ...,
    "uptime": seconds, "authorized": ..., "limits": {"body": bytes, "images": ..., "pixels": ...}}``. Needs no token;
    ``authorized`` says whether the token that came along, or none, would do for scoring.
``POST /score/{reward}``
    Bodies and answer as in ``wire``. ``Authorization: Bearer TOKEN`` where the server has a token.

Refusals are ``{"error": message}``: 400 damaged JSON, NPZ or PNG; 401 token; 404 unknown reward or path; 405 method;
408 body too slow; 411 no length; 413 too large; 415 content type; 422 wrong shapes, or the reward's ``ValueError``;
500 the reward failed; 503 with ``Retry-After`` while the queue is full; 504 the reward takes too long. What is not HTTP
is answered 400 in plain text.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import marble_opt

from . import wire
from .batching import Batcher, Scores
from .body import Drain, read_body
from .limits import Budget, Limits, Refused

SHUTDOWN_SECONDS = 60


def create_app(batchers: Mapping[str, Batcher], token: str | None, limits: Limits) -> FastAPI:
    """The application. ``token`` None: everybody may score. At shutdown the batchers finish what they have."""
    started, budget = time.monotonic(), Budget(limits.memory)
    # Decoded images are charged to the budget once their size is known: few requests may be decoded at a time.
    decoders = anyio.CapacityLimiter(4)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        for batcher in batchers.values():
            await anyio.to_thread.run_sync(batcher.close, max(0.0, deadline - time.monotonic()))

    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.add_middleware(Drain, limits=limits)

    def authorized(request: Request) -> bool:
        if token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # compare_digest takes a time that does not tell how much of the token was right.
        same = hmac.compare_digest(given.strip().encode("latin-1"), token.encode("latin-1"))
        return scheme.lower() == "bearer" and same

    @app.get("/health")
    async def health(request: Request) -> dict[str, Any]:
        return {
            "status": "ok",
            "protocol": wire.PROTOCOL,
            "version": marble_opt.__version__,
            "rewards": list(batchers),
            "queue": {name: len(batcher) for name, batcher in batchers.items()},
            "served": sum(batcher.served for batcher in batchers.values()),
            "uptime": round(time.monotonic() - started, 1),
            "authorized": authorized(request),
            "limits": {"body": limits.body, "images": limits.images, "pixels": limits.pixels},
        }

    @app.post("/score/{reward}")
    async def score(reward: str, request: Request) -> JSONResponse:
        began = time.perf_counter()
        if not authorized(request):
            message = "this server wants its token: send 'Authorization: Bearer TOKEN'"
            raise Refused(401, message, {"WWW-Authenticate": "Bearer"})
        if reward not in batchers:
            raise Refused(404, f"no reward {reward[:100]!r} here; this server has {', '.join(batchers)}")
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in (wire.JSON, wire.NPZ):
            raise Refused(415, f"Content-Type must be {wire.JSON} or {wire.NPZ}, got {content_type[:100]!r}")
        batchers[reward].check_room()
        with budget.share() as share:
            body = await read_body(request, limits, share)
            batch = await anyio.to_thread.run_sync(wire.decode, body, content_type, limits, limiter=decoders)
            del body
            share.hold(batch.nbytes)
            scores = await _answer(batchers[reward], batch, request, limits.score_seconds)
        return JSONResponse({"scores": scores, "seconds": round(time.perf_counter() - began, 4)})

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return _error(error.status, error.message, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{error.detail}: the paths are GET /health and POST /score/REWARD"
        return _error(error.status_code, message, error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return _error(500, "the server failed on this request; its log says where")

    return app


async def _answer(batcher: Batcher, batch: wire.Batch, request: Request, seconds: float) -> Scores:
    """The scores; a request whose client goes away, or whose time is up, leaves the queue."""
    scores = asyncio.wrap_future(batcher.submit(batch))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({scores, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if scores.done():
            return scores.result()
        if gone.done():
            raise Refused(400, "the client went away")
        raise Refused(504, f"reward {batcher.name!r} did not answer within {seconds} s")
    finally:
        gone.cancel()
        scores.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    text = message[:2000].encode(errors="replace").decode()
    return JSONResponse({"error": text}, status, headers=dict(headers or {}))
