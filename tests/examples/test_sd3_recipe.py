"""The five-reward recipe end to end on a small SD3 pipeline: the config, code and file formats of the real one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from trainer_cases import run_command

import make_pipeline
import make_rewards
from backbones.load import load_backbone
from rewards.open_clip_weights import load_open_clip
from trainer import checkpoint
from trainer.config import load_config

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "train.py"
REWARDS = ("pickscore", "hpsv2", "clipscore", "ocr", "geneval")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the preset's relative paths lead to a pipeline and to reward models."""
    folder = tmp_path_factory.mktemp("recipe")
    make_pipeline.make(folder / "runs" / "tiny-sd3")
    make_rewards.make(folder / "runs" / "tiny-rewards")
    return folder


def train(work: Path, output: str, *options: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        return run_command("--config", "tiny_sd3", "--output", output, *options)


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    """Two epochs; frozen weights in bf16, as on a GPU."""
    printed = train(work, "out", "model.precision=bf16")
    assert "2 epochs, 6 held-out images" in printed
    return work / "out" / "marble-seed0"


def test_all_rewards_are_trained_on(trained: Path) -> None:
    check_rows(trained)


@pytest.mark.soak
def test_two_ranks_train_and_one_goes_on(work: Path) -> None:
    options = ("--config", "tiny_sd3", "--output", "ranks", "epochs=1", "model.precision=bf16")
    result = subprocess.run([*TORCHRUN, str(SCRIPT), *options], cwd=work, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    train(work, "ranks", "model.precision=bf16", "--resume")
    check_rows(work / "ranks" / "marble-seed0")


def check_rows(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if "train/ocr" in row]
    assert [row["step"] for row in epochs] == [2, 4]
    assert all(isinstance(row[f"train/{name}"], float) for row in epochs for name in REWARDS)
    heldout = next(row for row in rows if "heldout/composite" in row)
    assert all(isinstance(heldout[f"heldout/{name}"], float) for name in REWARDS)


def test_the_lora_loads_into_a_plain_pipeline_and_changes_the_image(trained: Path, work: Path) -> None:
    def image(lora: Path | None) -> torch.Tensor:
        pipeline = StableDiffusion3Pipeline.from_pretrained(work / "runs" / "tiny-sd3")
        pipeline.set_progress_bar_config(disable=True)
        if lora is not None:
            pipeline.load_lora_weights(lora)
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 3, "guidance_scale": 1.0, "generator": generator, "output_type": "pt"}
        return pipeline("a red fox", **options).images

    base, tuned = image(None), image(trained / "lora")
    assert torch.isfinite(tuned).all()
    assert (base - tuned).abs().max() > 1e-4


def test_the_saved_lora_is_the_average_of_the_checkpoint(trained: Path, work: Path) -> None:
    state = checkpoint.load(trained)
    assert state is not None
    backbone = load_backbone(load_config("tiny_sd3", [f"model.name={work / 'runs' / 'tiny-sd3'}"]).model)
    backbone.pipeline.load_lora_weights(trained / "lora", adapter_name="saved")
    loaded = {
        name.replace(".saved.", "."): weight
        for name, weight in backbone.transformer.named_parameters()
        if ".lora_" in name
    }
    assert loaded.keys() == state["adapters"]["average"].keys()
    assert all(torch.equal(weight, state["adapters"]["average"][name]) for name, weight in loaded.items())
    assert backbone.transformer.peft_config["saved"].lora_alpha == 8


@pytest.mark.soak
def test_a_run_whose_reward_is_missing_says_how_to_get_it(work: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--config", "tiny_sd3", "--output", "missing"]
    wrong = "rewards.clipscore.options.model=runs/nothing"
    result = subprocess.run(
        [*command, wrong],
        cwd=work,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 1
    assert (
        "error: reward clipscore: its weights cannot be loaded with options {'model': 'runs/nothing'}" in result.stderr
    )
    assert "Traceback" not in result.stderr


def test_the_made_hps_checkpoint_holds_the_clip_beside_it(work: Path) -> None:
    from transformers import CLIPModel

    folder = work / "runs" / "tiny-rewards"
    ours = load_open_clip(folder / "hps.pt", str(folder / "clip")).state_dict()
    theirs = CLIPModel.from_pretrained(folder / "clip").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
