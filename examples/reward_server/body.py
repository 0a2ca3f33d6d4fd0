"""Bodies as they arrive: bounded in size and time, whether or not their length was announced."""

import anyio
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits, Refused, Share


async def read_body(request: Request, limits: Limits, share: Share) -> bytes:
    """The whole body, counted while it arrives. Raises ``Refused`` with 408, 411, 413 or 503."""
    declared = request.headers.get("content-length")
    if declared is None and "transfer-encoding" not in request.headers:
        raise Refused(411, "a Content-Length, or chunks, are needed")
    too_large = Refused(413, f"the body has more than {limits.body} bytes: send fewer images per request")
    if declared is not None and int(declared) > limits.body:
        raise too_large
    body = bytearray()
    try:
        with anyio.fail_after(limits.upload_seconds):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the client went away in the middle of the body")
                body += message.get("body", b"")
                if len(body) > limits.body:
                    raise too_large
                share.hold(len(body))
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refused(408, f"the body took more than {limits.upload_seconds} s to arrive") from None
    return bytes(body)


class Drain:
    """Reads, and forgets, what is left of a body before an early answer goes out.

    A connection closed on a client that still sends would lose the answer. A body longer than twice
    ``limits.body`` or slower than ``limits.upload_seconds``, or one that waits for 100-continue, is not awaited: the
    connection is closed.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, watching how much of its body is read."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        at_end = b"content-length" not in headers and b"transfer-encoding" not in headers
        started = False

        async def watched() -> Message:
            nonlocal at_end, started
            started = True
            message = await receive()
            at_end = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def drained() -> bool:
            if not started and b"expect" in headers:
                return False
            left = 2 * self.limits.body
            if int(headers.get(b"content-length", 0)) > left:
                return False
            with anyio.move_on_after(self.limits.upload_seconds):
                while not at_end and left > 0:
                    left -= len((await watched()).get("body", b""))
            return at_end

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and not at_end and not await drained():
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self.app(scope, watched, answer)
