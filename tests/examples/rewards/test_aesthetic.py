"""The aesthetic predictor, against the formula in fp64."""

from pathlib import Path

import pytest
import tiny_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel

from rewards.aesthetic import load_head
from rewards.clip_model import ImageProcessor
from rewards.pil_images import pil_images
from rewards.registry import RewardSettings, build

SIZES = [tiny_clip.WIDTH, 1024, 128, 64, 16, 1]
INDICES = [0, 2, 4, 6, 7]  # of the linear layers in the published file, dropouts between them
NOTHING = [{}] * 6


def published_state(width: int = tiny_clip.WIDTH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = {}
    for index, inputs, outputs in zip(INDICES, [width, *SIZES[1:-1]], SIZES[1:], strict=True):
        state[f"layers.{index}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        state[f"layers.{index}.bias"] = torch.randn(outputs, generator=generator)
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aesthetic")
    tiny_clip.save_clip(folder)
    torch.save(published_state(), folder / "head.pth")
    save_file(published_state(), folder / "head.safetensors")
    return folder


def scores(folder: Path, images: Tensor, head: str = "head.pth", **settings: object) -> Tensor:
    options = {"model": str(folder), "head": str(folder / head)}
    return build("aesthetic", RewardSettings(options=options, **settings))(images, [""] * len(images), NOTHING)


def test_scores_equal_a_direct_computation_in_fp64(folder: Path) -> None:
    images, state = tiny_clip.images(), published_state()
    model = CLIPModel.from_pretrained(folder).double().eval()
    pixels = ImageProcessor.from_pretrained(folder)(images=pil_images(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        x = model.visual_projection(model.vision_model(pixels.double()).pooler_output)
    x = x / x.square().sum(-1, keepdim=True).sqrt()
    for index in INDICES:
        x = x @ state[f"layers.{index}.weight"].double().T + state[f"layers.{index}.bias"].double()
    assert x.std() > 1e-3  # the images differ by far more than the tolerance
    torch.testing.assert_close(scores(folder, images).double(), x.squeeze(-1), rtol=0, atol=1e-5)


def test_both_file_formats_and_all_batch_sizes_agree(folder: Path) -> None:
    images = tiny_clip.images()
    expected = scores(folder, images)
    assert torch.equal(scores(folder, images, "head.safetensors"), expected)
    torch.testing.assert_close(scores(folder, images, batch_size=4), expected, rtol=0, atol=1e-5)


def test_nothing_is_dropped_out_and_half_precision_keeps_the_head_in_float32(folder: Path) -> None:
    images = tiny_clip.images()
    half = scores(folder, images, dtype="bfloat16")
    assert torch.equal(half, scores(folder, images, dtype="bfloat16"))
    torch.testing.assert_close(half, scores(folder, images), rtol=0, atol=0.1)
    head = load_head(folder / "head.pth", tiny_clip.WIDTH)
    assert not head.training
    assert {weight.dtype for weight in head.parameters()} == {torch.float32}


def test_a_head_of_another_width_or_with_other_layers_is_refused(folder: Path) -> None:
    torch.save(published_state(7), folder / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is not an aesthetic head for embeddings of width 12"):
        scores(folder, tiny_clip.images(), "other.pth")
    state = published_state()
    del state["layers.7.bias"]
    torch.save(state, folder / "other.pth")
    with pytest.raises(ValueError, match=r"Missing key.*7\.bias"):
        scores(folder, tiny_clip.images(), "other.pth")


def test_a_head_that_would_run_code_is_refused(folder: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), folder / "module.pth")
    with pytest.raises(Exception, match="weights_only"):
        scores(folder, tiny_clip.images(), "module.pth")
