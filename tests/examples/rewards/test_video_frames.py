"""Videos in the scorer: rewards of images see their frames; and the prefix of a reward."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from prompts.prompt import Prompt
from rewards.interface import Metadata
from rewards.registry import FACTORIES, RewardSettings, build
from rewards.scorer import Scorer


class Seen:
    """Scores the mean of an image, NaN for the prompt "none"; remembers what it was given."""

    def __init__(self, takes_video: bool = False) -> None:
        self.calls: list[tuple[list[int], list[str], list[Metadata]]] = []
        self.takes_video = takes_video

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        self.calls.append((list(images.shape), list(prompts), list(metadata)))
        scores = images.flatten(1).mean(1)
        return torch.where(torch.tensor([prompt.endswith("none") for prompt in prompts]), torch.nan, scores)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The reward of the name "seen"."""
    reward = Seen()
    monkeypatch.setitem(FACTORIES, "seen", "test_video_frames:factory")
    module = SimpleNamespace(factory=lambda settings: reward)
    monkeypatch.setattr("rewards.registry.import_module", lambda name: module)
    return reward


@pytest.fixture
def videos() -> Tensor:
    return torch.rand(2, 7, 3, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stride", [1, 2, 3, 100])
def test_the_score_of_a_video_is_the_mean_over_every_so_many_th_frame(seen: Seen, videos: Tensor, stride: int) -> None:
    prompts = [Prompt("a", "edits", {"n": 1}), Prompt("b")]
    with Scorer({"seen": RewardSettings(frame_stride=stride, scale=2.0)}) as scorer:
        scores = scorer.score(videos, prompts)
    frames = range(0, 7, stride)
    for video, score in zip(videos, scores[0], strict=True):
        expected = sum(video[frame].mean().item() for frame in frames) / len(frames)
        assert score.item() == pytest.approx(2 * expected, abs=1e-6)
    shape, texts, metadata = seen.calls[0]
    assert shape == [2 * len(frames), 3, 4, 5]
    assert texts == ["a"] * len(frames) + ["b"] * len(frames)
    assert metadata == [{"source": "edits", "n": 1}] * len(frames) + [{"source": "general"}] * len(frames)


def test_a_reward_that_does_not_apply_to_a_video_is_nan_for_it(seen: Seen, videos: Tensor) -> None:
    with Scorer({"seen": RewardSettings()}) as scorer:
        assert scorer.score(videos, [Prompt("none"), Prompt("b")])[0].isnan().tolist() == [True, False]


def test_a_reward_of_videos_gets_them_whole(seen: Seen, videos: Tensor) -> None:
    seen.takes_video = True
    with Scorer({"seen": RewardSettings(frame_stride=3, prefix="x ")}) as scorer:
        scores = scorer.score(videos, [Prompt("a"), Prompt("b")])
        with pytest.raises(ValueError, match="reward 'seen' scores videos"):
            scorer.score(videos[0], [Prompt("a")] * 7)
    assert seen.calls == [([2, 3, 3, 4, 5], ["x a", "x b"], [{"source": "general"}] * 2)]
    torch.testing.assert_close(scores[0], videos[:, ::3].flatten(1).mean(1))


def test_images_and_videos_take_turns(seen: Seen, videos: Tensor) -> None:
    with Scorer({"seen": RewardSettings(frame_stride=2)}) as scorer:
        scorer.submit(videos[0], [Prompt(str(i)) for i in range(7)])
        scorer.submit(videos, [Prompt("a"), Prompt("b")])
        scores = scorer.collect()[0]
    torch.testing.assert_close(scores[:7], videos[0].flatten(1).mean(1))
    torch.testing.assert_close(scores[7:], videos[:, ::2].flatten(1).mean(1))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 4, 4, 5), "images must be floats"),
        ((2, 0, 3, 4, 4), "videos must have frames"),
        ((3, 4, 4), "got torch"),
    ],
)
def test_other_shapes_are_refused(seen: Seen, shape: tuple[int, ...], message: str) -> None:
    with Scorer({"seen": RewardSettings()}) as scorer, pytest.raises(ValueError, match=message):
        scorer.submit(torch.zeros(shape), [Prompt("")] * 2)


def test_a_reward_that_does_not_score_each_frame_is_named(
    seen: Seen, videos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Seen, "__call__", lambda *given: torch.zeros(2))
    failure = r"reward 'seen' failed: .*returned \[2\] for 14 frames"
    with Scorer({"seen": RewardSettings()}) as scorer, pytest.raises(RuntimeError, match=failure):
        scorer.score(videos, [Prompt("a"), Prompt("b")])


def test_a_prefix_is_put_before_every_prompt(seen: Seen) -> None:
    images = torch.rand(2, 3, 4, 4)
    scores = build("seen", RewardSettings(prefix="a pencil sketch of "))(images, ["a cat", ""], [{"n": 1}, {}])
    assert seen.calls == [([2, 3, 4, 4], ["a pencil sketch of a cat", "a pencil sketch of "], [{"n": 1}, {}])]
    assert torch.equal(scores, images.flatten(1).mean(1))
    assert build("seen", RewardSettings()) is seen
