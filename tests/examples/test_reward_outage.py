"""A reward server killed in the middle of an epoch: its samples get NaN, one warning says so, and the run goes on."""

import math
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch
from trainer_cases import adapter_weights, small_trainer

COMMAND = Path(__file__).parents[2] / "examples" / "serve_rewards.py"


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server of the reward "colour" in a process of its own, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(COMMAND), "colour", "--port", str(port)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            requests.get(f"{url}/health", timeout=1)
            break
        except requests.ConnectionError:
            assert process.poll() is None, "the server did not start"
            time.sleep(0.1)
    yield process, url
    process.kill()
    process.wait()


def test_a_server_killed_in_an_epoch_costs_scores_and_not_the_run(
    server: tuple[subprocess.Popen[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, url = server
    quick = "rewards.colour.options={retries: 1, backoff: 0.01, hurry: 0.5}"
    trainer = small_trainer(f"rewards.colour.url={url}", quick, "rollout.batch=3", "rewards.colour.batch_size=3")
    assert not math.isnan(trainer.train_epoch()["train/colour"])
    decoded: list[int] = []
    decode = trainer.backbone.decode

    def kill_after_the_first(latents: torch.Tensor) -> torch.Tensor:
        decoded.append(len(latents))
        if len(decoded) == 2:
            # What was submitted is scored first, so that the numbers below are known.
            time.sleep(1)
            process.send_signal(signal.SIGKILL)
            process.wait()
        return decode(latents)

    monkeypatch.setattr(trainer.backbone, "decode", kill_after_the_first)
    before = adapter_weights(trainer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        numbers = trainer.train_epoch()
        lost = trainer.train_epoch()
    assert decoded[:3] == [3, 3, 3]
    assert not math.isnan(numbers["train/colour"]), "the first batch was scored"
    assert math.isnan(lost["train/colour"])
    assert not math.isnan(lost["train/clean"])
    assert len([w for w in caught if "colour" in str(w.message) and "NaN" in str(w.message)]) == 1
    assert any(not torch.equal(a, b) for a, b in zip(before, adapter_weights(trainer), strict=True))
    assert trainer.epoch == 3
