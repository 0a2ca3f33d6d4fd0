"""Settings and folders that the SD3 backbone cannot serve are refused with what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from backbones import load
from backbones.load import load_backbone
from backbones.settings import ModelSettings
from make_pipeline import make


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 40}, "multiple of 16 for this model, got 40: use 32 or 48"),
        ({"resolution": 8}, "multiple of 16 for this model, got 8: use 16"),
        ({"resolution": 144}, "at most 128, where this model's positions end, got 144"),
        ({"precision": "fp16"}, "needs a GPU: on a CPU use bf16 or no"),
        ({"max_tokens": 513}, "at most 512"),
    ],
)
def test_bad_settings_are_refused(tiny_sd3: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(ModelSettings(str(tiny_sd3), **options))


@pytest.mark.parametrize("resolution", [0, 16, 128])
def test_resolutions_up_to_the_last_position_work(tiny_sd3: Path, resolution: int) -> None:
    backbone = load_backbone(ModelSettings(str(tiny_sd3), resolution=resolution))
    side = (resolution or 64) // 8
    assert backbone.latent_shape == (16, side, side)
    conditioning = {"sequence": torch.randn(1, 5, 80), "pooled": torch.randn(1, 56)}
    x = torch.randn(1, *backbone.latent_shape)
    assert backbone.velocity(x, torch.ones(1), conditioning).shape == x.shape


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler", "text_encoder_2", "tokenizer", "tokenizer_3"])
def test_a_folder_that_lacks_a_part_is_refused_by_name(tiny_sd3: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(tiny_sd3, tmp_path / "sd3")
    shutil.rmtree(tmp_path / "sd3" / part)
    with pytest.raises(ValueError, match=rf"lacks {part}: save the whole pipeline"):
        load_backbone(ModelSettings(str(tmp_path / "sd3")))


@pytest.mark.usefixtures("no_weights")
def test_a_vae_of_another_model_is_refused(tiny_sd3: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd3, tmp_path / "sd3")
    path = tmp_path / "sd3" / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latent_channels": 4}))
    with pytest.raises(ValueError, match="takes 16 channels, and its VAE's latents have 4: the two do not belong"):
        load_backbone(ModelSettings(str(tmp_path / "sd3")))


@pytest.mark.usefixtures("no_weights")
def test_an_index_without_a_clip_is_refused(tiny_sd3: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd3, tmp_path / "sd3")
    path = tmp_path / "sd3" / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"text_encoder": [None, None]}))
    with pytest.raises(ValueError, match="lacks text_encoder: "):
        load_backbone(ModelSettings(str(tmp_path / "sd3")))


@pytest.mark.usefixtures("no_weights")
def test_a_schedule_that_depends_on_the_resolution_is_refused(tiny_sd3: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd3, tmp_path / "sd3")
    path = tmp_path / "sd3" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dynamic_shifting": True}))
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no fixed shift"):
        load_backbone(ModelSettings(str(tmp_path / "sd3")))


@pytest.mark.parametrize(
    "error",
    [
        ImportError("StableDiffusion3Pipeline requires the transformers library"),
        ValueError("You need to have sentencepiece or tiktoken installed to convert a slow tokenizer to a fast one."),
    ],
)
def test_missing_packages_are_named_with_their_install_command(
    tiny_sd3: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(StableDiffusion3Pipeline, "from_pretrained", fail)
    with pytest.raises(ImportError, match=r"pip install .*sentencepiece"):
        load_backbone(ModelSettings(str(tiny_sd3)))


def test_loading_shows_no_progress_bars_and_leaves_them_as_they_were(
    tiny_sd3: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from diffusers.utils import logging

    assert logging.is_progress_bar_enabled()
    load_backbone(ModelSettings(str(tiny_sd3)))
    assert logging.is_progress_bar_enabled()
    captured = capfd.readouterr()
    assert "it/s" not in captured.err + captured.out
    assert "deprecated" not in captured.err


def test_the_generated_pipeline_is_a_function_of_its_seed(tiny_sd3: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "again")
    for path in tiny_sd3.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(tiny_sd3)).read_bytes() == path.read_bytes(), path
    size = sum(path.stat().st_size for path in again.rglob("*") if path.is_file())
    assert size < 6e6
    with pytest.raises(ValueError, match="holds other files"):
        make(Path(load.__file__).parent)


def test_medium_has_the_size_of_stable_diffusion_3_5_medium() -> None:
    from backbones.sd3_shapes import MEDIUM, parts

    made = parts(MEDIUM)
    count = {name: sum(p.numel() for p in made[name]().parameters()) for name in ("transformer", "vae")}
    # 2.24 B: the published checkpoint has 2.47 B values, of which 0.23 B are the table of positions, a buffer here.
    assert count == {"transformer": 2243171520, "vae": 83819683}
