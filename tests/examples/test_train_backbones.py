"""`train.py --model FOLDER` end to end on the three kinds of pipelines, with each algorithm, on a CPU."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxKontextPipeline, LTX2Pipeline, StableDiffusion3Pipeline
from safetensors.torch import load_file
from trainer_cases import run_command

import make_edits
from backbones.interface import Backbone
from backbones.load import load_backbone
from backbones.preferred import load_preferred, preferring
from backbones.settings import ModelSettings
from make_pipeline import make
from prompts.prompt import Prompt
from prompts.sampler import noise
from prompts.sources import SourceSettings, load_prompts

PIPELINES = {"sd3": StableDiffusion3Pipeline, "kontext": FluxKontextPipeline, "ltx2": LTX2Pipeline}
MODEL = {"max_tokens": 16, "resolution": 64, "frames": 9}
CONFIG = """
epochs: 1
sources: {some: {path: "%s"}}
rewards: {colour: {}, contrast: {}}
lora: {rank: 2}
rollout: {prompts: 4, images: 2, steps: 2}
loss: {timesteps: 1, kl: 1.0e-4}
crd: {anchor: {guidance: 2.0}}
slider: {slots: 2, frequencies: 2}
optimizer: {name: adamw, lr: 1.0e-2, max_grad_norm: 1.0}
evaluation: {prompts: 2, every: 1, batch: 4, shown: 1}
"""
RUNS = [
    ("nft", "marble"),
    ("crd", "marble"),
    ("slider", "gdpo"),
    ("slider", "marble"),
]
SOAK = (("sd3", "nft", "marble"), ("sd3", "slider", "marble"), ("ltx2", "slider", "marble"))


COMBINATIONS = [
    pytest.param(chosen, marks=[pytest.mark.soak] if chosen in SOAK else [])
    for chosen in ((kind, *run) for kind in PIPELINES for run in RUNS)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline of each kind, and pictures to be edited."""
    place = tmp_path_factory.mktemp("models")
    return {kind: make(place / kind, kind) for kind in PIPELINES} | {"edits": make_edits.make(place / "edits")}


def source(kind: str, folders: dict[str, Path]) -> str:
    return str(folders["edits"]) if kind == "kontext" else "generated:general"


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def run(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """The kind, the algorithm and the finished run's folder."""
    kind, algorithm, method = request.param
    place = tmp_path_factory.mktemp("run")
    (place / "small.yaml").write_text(CONFIG % source(kind, folders))
    words = ["--config", str(place / "small.yaml"), "--model", str(folders[kind]), "--algorithm", algorithm]
    settings = [f"model.{name}={value}" for name, value in MODEL.items()]
    words += ["--balance", method, "--output", str(place), "--device", "cpu", *settings]
    run_command(*words)
    return kind, algorithm, place / f"{method}-seed0"


def sample(backbone: Backbone, prompts: list[Prompt]) -> torch.Tensor:
    start = noise([1], backbone.latent_shape_of(prompts[0]))
    return backbone.decode(backbone.sample(backbone.encode(prompts), start, 2))


def test_a_run_trains_and_its_files_change_a_plain_pipelines_output(run: tuple, folders: dict[str, Path]) -> None:
    kind, algorithm, folder = run
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    [epoch] = [row for row in rows if "train/colour" in row]
    assert epoch["step"] == 1
    assert all(0 <= epoch[f"train/{name}"] <= 1 for name in ("colour", "contrast"))
    assert sorted(path.name for path in (folder / "grids").iterdir()) == ["epoch-0000.png", "epoch-0001.png"]

    settings = ModelSettings(str(folders[kind]), **MODEL)
    prompts = load_prompts("some", SourceSettings(source(kind, folders)), held_out=True)[:1]
    before, plain = sample(load_backbone(settings), prompts), load_backbone(settings)
    plain.pipeline.load_lora_weights(str(folder / "lora"))
    assert type(plain.pipeline) is PIPELINES[kind]
    changed = sample(plain, prompts)
    assert not torch.equal(changed, before)
    if algorithm == "slider":
        ends = [
            sample(load_preferred(load_backbone(settings), folder / "lora"), [preferring(prompts[0], omega)])
            for omega in ([1.0, 0.0], [0.0, 1.0])
        ]
        assert not torch.equal(*ends)
        assert not any(torch.equal(end, changed) for end in ends)
    else:
        assert not (folder / "lora" / "preference_conditioning.safetensors").exists()
    weights = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
