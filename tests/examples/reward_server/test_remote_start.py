"""What a remote reward checks before a run starts."""

from typing import Any

import pytest
from fake_server import HEALTH, INPUTS, FakeServer, free_port, remote

from reward_server.client import check_url
from rewards.registry import RewardSettings, build


def test_nobody_there_at_the_start_raises() -> None:
    with pytest.raises(ConnectionError, match=r"nobody answers .*4 attempts.* start it with .*serve_rewards.py mean"):
        remote(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rewards": ["ocr", "clipscore"]}, "no such reward, it has ocr, clipscore"),
        ({"authorized": False}, "set the environment variable MARBLE_REWARD_TOKEN"),
        ({"protocol": 2}, "no reward server of protocol 1"),
    ],
)
def test_a_server_that_cannot_serve_this_reward_is_refused_at_the_start(
    server: FakeServer, change: dict[str, Any], words: str
) -> None:
    server.health = {**HEALTH, **change}
    with pytest.raises(ValueError, match=words):
        remote(server.url)


@pytest.mark.parametrize("health", [b"<html>", [], {"status": "ok"}])
def test_another_server_is_refused_at_the_start(server: FakeServer, health: Any) -> None:
    server.health = health
    with pytest.raises(ValueError, match="no reward server"):
        remote(server.url)


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:18085", "127.0.0.1", "ftp://a", "http://", "http://:80", "http://a:99999", "http://a:x", "//a"),
        *("http://user:secret@a", "http://a?x=1", "http://a#x", "http://[::1", "http://a:0", "http://a b"),
    ],
)
def test_an_address_is_checked_first(url: str) -> None:
    with pytest.raises(ValueError, match="http"):
        check_url(url)


def test_addresses_may_have_a_path_and_a_slash() -> None:
    assert check_url("https://host/rewards/") == "https://host/rewards"
    assert check_url("http://[::1]:18085") == "http://[::1]:18085"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "/weights"}, "takes the options timeout.*; model go to its server"),
        ({"timeout": 0}, "timeout must be a number above 0"),
        ({"timeout": "60"}, "timeout must be a number"),
        ({"retries": -1}, "retries must be a number from 0"),
        ({"retries": 1.5}, "retries must be an integer"),
        ({"backoff": float("nan")}, "backoff must be a number from 0"),
        ({"format": "pickle"}, "format must be one of npz, png"),
    ],
)
def test_options_are_checked_first(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        remote("http://127.0.0.1:1", **options)


def test_the_registry_builds_a_remote_reward_for_a_url(server: FakeServer) -> None:
    reward = build("mean", RewardSettings(url=server.url, options={"timeout": 5}))
    assert reward(*INPUTS).tolist() == [0.5, 0.5]
    assert repr(reward) == f"reward 'mean' at {server.url}"
