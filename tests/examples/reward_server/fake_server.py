"""A server that answers by plan: what a client does with failures can be counted."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from rewards.registry import RewardSettings
from rewards.remote import RemoteReward

FAST = {"backoff": 0.001}
IMAGES = torch.rand(2, 3, 8, 8)
INPUTS = IMAGES, ["a", "b"], [{}, {}]
HEALTH = {
    "protocol": 1,
    "rewards": ["mean"],
    "authorized": True,
    "limits": {"body": 10**8, "images": 64, "pixels": 10**6},
}


class FakeServer(ThreadingHTTPServer):
    """Takes the next step of ``plan`` for every POST; without one it gives the score 0.5 for every image.

    A step is a status, (status, headers), "drop" (closes the connection), "hang" (until the server ends), or the JSON
    to be given.
    """

    daemon_threads = True

    def __init__(self, images: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.images, self.plan, self.times, self.headers = images, [], [], []
        self.health: Any = HEALTH
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *parts: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(200, self.server.health)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.times.append(time.monotonic())
        self.server.headers.append(dict(self.headers))
        step = self.server.plan.pop(0) if self.server.plan else {"scores": [0.5] * self.server.images}
        if step == "drop":
            self.close_connection = True
        elif step == "hang":
            self.server.ended.wait(30)
        elif isinstance(step, int):
            self.answer(step, {"error": f"planned {step}"})
        elif isinstance(step, tuple):
            self.answer(step[0], {"error": "planned"}, step[1])
        else:
            self.answer(200, step)

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def fake_server(images: int = 2) -> Iterator[FakeServer]:
    server = FakeServer(images)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()


def remote(url: str, batch_size: int = 16, **options: Any) -> RemoteReward:
    return RemoteReward(url, "mean", RewardSettings(url=url, batch_size=batch_size, options={**FAST, **options}))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
