"""The server, request by request."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
import requests
import torch
from bad_requests import LIMITS
from odd_rewards import Held, mean, picky
from serving import batch, expected, post, served, tensor, wait_for

from prompts.world import world_prompts
from reward_server import wire
from reward_server.connection import Connection
from reward_server.limits import Limits
from rewards.registry import RewardSettings, build

WORLD = ("reading", "composition", "colour", "contrast", "clean")
BODY = wire.encode(batch(), wire.NPZ)
TOKEN = "correct-horse"


def raw(url: str, request: bytes, seconds: float = 10.0) -> bytes:
    """What the server answers to these bytes, until it closes or falls silent."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
            if b'"}' in answer:
                break
        return answer


def refusal(response: requests.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert list(response.json()) == ["error"]
    return response.json()["error"]


@pytest.fixture(scope="module")
def world() -> Iterator[str]:
    with served({name: build(name, RewardSettings()) for name in WORLD}) as url:
        yield url


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served({"mean": mean, "picky": picky}, limits=LIMITS) as url:
        yield url


@pytest.mark.parametrize("form", ["npz", "png"])
@pytest.mark.parametrize("name", WORLD)
def test_a_remote_reward_scores_as_the_local_one(world: str, name: str, form: str) -> None:
    prompts = [p for kind in ("general", "text", "composition") for p in world_prompts(kind, True)[:3]]
    images = tensor(batch(9, 24).images)
    images[::2] = (torch.nn.functional.avg_pool2d(images[::2], 5, 1, 2) * 255).round() / 255
    inputs = images, [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts]
    local = build(name, RewardSettings())(*inputs)
    remote = build(name, RewardSettings(url=world, batch_size=4, options={"format": form}))(*inputs)
    torch.testing.assert_close(remote, local, rtol=0, atol=0, equal_nan=True)
    assert local.isnan().any() == (name in ("reading", "composition"))
    assert remote.dtype == torch.float32


def test_health_says_what_there_is_and_counts(url: str) -> None:
    before = requests.get(f"{url}/health", timeout=10).json()
    assert post(f"{url}/score/mean", BODY).json()["scores"] == expected(batch())
    after = requests.get(f"{url}/health", timeout=10).json()
    assert after["served"] == before["served"] + 1
    assert after["rewards"] == ["mean", "picky"]
    assert after["queue"] == {"mean": 0, "picky": 0}
    assert after["authorized"] is True
    assert after["uptime"] >= before["uptime"]
    assert after["limits"] == {"body": LIMITS.body, "images": LIMITS.images, "pixels": LIMITS.pixels}


def test_null_where_a_reward_does_not_apply(url: str) -> None:
    sent = batch(prompts=["nan", "a"])
    scores = post(f"{url}/score/mean", wire.encode(sent, wire.JSON), "application/json; charset=utf-8").json()["scores"]
    assert scores == expected(sent)
    assert scores[0] is None


@pytest.mark.parametrize(
    ("prompt", "status", "words"),
    [
        ("bad", 422, "picky: a prompt of this batch is bad"),
        ("crash", 500, "picky.*KeyError"),
        ("exit", 500, "SystemExit"),
    ],
)
def test_a_reward_that_raises_is_answered_and_lives_on(url: str, prompt: str, status: int, words: str) -> None:
    body = wire.encode(batch(1, prompts=[prompt]), wire.NPZ)
    message = refusal(post(f"{url}/score/picky", body), status)
    assert "secret" not in message
    assert re.search(words, message)
    assert post(f"{url}/score/picky", BODY).json()["scores"] == expected(batch())


def test_the_token_is_needed_and_compared_whole() -> None:
    with served({"mean": mean}, token=TOKEN) as url:
        for token in ("", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\xe9" * 5):
            response = post(f"{url}/score/mean", BODY, token=token.encode().decode("latin-1"))
            assert "Authorization: Bearer" in refusal(response, 401)
            assert response.headers["WWW-Authenticate"] == "Bearer"
        for header in (f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer ", f"Bearer {TOKEN} {TOKEN}"):
            response = requests.post(f"{url}/score/mean", data=BODY, headers={"Authorization": header}, timeout=10)
            refusal(response, 401)
        for scheme in ("Bearer", "bearer"):
            headers = {"Authorization": f"{scheme} {TOKEN}", "Content-Type": wire.NPZ}
            response = requests.post(f"{url}/score/mean", data=BODY, headers=headers, timeout=10)
            assert response.json()["scores"] == expected(batch())
        assert "mean" not in refusal(post(f"{url}/score/unknown", BODY), 401)
        health = requests.get(f"{url}/health", timeout=10)
        assert health.json()["authorized"] is False
        assert TOKEN not in health.text


def test_unknown_paths_and_methods_get_a_json_answer(url: str) -> None:
    assert "this server has mean, picky" in refusal(post(f"{url}/score/ocr", BODY), 404)
    for path in ("/", "/score", "/score/", "/score/mean/", "/docs", "/openapi.json", "/score/mean/x", "/%00"):
        assert "/health" in refusal(requests.post(url + path, data=BODY, timeout=10), 404)
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert "POST /score" in refusal(requests.request(method, f"{url}/score/mean", data=BODY, timeout=10), 405)


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 50_000):
        yield bytes(50_000)


def test_an_oversize_body_is_refused_and_the_connection_stays_usable(url: str) -> None:
    with requests.Session() as session:
        for body in (bytes(LIMITS.body + 1), bytes(2 * LIMITS.body), chunks(2 * LIMITS.body)):
            headers = {"Content-Type": wire.NPZ}
            response = session.post(f"{url}/score/mean", data=body, headers=headers, timeout=10)
            assert "send fewer images" in refusal(response, 413)
            assert "connection" not in response.headers
            response = session.post(f"{url}/score/mean", data=BODY, headers=headers, timeout=10)
            assert response.json()["scores"] == expected(batch())


def test_a_hopeless_body_is_refused_before_it_is_sent(url: str) -> None:
    head = f"POST /score/mean HTTP/1.1\r\nHost: a\r\nContent-Type: {wire.NPZ}\r\n"
    for more in ("Content-Length: 99999999999\r\n", "Content-Length: 400001\r\nExpect: 100-continue\r\n"):
        answer = raw(url, f"{head}{more}\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer


def test_an_endless_body_is_cut(url: str) -> None:
    parts = urlsplit(url)
    head = f"POST /score/mean HTTP/1.1\r\nHost: a\r\nContent-Type: {wire.NPZ}\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = 0
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            while sent < 2**26:
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
                sent += 65536
    assert sent < 2**26


def test_a_body_without_length_needs_one(url: str) -> None:
    answer = raw(url, f"POST /score/mean HTTP/1.1\r\nHost: a\r\nContent-Type: {wire.NPZ}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 411")
    assert b"Content-Length" in answer


def test_what_is_not_http_is_answered(url: str) -> None:
    for request in (b"\0\1\2\3\r\n\r\n", b"GET\r\n\r\n", b"POST /score/mean HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
        assert raw(url, request).startswith(b"HTTP/1.1 400")


def test_a_body_that_trickles_is_given_up() -> None:
    with served({"mean": mean}, limits=replace(LIMITS, upload_seconds=0.2)) as url:
        head = f"POST /score/mean HTTP/1.1\r\nHost: a\r\nContent-Type: {wire.NPZ}\r\nContent-Length: 100\r\n\r\nabc"
        answer = raw(url, head.encode())
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"0.2 s" in answer


def test_a_head_that_never_ends_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "head_seconds", 0.2)
    parts = urlsplit(url)
    whole = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    for first in (b"", whole):  # a first request, or one on a connection that has had an answer
        for half in (b"", b"POST /score/mean HTTP/1.1\r\nHost:"):
            with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
                connection.sendall(first)
                if first:
                    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
                connection.sendall(half)
                if half or not first:
                    while connection.recv(65536):
                        pass


def test_a_full_queue_is_answered_503_until_there_is_room() -> None:
    reward = Held()
    with served({"held": reward, "mean": mean}, limits=Limits(queue=2), batch_size=1) as url:
        responses: list[requests.Response] = []
        threads = [threading.Thread(target=lambda: responses.append(post(f"{url}/score/held", BODY))) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(responses) == 5)  # one is scored, two wait
        assert post(f"{url}/score/mean", BODY).status_code == 200  # each reward has a queue of its own
        assert requests.get(f"{url}/health", timeout=10).json()["queue"] == {"held": 2, "mean": 0}
        assert all("2 requests wait for 'held' already" in refusal(response, 503) for response in responses)
        assert all(response.headers["Retry-After"] == "1" for response in responses)
        reward.release()
        for thread in threads:
            thread.join()
        assert sorted(response.status_code for response in responses) == [200] * 3 + [503] * 5
        assert post(f"{url}/score/held", BODY).status_code == 200


def test_memory_of_all_requests_is_bounded() -> None:
    with served({"mean": mean}, limits=Limits(memory=len(BODY) - 1)) as url:
        response = post(f"{url}/score/mean", BODY)
        assert "memory" in refusal(response, 503)
        assert post(f"{url}/score/mean", wire.encode(batch(1, 1), wire.JSON), wire.JSON).status_code == 200


def test_a_reward_that_hangs_is_answered_504() -> None:
    with served({"held": Held(), "mean": mean}, limits=Limits(score_seconds=1.0)) as url:
        assert "did not answer within 1.0 s" in refusal(post(f"{url}/score/held", BODY), 504)
        assert post(f"{url}/score/mean", BODY).status_code == 200


def test_a_request_whose_client_went_away_is_not_scored() -> None:
    reward = Held()
    with served({"held": reward}, batch_size=1) as url:

        def waiting() -> int:
            return requests.get(f"{url}/health", timeout=10).json()["queue"]["held"]

        first = threading.Thread(target=post, args=(f"{url}/score/held", BODY))
        first.start()
        wait_for(lambda: reward.calls)
        parts = urlsplit(url)
        head = (
            f"POST /score/held HTTP/1.1\r\nHost: a\r\nContent-Type: {wire.NPZ}\r\nContent-Length: {len(BODY)}\r\n\r\n"
        )
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(head.encode() + BODY)
            wait_for(lambda: waiting() == 1)
        wait_for(lambda: waiting() == 0)
        reward.release()
        assert post(f"{url}/score/held", wire.encode(batch(3), wire.NPZ)).status_code == 200
        first.join()
        assert reward.calls == [2, 3]
