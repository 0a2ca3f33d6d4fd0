"""The client: what it tries again, what it raises, what it gives up as NaN."""

import email.utils
import time
import warnings
from typing import Any

import pytest
import torch
from fake_server import IMAGES, INPUTS, FakeServer, free_port, remote
from serving import served

from reward_server.limits import Limits


@pytest.mark.parametrize("step", ["drop", "hang", 408, 429, 502, 503, 504])
def test_what_passes_is_tried_again_until_it_works(server: FakeServer, step: Any) -> None:
    reward = remote(server.url, timeout=0.7 if step == "hang" else 60.0)
    server.plan = [step, step]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reward(*INPUTS).tolist() == [0.5, 0.5]
    assert len(server.times) == 3
    assert reward.missing == 0


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_attempts_are_counted_then_scores_are_nan_with_a_warning(server: FakeServer, retries: int) -> None:
    reward = remote(server.url, retries=retries)
    server.plan = [503] * 20
    with pytest.warns(RuntimeWarning, match=f"'mean' at {server.url} is away .*503.*NaN for 2 samples, 2 so far"):
        assert reward(*INPUTS).isnan().all()
    assert len(server.times) == 1 + retries
    assert reward.missing == 2


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr("reward_server.client.time.sleep", slept.append)
    return slept


def test_the_pauses_double_and_jitter(server: FakeServer, pauses: list[float]) -> None:
    reward = remote(server.url, backoff=1.0, retries=4)
    factors = []
    for _ in range(20):
        pauses.clear()
        server.plan = [502] * 4
        reward(*INPUTS)
        assert pauses[0] == 0
        factors += [pause / 2**i for i, pause in enumerate(pauses[1:])]
    assert len(factors) == 80
    assert 0.5 <= min(factors) < 0.7 < 1.3 < max(factors) <= 1.5


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("1000", 60.0), ("date", 30.0), ("soon", 0.0), ("-5", 0.0)])
def test_retry_after_is_respected_up_to_the_timeout(
    server: FakeServer, pauses: list[float], asked: str, waited: float
) -> None:
    reward = remote(server.url)
    asked = email.utils.formatdate(time.time() + 30, usegmt=True) if asked == "date" else asked
    pauses.clear()
    server.plan = [(503, {"Retry-After": asked})]
    assert reward(*INPUTS).tolist() == [0.5, 0.5]
    assert pauses == [0.0, pytest.approx(waited, abs=20.0 if waited == 30 else 0.01)]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 411, 413, 415, 422])
def test_a_refusal_raises_at_once_with_the_words_of_the_server(server: FakeServer, status: int) -> None:
    reward = remote(server.url)
    server.plan = [status]
    with pytest.raises(ValueError, match=f"reward 'mean' at {server.url}: {status}: planned {status}"):
        reward(*INPUTS)
    assert (len(server.times), reward.missing) == (1, 0)


def test_a_reward_that_fails_over_there_raises_as_it_would_here(server: FakeServer) -> None:
    reward = remote(server.url)
    server.plan = [500]
    with pytest.raises(RuntimeError, match=f"reward 'mean' at {server.url}: 500: planned 500"):
        reward(*INPUTS)
    assert len(server.times) == 1


@pytest.mark.parametrize(
    "answer",
    [{}, [], {"scores": [0.5]}, {"scores": [0.5, "x"]}, {"scores": [0.5, float("inf")]}, b"<html>Sign in</html>", b""],
)
def test_an_answer_that_is_not_of_the_protocol_raises(server: FakeServer, answer: Any) -> None:
    reward = remote(server.url)
    server.plan = [answer]
    with pytest.raises(ValueError, match=r"expected 2 scores|a score must be|not a reward server"):
        reward(*INPUTS)


def test_a_redirect_raises(server: FakeServer) -> None:
    reward = remote(server.url)
    server.plan = [(302, {"Location": "https://elsewhere"})]
    with pytest.raises(ValueError, match="302, to https://elsewhere"):
        reward(*INPUTS)


def test_null_is_nan_and_costs_no_warning(server: FakeServer) -> None:
    server.plan = [{"scores": [None, 0.25], "seconds": 0.1}]
    reward = remote(server.url)
    torch.testing.assert_close(reward(*INPUTS), torch.tensor([torch.nan, 0.25]), equal_nan=True)
    assert reward.missing == 0


