"""Settings, prompts and folders that the LTX-2 backbone cannot serve are refused with what to do."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKLLTX2Video, LTX2Pipeline
from ltx2_cases import load, load_plain

from backbones.load import read_plan
from backbones.ltx2 import LTX2Backbone
from backbones.ltx2_latents import Grid
from backbones.ltx2_plan import LTX2Plan, grid_of, lora_targets
from backbones.ltx2_shapes import TINY, VIDEO_VAE
from backbones.plan import Part
from backbones.random_networks import on_meta
from backbones.settings import ModelSettings
from prompts.prompt import Prompt


@pytest.fixture(scope="module")
def backbone(tiny_ltx2: Path) -> LTX2Backbone:
    return load(tiny_ltx2)


def changed(folder: Path, target: Path, part: str, **values: Any) -> Path:
    """A copy of the pipeline in which the configuration of a part has other values."""
    shutil.copytree(folder, target)
    path = target / part
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return target


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 24}, "model.frames = 24: take 17 or 25"),
        ({"frames": 8}, "model.frames = 8: take 1 or 9"),
        ({"resolution": 72}, "model.resolution = 72: take 64 or 96"),
        ({"resolution": 32}, "model.resolution = 32: take 64"),
        ({"max_tokens": 20}, "model.max_tokens = 20: its connectors need multiples of 8, take 16 or 24"),
        ({"max_tokens": 1032}, "at most 1024"),
        ({"precision": "fp16"}, "needs a GPU: on a CPU use bf16 or no"),
    ],
)
def test_bad_settings_are_refused(tiny_ltx2: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tiny_ltx2, **options)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"video_frames": 10}, "the prompt 'a horse' has video_frames = 10: take 9 or 17"),
        ({"video_frames": "9"}, "the prompt 'a horse' has video_frames = '9': take a whole number"),
        ({"video_size": [64, 70]}, r"the prompt 'a horse' has video_size \[64, 70\], a side = 70: take 64 or 96"),
        ({"video_size": [64]}, r"the prompt 'a horse' has video_size = \[64\]: give \[width, height\] in pixels"),
        ({"video_size": 64}, r"the prompt 'a horse' has video_size = 64: give \[width, height\] in pixels"),
        ({"video_size": "64x64"}, "video_size = '64x64': give"),
    ],
)
def test_bad_sizes_of_a_prompt_are_refused_by_its_name(backbone: LTX2Backbone, metadata: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone.latent_shape_of(Prompt("a horse", metadata=metadata))


def test_with_sound_all_videos_have_one_size(tiny_ltx2: Path) -> None:
    joint = load(tiny_ltx2, audio="frozen")
    same = Prompt("a horse", metadata={"video_frames": 9, "video_size": [64, 64]})
    assert joint.latent_shape_of(same) == joint.latent_shape
    with pytest.raises(ValueError, match=r"model\.audio=frozen cannot serve: set model\.audio=isolated"):
        joint.latent_shape_of(Prompt("a horse", metadata={"video_frames": 17}))


@pytest.mark.usefixtures("no_weights")
def test_a_video_too_short_for_any_sound_is_refused(tiny_ltx2: Path) -> None:
    settings = ModelSettings(str(tiny_ltx2), resolution=64, max_tokens=16, audio="frozen", frames=1, frame_rate=60.0)
    with pytest.raises(ValueError, match=r"model\.frames = 1 at model\.frame_rate = 60 are too short .*=isolated"):
        read_plan(settings)
    plan = read_plan(replace(settings, audio="isolated"))
    assert isinstance(plan, LTX2Plan)
    assert plan.joint is None
    assert plan.grid == Grid(channels=8, space=32, time=8, least=2)


def test_facts_of_a_data_set_are_no_commands(backbone: LTX2Backbone) -> None:
    assert backbone.latent_shape_of(Prompt("", metadata={"frames": 7, "size": "large"})) == backbone.latent_shape


def test_the_default_is_a_square_of_512_pixels(tiny_ltx2: Path) -> None:
    assert load(tiny_ltx2, resolution=0, frames=25).latent_shape == (8, 4, 16, 16)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("part", ["transformer", "audio_vae", "connectors", "tokenizer"])
def test_a_folder_that_lacks_a_part_is_refused_by_name(tiny_ltx2: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(tiny_ltx2, tmp_path / "ltx2")
    shutil.rmtree(tmp_path / "ltx2" / part)
    with pytest.raises(ValueError, match=rf"lacks {part}: save the whole pipeline"):
        load(tmp_path / "ltx2")


def test_ratios_that_no_configuration_gives_are_the_vaes_own() -> None:
    spec = {name: value for name, value in VIDEO_VAE.items() if "ratio" not in name}
    vae = on_meta(lambda: AutoencoderKLLTX2Video(**spec, **TINY["vae"], spatio_temporal_scaling=(True,) * 3 + (False,)))
    parts = {"vae": Part(type(vae), vae.config), "transformer": Part(object, {"in_channels": 8})}
    grid = grid_of(parts)
    assert (grid.space, grid.time) == (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (32, 8)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("values", [{"time_shift_type": "linear"}, {"use_karras_sigmas": True}, {"shift": None}])
def test_times_of_another_kind_are_refused(tiny_ltx2: Path, tmp_path: Path, values: dict) -> None:
    folder = changed(tiny_ltx2, tmp_path / "ltx2", "scheduler/scheduler_config.json", **values)
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler with use_dynamic_shifting=True"):
        load(folder)


def test_a_scheduler_with_a_fixed_shift_is_taken_as_it_is(tiny_ltx2: Path, tmp_path: Path) -> None:
    values = {"use_dynamic_shifting": False, "shift": 2.0, "shift_terminal": None}
    backbone = load(changed(tiny_ltx2, tmp_path / "ltx2", "scheduler/scheduler_config.json", **values))
    scheduler = backbone.pipeline.scheduler
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert backbone.times(2, "euler").tolist() == pytest.approx(scheduler.sigmas[:-1].tolist())
    assert backbone.schedule.terminal is None


def test_parts_of_another_kind_are_refused(tiny_ltx2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load_plain(tiny_ltx2)
    monkeypatch.setattr(LTX2Pipeline, "from_pretrained", lambda *args, **kwargs: pipeline)
    pipeline.vae.register_to_config(timestep_conditioning=True)
    with pytest.raises(ValueError, match="decodes with a time of its own"):
        load(tiny_ltx2)
    pipeline.transformer.register_to_config(patch_size=2)
    with pytest.raises(ValueError, match="patches of 2: only one latent per token"):
        load(tiny_ltx2)


def test_parts_that_do_not_fit_are_refused(tiny_ltx2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load_plain(tiny_ltx2)
    monkeypatch.setattr(LTX2Pipeline, "from_pretrained", lambda *args, **kwargs: pipeline)
    pipeline.audio_vae.register_to_config(latent_channels=4)
    with pytest.raises(ValueError, match="takes 8 audio channels, and the latents of the audio VAE have 16: the two"):
        load(tiny_ltx2)
    pipeline.vae.register_to_config(latent_channels=16)
    with pytest.raises(ValueError, match="takes 8 channels, and the latents of the VAE have 16: the two do not belong"):
        load(tiny_ltx2)


def test_targets_of_each_mode() -> None:
    isolated, frozen, trained = (lora_targets(audio) for audio in ("isolated", "frozen", "trained"))
    assert len(isolated) == 8
    assert {*frozen} - {*isolated} == {f"audio_to_video_attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    assert {*frozen} < {*trained}
    assert len(trained) == 24
