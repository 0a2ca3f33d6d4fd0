"""The check of backbones: it passes those that are here and the one of BACKBONES.md, and finds what is wrong."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from backbones.interface import Conditioning
from backbones.load import load_backbone
from backbones.settings import ModelSettings
from backbones.tiny import TinyBackbone
from backbones.tokenizers import t5_tokenizer
from check_backbone import CHECKS, check, main, read_settings
from prompts.prompt import Prompt

PAGE = Path(__file__).parents[3] / "examples" / "BACKBONES.md"
PROMPTS = [Prompt("two red circles"), Prompt("a blue sky over the sea"), Prompt("a green square")]


def test_the_tiny_model_passes() -> None:
    results = [*check(lambda: load_backbone(ModelSettings()), PROMPTS)]
    assert [name for name, _, right in results if right] == [each.__name__ for each in CHECKS]


@pytest.fixture(scope="module")
def aura(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small AuraFlow pipeline of random weights."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    for weight in transformer.parameters():
        torch.nn.init.normal_(weight, 0, 0.1)
    pipeline = AuraFlowPipeline(
        t5_tokenizer(512),
        UMT5EncoderModel(UMT5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
        AutoencoderKL(**sizes, **blocks, sample_size=16),
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    folder = tmp_path_factory.mktemp("aura") / "flow"
    pipeline.save_pretrained(folder)
    return folder


def test_the_backbone_of_the_page_passes_without_preferences(aura: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(code.splitlines()) < 40
    namespace: dict = {}
    exec(code, namespace)
    settings = ModelSettings(name=str(aura), max_tokens=16)
    results = [*check(lambda: namespace["AuraFlowBackbone"].from_pretrained(settings), PROMPTS)]
    assert [name for name, _, right in results if not right] == []
    found = {name: text for name, text, _ in results}
    assert "no preferences" in found["start"]
    assert "images [3, 16, 16], latents [4, 8, 8]" in found["images"]


class Broken(TinyBackbone):
    """The tiny model with a fault."""

    fault = ""

    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        v = super().velocity(x, t, conditioning)
        return v + 0.01 * v.mean(0, keepdim=True) if self.fault == "mixed" else v

    def decode(self, latents: Tensor) -> Tensor:
        return latents if self.fault == "range" else super().decode(latents)

    def save_lora(self, folder: Path, adapter: str, write: bool = True) -> None:
        with torch.no_grad():
            for name, weight in self.transformer.named_parameters():
                if self.fault == "saved" and "lora_B" in name:
                    weight.zero_()
        super().save_lora(folder, adapter, write)


@pytest.mark.parametrize(
    ("fault", "failing"),
    [("mixed", "velocity"), ("mixed", "gradients"), ("range", "images"), ("saved", "files"), ("targets", "start")],
)
def test_faults_are_found(fault: str, failing: str) -> None:
    def load() -> TinyBackbone:
        backbone = Broken.from_pretrained(ModelSettings())
        backbone.fault = fault
        if fault == "targets":
            backbone.lora_targets = ("attn.query",)
        return backbone

    results = SimpleNamespace(**{name: (right, text) for name, text, right in check(load, PROMPTS)})
    assert not getattr(results, failing)[0], getattr(results, failing)[1]
    assert results.start[0] == (fault != "targets")


def test_a_velocity_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object) -> Tensor:
        raise KeyError("mask")

    monkeypatch.setattr(TinyBackbone, "velocity", wrong)
    results = {name: (right, text) for name, text, right in check(lambda: load_backbone(ModelSettings()), PROMPTS)}
    assert not any(right for right, _ in results.values())
    assert all(text == "KeyError: 'mask'" for _, text in results.values())
    assert [*results] == [each.__name__ for each in CHECKS]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.foo=1", "error: model.foo=1: Key 'foo' not in 'ModelSettings'"),
        ("model.frames=many", "error: model.frames=many: Value 'many' of type 'str'"),
        ("model.frames=[", r"error: model.frames=\[: while parsing"),
        ("model.resolution=13", "error: model.resolution must be 0 or a positive multiple of 8"),
        ("rollout.steps=1", "error: settings are model.NAME=value, got 'rollout.steps=1'"),
        ("model.frames", "error: settings are model.NAME=value, got 'model.frames'"),
    ],
)
def test_wrong_settings_are_named(setting: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["check_backbone.py", setting])
    with pytest.raises(SystemExit, match=message):
        main()


def test_the_bare_word_no_is_a_precision() -> None:
    assert read_settings("tiny", ["model.precision=no", "model.frames=9"]) == ModelSettings(frames=9)
    with pytest.raises(ValueError, match=r"model\.precision must be no, bf16 or fp16, got 'True'"):
        read_settings("tiny", ["model.precision=yes"])