def test_an_outage_costs_one_warning_and_one_attempt_per_request_until_it_ends(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    reward = remote(server.url, retries=2, cool_down=60)
    for outage in (1, 2):
        server.times.clear()
        server.plan = [503] * 7
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scores = [reward(*INPUTS) for _ in range(5)]
        assert len(server.times) == 3 + 4
        assert all(score.isnan().all() for score in scores)
        assert len(caught) == 1
        assert f"NaN for 2 samples, {10 * (outage - 1) + 2} so far" in str(caught[0].message)
        assert reward.missing == 10 * outage
        assert reward(*INPUTS).tolist() == [0.5, 0.5]
        assert "this outage left 10 samples without a score" in caplog.records[-1].message
    assert len(caplog.records) == 2


def test_after_the_cool_down_it_insists_again(server: FakeServer) -> None:
    reward = remote(server.url, retries=2, cool_down=0.15)
    server.plan = [503] * 6
    with pytest.warns(RuntimeWarning):
        reward(*INPUTS)
    time.sleep(0.2)
    reward(*INPUTS)
    assert len(server.times) == 6


def test_a_hung_server_is_hurried_during_an_outage(server: FakeServer) -> None:
    reward = remote(server.url, retries=0, timeout=60.0, hurry=0.05)
    server.plan = [503, *["hang"] * 5]
    with pytest.warns(RuntimeWarning):
        reward(*INPUTS)
    started = time.monotonic()
    for _ in range(5):
        assert reward(*INPUTS).isnan().all()
    assert time.monotonic() - started < 20


def test_only_the_lost_requests_are_nan(server: FakeServer) -> None:
    server.images = 1
    reward = remote(server.url, batch_size=1, retries=0)
    server.plan = [{"scores": [0.1]}, 503, {"scores": [0.3]}]
    with pytest.warns(RuntimeWarning, match="NaN for 1 samples"):
        scores = reward(torch.rand(3, 3, 8, 8), ["a"] * 3, [{}] * 3)
    torch.testing.assert_close(scores, torch.tensor([0.1, torch.nan, 0.3]), equal_nan=True)


def test_requests_fit_the_limits_of_the_server() -> None:
    sizes = []

    def reward(images: torch.Tensor, prompts: object, metadata: object) -> torch.Tensor:
        sizes.append(len(images))
        return images.mean((1, 2, 3))

    images, texts = torch.rand(9, 3, 64, 64), (["a"] * 9, [{}] * 9)
    for limits, count in ((Limits(images=4), 4), (Limits(body=50_000), 2)):
        sizes.clear()
        with served({"mean": reward}, limits=limits, batch_size=1) as url:
            for form in ("npz", "png"):
                scores = remote(url, batch_size=16, format=form)(images, *texts)
                torch.testing.assert_close(scores, images.mean((1, 2, 3)), atol=1e-3, rtol=0)
        assert sizes == 2 * [*[count] * (9 // count), 1]
    with served({"mean": reward}, limits=Limits(pixels=1000)) as url, pytest.raises(ValueError, match="4096 pixels"):
        remote(url)(images, *texts)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(2, 8, 8, 3), r"must be floating point \[B, 3, H, W\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "floating point"),
        (IMAGES * 2, r"must lie in \[0, 1\]"),
        (IMAGES - 1, r"must lie in \[0, 1\]"),
        (IMAGES * torch.nan, r"must lie in \[0, 1\]"),
        (IMAGES[:1], "1 images, 2 prompts and 2 metadata"),
    ],
)
def test_images_are_checked_before_they_are_rounded(server: FakeServer, images: torch.Tensor, words: str) -> None:
    reward = remote(server.url)
    with pytest.raises(ValueError, match=f"reward 'mean' at .*: .*{words}"):
        reward(images, *INPUTS[1:])
    assert not server.times


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_taken(server: FakeServer, dtype: torch.dtype) -> None:
    assert remote(server.url)(IMAGES.to(dtype), *INPUTS[1:]).tolist() == [0.5, 0.5]


def test_no_images_no_request(server: FakeServer) -> None:
    assert remote(server.url)(torch.zeros(0, 3, 8, 8), [], []).shape == (0,)
    assert not server.times


def test_the_token_of_the_environment_goes_along_and_nothing_else(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    remote(server.url)(*INPUTS)
    monkeypatch.setenv("MARBLE_REWARD_TOKEN", "correct-horse\n")
    remote(server.url)(*INPUTS)
    assert [headers.get("Authorization") for headers in server.headers] == [None, "Bearer correct-horse"]
    monkeypatch.setenv("MARBLE_REWARD_TOKEN", "two words")
    with pytest.raises(ValueError, match="without spaces"):
        remote(server.url)
