"""VBench's consistency over frames, against two loops in fp64."""

import pytest
import tiny_clip
import torch
from torch import Tensor

from prompts.prompt import Prompt
from rewards.registry import RewardSettings, build
from rewards.scorer import Scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_clip.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def videos() -> Tensor:
    """Two of five frames."""
    return tiny_clip.images(10).unflatten(0, (2, 5))


def settings(folder: str, **values: object) -> RewardSettings:
    return RewardSettings(options={"model": folder}, **values)


def brute_force(folder: str, video: Tensor) -> float:
    d = tiny_clip.embed_images(folder, video)
    terms = [(d[0] @ d[i] + d[i - 1] @ d[i]).item() / 2 for i in range(1, len(d))]
    return sum(terms) / (len(d) - 1)


@pytest.mark.parametrize("batch_size", [2, 16])
def test_it_is_vbenchs_formula(folder: str, videos: Tensor, batch_size: int) -> None:
    scores = build("temporal_consistency", settings(folder, batch_size=batch_size))(videos, ["", ""], [{}, {}])
    assert scores.tolist() == pytest.approx([brute_force(folder, video) for video in videos], abs=1e-6)
    assert scores[0] != scores[1]


def test_the_scorer_leaves_every_so_many_th_frame(folder: str, videos: Tensor) -> None:
    with Scorer({"temporal_consistency": settings(folder, frame_stride=2, scale=10.0)}) as scorer:
        scores = scorer.score(videos, [Prompt("a"), Prompt("b")])
    expected = [10 * brute_force(folder, video[[0, 2, 4]]) for video in videos]
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_still_scores_one(folder: str, videos: Tensor) -> None:
    still = videos[:1, :1].expand(-1, 4, -1, -1, -1)
    assert build("temporal_consistency", settings(folder))(still, [""], [{}]).item() == pytest.approx(1, abs=1e-6)


def test_what_is_no_video_is_refused(folder: str, videos: Tensor) -> None:
    reward = build("temporal_consistency", settings(folder))
    with pytest.raises(ValueError, match=r"scores videos \[B, F, 3, H, W\], got \[5, 3, 24, 24\]"):
        reward(videos[0], [""] * 5, [{}] * 5)
    with pytest.raises(ValueError, match="was given one: lower frame_stride"):
        reward(videos[:, :1], ["", ""], [{}, {}])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        reward(videos + torch.ones(1), ["", ""], [{}, {}])
    with Scorer({"temporal_consistency": settings(folder)}) as scorer:
        with pytest.raises(ValueError, match=r"'temporal_consistency' scores videos .* a model that makes videos"):
            scorer.submit(videos[0], [Prompt("")] * 5)
        assert scorer.collect().shape == (1, 0)
