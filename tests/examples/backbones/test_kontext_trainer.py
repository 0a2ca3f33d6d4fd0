"""Training on sources of several aspect ratios: epochs with several latent shapes."""

import json
from math import isfinite
from pathlib import Path

import pytest
import torch
from kontext_cases import picture

import make_edits
from backbones.flux_kontext import FluxKontextBackbone
from backbones.interface import repeat
from backbones.load import load_backbone
from prompts.prompt import Prompt
from prompts.sources import SourceSettings, load_prompts
from rewards.registry import FACTORIES
from rewards.scorer import Scorer
from trainer.buckets import by_shape, check_model, check_shapes
from trainer.config import Config, load_config
from trainer.evaluation import evaluate
from trainer.forecast import forecast
from trainer.rollout import roll_out
from trainer.trainer import Trainer

OPTIONS = (
    "method=marble", "rollout.prompts=4", "rollout.images=2", "rollout.steps=2", "rollout.batch=3", "loss.timesteps=1",
    "optimizer.micro_batch=3", "evaluation.prompts=2", "evaluation.shown=1", "lora.rank=2", "model.max_tokens=12",
)  # fmt: skip


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve edits with sources of two aspect ratios."""
    folder = tmp_path_factory.mktemp("edits")
    lines = []
    for number in range(12):
        path = picture(folder, *((64, 64), (96, 48))[number % 2], number)
        lines.append(json.dumps({"prompt": f"edit {number}", "image": Path(path).name}))
    (folder / "edits.jsonl").write_text("\n".join(lines))
    return folder / "edits.jsonl"


def config_of(folder: Path, edits: Path, path: Path, *options: str) -> Config:
    path.write_text(f"sources: {{edits: {{path: {edits}}}}}\nrewards: {{colour: {{}}, contrast: {{}}}}\n")
    return load_config(str(path), [f"model.name={folder}", *OPTIONS, *options])


def trainer_of(config: Config) -> Trainer:
    return Trainer(config, load_backbone(config.model), Scorer(config.rewards))


def test_an_epoch_with_two_shapes_trains_and_evaluates(tiny_kontext: Path, edits: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config_of(tiny_kontext, edits, tmp_path / "run.yaml"))
    evaluation = evaluate(
        trainer.backbone, trainer.adapters, None, trainer.scorer, trainer.test_prompts, trainer.config
    )
    trainer.record(evaluation)
    parameters = trainer.adapters.parameters("default")
    before = {name: weight.detach().clone() for name, weight in parameters.items()}
    numbers = trainer.train_epoch()
    assert all(isfinite(numbers[f"train/{name}"]) for name in ("colour", "contrast"))
    # LoRA's B starts at zero, and every one of them has a gradient.
    assert all(not torch.equal(weight, before[name]) for name, weight in parameters.items() if "lora_B" in name)
    assert trainer.optimizer.report is not None
    assert "forwards F per image" in forecast(trainer)


def test_a_rollout_of_both_shapes_equals_one_of_each(tiny_kontext: Path, edits: Path, tmp_path: Path) -> None:
    config = config_of(tiny_kontext, edits, tmp_path / "run.yaml", "rollout.batch=1")
    trainer = trainer_of(config)
    backbone = trainer.backbone
    some = [trainer.train_prompts["edits"][i] for i in (0, 1, 2, 4)]
    rollout = roll_out(backbone, trainer.adapters, "old", trainer.scorer, some, config, 0)
    parts = by_shape(backbone, some, range(4))
    assert len(rollout.buckets) == len(parts) == 2
    assert [bucket.x_0.shape[1:] for bucket in rollout.buckets] == [
        backbone.latent_shape_of(some[part[0]]) for part in parts
    ]
    for part, bucket in zip(parts, rollout.buckets, strict=True):
        # The same prompts in the same places, the others put where they make samples of the one shape too.
        alone = [some[i] if i in part else some[part[0]] for i in range(4)]
        single = roll_out(backbone, trainer.adapters, "old", trainer.scorer, alone, config, 0)
        assert len(single.buckets) == 1
        own = torch.tensor([i for i, (prompt, _) in enumerate(rollout.samples) if prompt in part])
        assert torch.equal(own, bucket.members)
        torch.testing.assert_close(single.take(own)[0], bucket.x_0, rtol=0, atol=1e-5)
        torch.testing.assert_close(single.scores[:, own], rollout.scores[:, own], rtol=0, atol=1e-5)
        for name, tensor in bucket.take(own)[1].items():
            torch.testing.assert_close(single.take(own)[1][name], tensor, rtol=0, atol=1e-5)


def test_the_empty_prompt_of_crds_reference_is_encoded_once(
    tiny_kontext: Path, edits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every micro-step contrasts with it, and so do the rollouts; what they get is views of one row."""
    options = ("algorithm=crd", "crd.anchor.guidance=2.0", "rollout.guidance=1.5")
    trainer = trainer_of(config_of(tiny_kontext, edits, tmp_path / "run.yaml", *options))
    backbone = trainer.backbone
    assert isinstance(backbone, FluxKontextBackbone)
    cache, unconditional = backbone.cache, backbone.unconditional
    encoded: list[list[str]] = []
    given: list[dict[str, torch.Tensor]] = []

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        encoded.append(texts)
        return cache(texts)

    def contrast(conditioning: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given.append(unconditional(conditioning))
        assert torch.equal(given[-1]["source"], conditioning["source"])
        return given[-1]

    monkeypatch.setattr(backbone, "cache", encode)
    monkeypatch.setattr(backbone, "unconditional", contrast)
    trainer.train_epoch()
    assert len(given) == 8, "four parts of the rollout, four micro-steps"
    assert encoded.count([""]) == 1
    assert {each["sequence"].data_ptr() for each in given} == {backbone.empty["sequence"].data_ptr()}


def test_a_batch_equals_its_samples_one_by_one(tiny_kontext: Path, edits: Path, tmp_path: Path) -> None:
    backbone = load_backbone(config_of(tiny_kontext, edits, tmp_path / "run.yaml").model)
    prompt = load_prompts("edits", SourceSettings(str(edits)), False)[0]
    conditioning, x = backbone.encode([prompt]), torch.randn(3, *backbone.latent_shape_of(prompt))
    t = torch.rand(3)
    together = backbone.velocity(x, t, repeat(conditioning, 3))
    alone = torch.cat([backbone.velocity(x[i : i + 1], t[i : i + 1], conditioning) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sharded", "probe", "message"), [(True, 0.0, "fsdp2 takes one, use parallel=ddp"), (False, 0.5, "set it to 0")]
)
def test_what_needs_one_shape_refuses_two(
    tiny_kontext: Path, edits: Path, tmp_path: Path, sharded: bool, probe: float, message: str
) -> None:
    backbone = load_backbone(config_of(tiny_kontext, edits, tmp_path / "run.yaml").model)
    some = load_prompts("edits", SourceSettings(str(edits)), False)
    with pytest.raises(ValueError, match=rf"2 latent shapes, \[\(16, 6, 12\), \(16, 8, 8\)\].*{message}"):
        check_shapes(backbone, some, sharded, probe)
    check_shapes(backbone, some, False, 0.0)
    check_shapes(backbone, [some[0]] * 2, sharded, probe)


@pytest.mark.usefixtures("no_weights")
def test_what_a_run_cannot_serve_is_said_before_weights_are_loaded(
    tiny_kontext: Path, edits: Path, tmp_path: Path
) -> None:
    def check(facts: dict, *options: str) -> None:
        config = config_of(tiny_kontext, edits, tmp_path / "run.yaml", *options)
        some = load_prompts("edits", config.sources["edits"], False)
        check_model(config, [*some, Prompt("edit it", "edits", facts)], "cpu")

    good = picture(tmp_path)
    check({"image": good, "mask": good})
    with pytest.raises(ValueError, match="the prompt 'edit it' has no source image"):
        check({})
    with pytest.raises(ValueError, match="10 x 10 pixels are too few"):
        check({"image": picture(tmp_path, 10, 10)})
    with pytest.raises(ValueError, match=r"edits\.jsonl cannot be read as a picture"):
        check({"image": good, "mask": str(edits)})
    with pytest.raises(ValueError, match=r"multiple of 16 for this model, got 40"):
        check({"image": good}, "model.resolution=40")
    with pytest.raises(ValueError, match=r"2 latent shapes.*set it to 0"):
        check({"image": good}, "balance.probe=0.5")


def test_the_dry_runs_edits_load_in_several_shapes(tiny_kontext: Path, tmp_path: Path) -> None:
    path = make_edits.make(tmp_path / "edits", count=10)
    some = load_prompts("edits", SourceSettings(str(path)), False) + load_prompts(
        "edits", SourceSettings(str(path)), True
    )
    assert len(some) == 10
    assert {*some[0].metadata} == {"image", "mask", "source_caption", "target_caption"}
    backbone = load_backbone(config_of(tiny_kontext, path, tmp_path / "run.yaml").model)
    assert len({backbone.latent_shape_of(prompt) for prompt in some}) >= 4
    again = make_edits.make(tmp_path / "again", count=10).parent
    assert all((again / file.name).read_bytes() == file.read_bytes() for file in path.parent.iterdir())
    with pytest.raises(ValueError, match="2 pictures or more"):
        make_edits.make(tmp_path / "one", count=1)


@pytest.mark.parametrize("preset", ["kontext_edit", "kontext_dry", "slider_kontext"])
def test_the_presets_are_valid(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("source_preservation", "edit_adherence"):
        monkeypatch.setitem(FACTORIES, name, FACTORIES.get(name, "rewards.tiny_world:colour"))
    config = load_config(preset)
    assert config.rollout.guidance == 1
    assert config.balance.probe == 0
    assert {"source_preservation", "edit_adherence"} <= {*config.rewards}
