"""`examples/serve_rewards.py` as a user runs it: started, refused, stopped, killed, started again."""

import argparse
import shutil
import signal
import socket
import subprocess
import threading
import time
import warnings
from pathlib import Path

import pytest
import requests
import torch
from odd_rewards import mean
from serving import batch, command, expected, post, wait_for

import serve_rewards
from reward_server import wire
from reward_server.settings import from_yaml, with_options
from rewards.registry import RewardSettings
from rewards.remote import RemoteReward


def accepts(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=10).ok
    except requests.ConnectionError:
        return False


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the command says when it refuses to start."""
    monkeypatch.setattr("sys.argv", ["serve_rewards.py", *arguments])
    monkeypatch.setattr(serve_rewards.Server, "run", lambda *_, **__: pytest.fail("it started"))
    with pytest.raises(SystemExit) as stopped:
        serve_rewards.main()
    return str(stopped.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_need_a_token(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.delenv("MARBLE_REWARD_TOKEN", raising=False)
    said = run(monkeypatch, "colour", "--host", host, "--port", "0")
    assert "so a token is needed: export MARBLE_REWARD_TOKEN=" in said


@pytest.mark.parametrize("token", ["", "  \n", "two words", "\u00e9"])
def test_a_token_must_be_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str) -> None:
    monkeypatch.setenv("MARBLE_REWARD_TOKEN", token)
    assert "printable ASCII" in run(monkeypatch, "colour", "--host", "0.0.0.0", "--port", "0")
    (tmp_path / "token").write_text(token)
    assert "printable ASCII" in run(monkeypatch, "colour", "--token-file", str(tmp_path / "token"), "--port", "0")


def test_the_token_file_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of-the-file\n")
    monkeypatch.setenv("MARBLE_REWARD_TOKEN", "of-the-environment")
    for path, token in ((tmp_path / "token", "of-the-file"), (None, "of-the-environment")):
        assert serve_rewards.token_of(argparse.Namespace(token_file=path, host="0.0.0.0"), "0.0.0.0") == token
    monkeypatch.delenv("MARBLE_REWARD_TOKEN")
    assert serve_rewards.token_of(argparse.Namespace(token_file=None, host="localhost"), "127.0.0.1") is None


def test_mistakes_on_the_command_line_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "unknown reward 'nothing': known are" in run(monkeypatch, "nothing", "--port", "0")
    assert "give either names" in run(monkeypatch)
    assert "reward.option=value" in run(monkeypatch, "colour", "--options", "colour=3")
    assert "'ocr' is not among" in run(monkeypatch, "colour", "--options", "ocr.model=3")
    assert "--queue must be at least 1" in run(monkeypatch, "colour", "--queue", "0")
    assert "batch_size must be at least 1" in run(monkeypatch, "colour", "--batch-size", "0")
    assert "missing" in run(monkeypatch, "colour", "--token-file", str(tmp_path / "missing"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        assert f"port {taken}: Address already in use; choose another" in run(monkeypatch, "colour", "--port", taken)


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rewards.yaml"
    path.write_text("ocr: {device: 'cuda:1', batch_size: 8, scale: 2, options: {model: /weights}}\ncolour:\n")
    settings = with_options(from_yaml(path), ["ocr.threshold=0.5", "ocr.model=/other", "colour.names=[1]"])
    options = {"model": "/other", "threshold": 0.5}
    assert settings["ocr"] == RewardSettings(device="cuda:1", batch_size=8, scale=2, options=options)
    assert settings["colour"] == RewardSettings(options={"names": [1]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must map names"),
        ("- ocr", "must map names"),
        ("ocr: 3", "must be a mapping"),
        ("ocr: {batchsize: 8}", "unknown setting 'batchsize'; known are weight"),
        ("ocr: {batch_size: many}", "ocr.batch_size must be of type int"),
        ("ocr: {device: true}", "ocr.device must be of type str"),
        ("ocr: {", "is not YAML"),
        ("ocr: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rewards.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        from_yaml(path)
    with pytest.raises(ValueError, match="cannot be read"):
        from_yaml(tmp_path / "missing.yaml")


def test_sigterm_finishes_what_has_arrived(tmp_path: Path) -> None:
    body = wire.encode(batch(), wire.NPZ)
    until = tmp_path / "go"
    with command("held", "--port", "0", "--options", f"held.until={until}", "--batch-size", "1") as (url, process):
        answers: list[requests.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(post(f"{url}/score/held", body))) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: requests.get(f"{url}/health", timeout=10).json()["queue"]["held"] == 2)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: not accepts(url))
        time.sleep(0.5)  # longer than the pause that uvicorn makes in any case
        until.touch()
        for thread in threads:
            thread.join(20)
        assert [answer.json()["scores"] for answer in answers] == [expected(batch())] * 3
        printed = process.communicate(timeout=20)[0]
        assert process.returncode == 0
        assert "stopped; 3 requests served" in printed


def test_a_run_outlives_its_server_and_uses_the_next_one() -> None:
    images = torch.rand(6, 3, 8, 8)
    inputs = images, ["a"] * 6, [{}] * 6
    truth = mean((images * 255).round() / 255, *inputs[1:])
    rows = []

    def epoch(reward: RemoteReward, batches: int) -> None:
        for _ in range(batches):
            rows.append(reward(*inputs))

    options = {"backoff": 0.01, "retries": 2}
    with command("mean", "--port", "0") as (url, process), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reward = RemoteReward(url, "mean", RewardSettings(url=url, batch_size=4, options=options))
        epoch(reward, 2)
        process.kill()
        process.wait()
        epoch(reward, 3)
        assert [str(warning.message).split(" (")[0] for warning in caught] == [f"reward 'mean' at {url} is away"]
        assert reward.missing == 18
        with command("mean", "--port", url.rpartition(":")[2]) as (again, _):
            assert again == url
            epoch(reward, 2)
        assert len(caught) == 1
    finished = torch.stack(rows)
    torch.testing.assert_close(finished[[0, 1, 5, 6]], truth.expand(4, 6), rtol=0, atol=0)
    assert finished[2:5].isnan().all()
    assert reward.missing == 18


def test_https_with_a_certificate_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    ask = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run([*ask.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    options = ("--tls-certificate", certificate, "--tls-key", key)
    with command("mean", "--port", "0", *options, token="correct-horse") as (url, _):
        assert url.startswith("https://127.0.0.1:")
        settings = RewardSettings(options={"backoff": 0.001, "retries": 1})
        with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            RemoteReward(url, "mean", settings)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
        with pytest.raises(ValueError, match="MARBLE_REWARD_TOKEN"):
            RemoteReward(url, "mean", settings)
        monkeypatch.setenv("MARBLE_REWARD_TOKEN", "correct-horse")
        images = torch.ones(1, 3, 8, 8)
        assert RemoteReward(url, "mean", settings)(images, ["a"], [{}]).tolist() == [1.0]
