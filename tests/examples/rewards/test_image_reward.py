"""ImageReward: what the package is called with, by a stand-in for it."""

import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rewards.registry import RewardSettings, build


class Tokens(SimpleNamespace):
    def to(self, device: str) -> "Tokens":
        return self


class StandIn(nn.Module):
    """Scores mean pixel + first token, with the names of image-reward 1.5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.blip = SimpleNamespace(tokenizer=self.tokenize)

    def tokenize(self, prompts: list[str], **options: object) -> Tokens:
        assert options == {"padding": "max_length", "truncation": True, "max_length": 35, "return_tensors": "pt"}
        ids = torch.tensor([[len(prompt)] + 34 * [0] for prompt in prompts])
        return Tokens(input_ids=ids, attention_mask=torch.ones_like(ids))

    def preprocess(self, image: Image.Image) -> Tensor:
        return torch.tensor(image.getpixel((0, 0))) / 255.0

    def score_gard(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        assert ids.shape == mask.shape == (len(pixels), 35)
        assert pixels.dtype == self.weight.dtype
        return (pixels.mean(1) + ids[:, 0]).to(self.weight.dtype)[:, None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_images_and_prompts_are_paired_in_batches(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    calls = []

    def load(name: str, **options: object) -> StandIn:
        calls.append((name, options))
        return StandIn()

    monkeypatch.setitem(sys.modules, "ImageReward", SimpleNamespace(load=load))
    reward = build("imagereward", RewardSettings(batch_size=2, dtype=dtype))
    images = one_hot(torch.tensor([0, 1, 2, 0, 1])).float()[:, :, None, None].expand(-1, -1, 4, 4)
    scores = reward(images, ["", "a", "bb", "ccc", "dddd"], [{}] * 5)
    torch.testing.assert_close(scores, torch.arange(5) + 1 / 3, rtol=0.01, atol=1e-6 if dtype == "float32" else 0.01)
    assert scores.dtype == torch.float32
    assert calls == [("ImageReward-v1.0", {"device": "cpu", "med_config": None})]


def test_without_the_package_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(ImportError, match=r"pip install image-reward .*set url"):
        build("imagereward", RewardSettings())
