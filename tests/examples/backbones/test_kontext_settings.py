"""Settings and folders that the Flux Kontext backbone cannot serve, schedulers, and the random pipelines."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from kontext_cases import load

from backbones import saved_pipeline
from backbones.flux_shapes import FULL, parts
from backbones.load import read_plan
from backbones.settings import ModelSettings
from backbones.solvers import Schedule
from make_pipeline import make


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 40}, "multiple of 16 for this model, got 40: use 32 or 48"),
        ({"precision": "fp16"}, "needs a GPU: on a CPU use bf16 or no"),
    ],
)
def test_bad_settings_are_refused(tiny_kontext: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tiny_kontext, **options)


@pytest.mark.parametrize("resolution", [0, 32, 128])
def test_the_resolution_is_the_side_of_a_square(tiny_kontext: Path, resolution: int) -> None:
    backbone = load(tiny_kontext, resolution=resolution)
    side = (resolution or 64) // 8
    assert backbone.latent_shape == (16, side, side)
    assert backbone.tokens == 2 * (side // 2) ** 2


def test_checkpointing_and_encoders_follow_the_settings(tiny_kontext: Path) -> None:
    assert not load(tiny_kontext).transformer.is_gradient_checkpointing
    assert load(tiny_kontext, checkpointing=True, offload_text_encoders=False).transformer.is_gradient_checkpointing


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("part", ["transformer", "scheduler", "text_encoder_2", "tokenizer"])
def test_a_folder_that_lacks_a_part_is_refused_by_name(tiny_kontext: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(tiny_kontext, tmp_path / "kontext")
    shutil.rmtree(tmp_path / "kontext" / part)
    with pytest.raises(ValueError, match=rf"lacks {part}: save the whole pipeline"):
        load(tmp_path / "kontext")


@pytest.mark.usefixtures("no_weights")
def test_a_pipeline_saved_without_a_part_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "kontext", "kontext", left_out=("text_encoder_2",))
    with pytest.raises(ValueError, match="lacks text_encoder_2: "):
        load(folder)


def changed(source: Path, folder: Path, part: str, name: str = "config.json", **values: Any) -> Path:
    """A copy of the pipeline with other values in a part's config."""
    shutil.copytree(source, folder)
    path = folder / part / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def scheduled(source: Path, folder: Path, **values: Any) -> Path:
    return changed(source, folder, "scheduler", "scheduler_config.json", **values)


def test_the_shift_grows_with_the_square(tiny_kontext: Path) -> None:
    """μ is 0.5 at 256 tokens and 1.15 at 4096, and linear."""
    for resolution, tokens in ((0, 16), (256, 256), (1024, 4096)):
        mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
        schedule = load(tiny_kontext, resolution=resolution).schedule
        assert schedule.shift == pytest.approx(math.exp(mu))
        assert (schedule.whole, schedule.terminal) == (True, None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"use_dynamic_shifting": False, "shift": 2.5}, Schedule(2.5, True, None)),
        ({"use_dynamic_shifting": False, "shift": 2.5, "shift_terminal": 0.1}, Schedule(2.5, True, 0.1)),
        (
            {"time_shift_type": "linear", "base_shift": 1.5, "max_shift": 1.5},
            Schedule(1.5, True, None),
        ),
    ],
)
def test_other_shifts_are_those_of_the_scheduler(
    tiny_kontext: Path, tmp_path: Path, values: dict, expected: Schedule
) -> None:
    backbone = load(scheduled(tiny_kontext, tmp_path / "kontext", **values))
    assert backbone.schedule == expected
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "kontext" / "scheduler")
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.5)
    torch.testing.assert_close(backbone.times(4, "euler"), scheduler.sigmas[:-1], rtol=0, atol=1e-6)


def test_what_a_configuration_leaves_out_is_as_its_class_has_it(tiny_kontext: Path, tmp_path: Path) -> None:
    folder = scheduled(tiny_kontext, tmp_path / "kontext", use_dynamic_shifting=True)
    path = folder / "scheduler" / "scheduler_config.json"
    left_out = ("shift_terminal", "time_shift_type", "base_shift", "use_beta_sigmas", "stochastic_sampling")
    path.write_text(json.dumps({key: v for key, v in json.loads(path.read_text()).items() if key not in left_out}))
    assert read_plan(ModelSettings(str(folder))) == load(folder).plan == load(tiny_kontext).plan


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("option", ["use_karras_sigmas", "stochastic_sampling"])
def test_schedulers_of_another_kind_are_refused(tiny_kontext: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(ValueError, match=rf"EulerDiscreteScheduler with {option} has times.*use_dynamic_shifting=True"):
        load(scheduled(tiny_kontext, tmp_path / "kontext", **{option: True}))


@pytest.mark.usefixtures("no_weights")
def test_another_scheduler_is_refused(tiny_kontext: Path, tmp_path: Path) -> None:
    folder = scheduled(tiny_kontext, tmp_path / "kontext", _class_name="DDIMScheduler")
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scheduler": ["diffusers", "DDIMScheduler"]}))
    with pytest.raises(ValueError, match="DDIMScheduler has times that are not known here"):
        load(folder)


def test_parts_that_do_not_fit_are_refused(tiny_kontext: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(tiny_kontext).pipeline
    pipeline.transformer = type(pipeline.transformer)(
        in_channels=96, out_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=40, pooled_projection_dim=24, guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipeline.save_pretrained(tmp_path / "fill")
    monkeypatch.setattr(saved_pipeline, "load_frozen", None)
    with pytest.raises(ValueError, match="takes 96 channels, and 2 x 2 patches of its VAE's 16 have 64"):
        load(tmp_path / "fill")


def test_the_generated_pipeline_is_a_function_of_its_seed(tiny_kontext: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "again", "kontext")
    for path in tiny_kontext.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(tiny_kontext)).read_bytes() == path.read_bytes(), path
    assert sum(path.stat().st_size for path in again.rglob("*") if path.is_file()) < 3e6


def test_full_has_the_size_of_flux_kontext() -> None:
    made = parts(FULL)
    count = {name: sum(p.numel() for p in made[name]().parameters()) for name in ("transformer", "vae")}
    assert count == {"transformer": 11901408320, "vae": 83819683}
