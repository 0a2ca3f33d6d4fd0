"""Servers for tests: in a thread, or in a process of their own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
import uvicorn
from odd_rewards import Held, mean

from reward_server import wire
from reward_server.app import create_app
from reward_server.batching import Batcher
from reward_server.connection import Connection
from reward_server.limits import Limits
from rewards.interface import Reward

COMMAND = Path(__file__).with_name("serve_odd_rewards.py")


def batch(count: int = 2, size: int = 8, seed: int = 0, **texts: Any) -> wire.Batch:
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    prompts = texts.get("prompts", ["a red circle"] * count)
    return wire.Batch(images, prompts, texts.get("metadata", [{} for _ in range(count)]))


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255


def expected(sent: wire.Batch, reward: Reward = mean) -> list[float | None]:
    return wire.scores_to_json(reward(tensor(sent.images), sent.prompts, sent.metadata).tolist())


def post(url: str, body: Any, content_type: str = wire.NPZ, token: str = "", **options: Any) -> requests.Response:
    headers = {"Content-Type": content_type, **({"Authorization": f"Bearer {token}"} if token else {})}
    return requests.post(url, data=body, headers=headers, timeout=60, **options)


@contextlib.contextmanager
def served(
    rewards: Mapping[str, Reward], token: str | None = None, limits: Limits | None = None, **options: Any
) -> Iterator[str]:
    """The url of a server in a thread."""
    limits = limits or Limits()
    batchers = {
        name: Batcher(name, reward, options.get("batch_size", 16), limits.queue) for name, reward in rewards.items()
    }
    config = uvicorn.Config(create_app(batchers, token, limits), http=Connection, ws="none", log_level="error")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for reward in rewards.values():
            if isinstance(reward, Held):
                reward.release()
        server.should_exit = True
        thread.join(20)


def start(*arguments: str, token: str | None = None) -> subprocess.Popen[str]:
    """The command, in a process."""
    environment = {name: value for name, value in os.environ.items() if name != "MARBLE_REWARD_TOKEN"}
    environment["MALLOC_ARENA_MAX"] = "1"  # threads with arenas of their own would blur what a leak adds
    if token is not None:
        environment["MARBLE_REWARD_TOKEN"] = token
    return subprocess.Popen(
        [sys.executable, str(COMMAND), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def url_of(process: subprocess.Popen[str]) -> str:
    """Wait until the server says where it is."""
    printed = ""
    assert process.stdout is not None
    for line in process.stdout:
        printed += line
        if line.startswith("serving"):
            return line.split(" on ")[1].split(",")[0]
    raise AssertionError(f"the server did not start: {printed}")


@contextlib.contextmanager
def command(*arguments: str, token: str | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A running server, and its url."""
    process = start(*arguments, token=token)
    try:
        yield url_of(process), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
