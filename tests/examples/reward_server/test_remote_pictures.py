"""Pictures of edits, and frames of videos, on their way to a reward server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_server import FakeServer, remote
from PIL import Image
from serving import batch, served
from torch import Tensor

import serve_rewards
from prompts.pictures import data_url, load_picture
from prompts.prompt import Prompt
from reward_server import wire
from reward_server.limits import Limits
from rewards.interface import Metadata
from rewards.registry import RewardSettings
from rewards.remote_parts import parts
from rewards.scorer import Scorer
from rewards.sources import kept_of, source_of


def distance(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
    """The mean distance to the source, outside of the mask; NaN without a source."""
    scores = torch.full((len(images),), torch.nan)
    for i, facts in enumerate(metadata):
        if facts.get("image") is not None:
            mask = load_picture(facts["mask"]) if "mask" in facts else torch.zeros(1)
            scores[i] = ((images[i] - load_picture(facts["image"])).abs() * (1 - mask)).mean()
    return scores


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Two files of noise and a mask, 8 x 8."""
    names = [str(tmp_path / f"{name}.png") for name in "abm"]
    for name, image in zip(names, batch(3, seed=5).images, strict=True):
        Image.fromarray(image).save(name)
    return names


@pytest.mark.parametrize("form", ["npz", "png"])
def test_a_server_without_the_files_scores_as_they_do_here(pictures: list[str], form: str, tmp_path: Path) -> None:
    a, b, m = pictures
    images = torch.from_numpy(batch(6, seed=1).images).permute(0, 3, 1, 2).float() / 255
    metadata: list[dict[str, Any]] = [{"image": a}, {"image": b, "mask": m}, {}, {"image": None}]
    metadata += [{"image": data_url(a), "n": 1}, {"image": a}]
    local = distance(images, [""] * 6, metadata)
    seen: list[Metadata] = []

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        seen.extend(metadata)
        return distance(images, prompts, metadata)

    with served({"mean": reward}) as url:
        scores = remote(url, format=form, batch_size=4)(images, [""] * 6, metadata)
        torch.testing.assert_close(scores, local, equal_nan=True)
        assert not any(str(tmp_path) in str(facts) for facts in seen)
        assert seen[4] == {"image": data_url(a), "n": 1}
        blind = remote(url, format=form, pictures=False)(images, [""] * 6, metadata)
        assert blind.isnan().all()
        assert seen[-2:] == [{"n": 1}, {}]


def test_pictures_that_a_server_would_refuse_are_sent_in_the_size_of_the_images(tmp_path: Path) -> None:
    photo, mask = tmp_path / "photo.jpg", tmp_path / "mask.png"
    Image.linear_gradient("L").resize((300, 200)).convert("RGB").save(photo)
    Image.linear_gradient("L").resize((150, 100)).point(lambda level: 255 * (level > 99)).save(mask)
    metadata = [{"image": str(photo), "mask": str(mask)}]
    images = torch.rand(1, 3, 20, 30)
    seen: list[Metadata] = []

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        seen.extend(metadata)
        return distance(images, prompts, metadata)

    with served({"mean": reward}, limits=Limits(pixels=20 * 30)) as url:
        assert remote(url)(images, ["a"], metadata).isfinite().all()
    source, kept = source_of(metadata[0], 20, 30), kept_of(metadata[0], 20, 30)
    torch.testing.assert_close(load_picture(seen[0]["image"]), source, atol=0.501 / 255, rtol=0)
    arrived = kept_of(seen[0], 20, 30)
    assert arrived is not None
    assert kept is not None
    assert arrived.equal(kept)
    assert 0 < kept.float().mean() < 1


@pytest.mark.parametrize("content_type", [wire.JSON, wire.NPZ])
def test_a_picture_travels_once_and_is_charged_to_the_request(content_type: str, tmp_path: Path) -> None:
    noise = batch(1, 100).images[0]
    Image.fromarray(noise).save(tmp_path / "noise.png")
    picture = data_url(str(tmp_path / "noise.png"))
    limits = Limits(metadata=1000)
    sizes = []
    for count in (1, 8):
        sent = batch(count, metadata=[{"image": picture, "mask": picture} for _ in range(count)])
        body = wire.encode(sent, content_type)
        arrived = wire.decode(body, content_type, limits)
        assert arrived.metadata == sent.metadata
        assert arrived.nbytes == arrived.images.nbytes + len(picture)
        sizes.append(len(body))
    assert len(picture) > 30_000  # beyond what metadata may have
    assert sizes[1] - sizes[0] < len(picture) / 4


def test_a_batch_is_parted_by_the_size_of_its_pictures() -> None:
    first, second, mask = "x" * 1000, "y" * 1000, "z" * 1000
    metadata = [{"image": first}, {"image": first}, {"image": second, "mask": mask}, {}, {"image": second}]
    assert parts(metadata, 10, 16, 10**6) == [slice(0, 5)]
    assert parts(metadata, 10, 2, 10**6) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    # 60 bytes per image, 4000 per picture that is new in its request: 4120 for the first two, 8180 for the others.
    assert parts(metadata, 10, 16, 8200) == [slice(0, 2), slice(2, 5)]
    assert parts(metadata, 10, 16, 5) == [slice(i, i + 1) for i in range(5)]
    assert parts([], 10, 16, 100) == []


def test_frames_of_videos_go_to_a_server_as_images(pictures: list[str]) -> None:
    videos = torch.from_numpy(batch(6, seed=2).images).permute(0, 3, 1, 2).float().div(255).unflatten(0, (2, 3))
    prompts = [Prompt("a", metadata={"image": pictures[0]}), Prompt("b")]
    settings = {"frame_stride": 2, "batch_size": 3}
    with served({"mean": distance}) as url, Scorer({"mean": RewardSettings(url=url, **settings)}) as scorer:
        scores = scorer.score(videos, prompts)[0]
    expected = distance(videos[0, ::2], ["", ""], [{"image": pictures[0]}] * 2).mean()
    torch.testing.assert_close(scores, torch.tensor([expected, torch.nan]), equal_nan=True)


def test_a_missing_picture_is_named_here_and_nothing_is_sent(server: FakeServer) -> None:
    with pytest.raises(ValueError, match=r"reward 'mean' at .*: /nowhere\.png cannot be read as a picture"):
        remote(server.url)(torch.rand(1, 3, 8, 8), ["a"], [{"image": "/nowhere.png"}])
    assert not server.times
    with pytest.raises(ValueError, match="pictures must be true or false, got 'no'"):
        remote(server.url, pictures="no")


def test_a_server_takes_no_reward_of_videos_and_no_frame_stride(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["serve_rewards.py", *arguments, "--port", "0"])
        with pytest.raises(SystemExit) as stopped:
            serve_rewards.main()
        return str(stopped.value)

    distance.takes_video = True  # type: ignore[attr-defined]
    try:
        monkeypatch.setattr(serve_rewards, "build", lambda name, settings: distance)
        assert "'colour' takes videos, and a server is sent images" in refused("colour")
    finally:
        del distance.takes_video  # type: ignore[attr-defined]
    (tmp_path / "rewards.yaml").write_text("colour: {frame_stride: 2}\n")
    assert "give frame_stride there" in refused("--config", str(tmp_path / "rewards.yaml"))
