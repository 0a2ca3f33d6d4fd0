"""LoRA on the LTX-2 backbone: which modules, their gradients, and what is saved."""

from pathlib import Path

import pytest
import torch
from ltx2_cases import PROMPTS, call, load, load_plain, noise
from peft import LoraConfig

from backbones.ltx2 import LTX2Backbone


def adapted(folder: Path, adapters: tuple[str, ...] = ("default",), **options: object) -> LTX2Backbone:
    torch.manual_seed(0)
    backbone = load(folder, **options)
    for name in adapters:
        # α / r = 3: a loader that ignores α would take 1.
        config = LoraConfig(r=2, lora_alpha=6, target_modules=list(backbone.lora_targets), init_lora_weights=False)
        backbone.transformer.add_adapter(config, adapter_name=name)
    backbone.transformer.set_adapter(adapters[0])
    for name, weight in backbone.transformer.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    return backbone


def gradients(backbone: LTX2Backbone) -> dict[str, torch.Tensor]:
    """Of the mean square of what is in the loss."""
    x, t = noise(backbone), torch.tensor([0.3, 0.8])
    backbone.trained(backbone.velocity(x, t, backbone.encode(PROMPTS))).square().mean().backward()
    return {
        name: weight.grad if weight.grad is not None else torch.zeros_like(weight)
        for name, weight in backbone.transformer.named_parameters()
        if weight.requires_grad
    }


@pytest.mark.parametrize(("audio", "kinds"), [("isolated", 2), ("frozen", 3), ("trained", 6)])
def test_adapters_are_on_the_streams_that_take_part(tiny_ltx2: Path, audio: str, kinds: int) -> None:
    backbone = adapted(tiny_ltx2, audio=audio)
    found = gradients(backbone)
    modules = {name.split(".lora_")[0] for name in found}
    assert len(modules) == 2 * 4 * kinds
    assert audio == "trained" or not any(".audio_attn" in name or ".video_to_audio" in name for name in modules)
    silent = [name for name, gradient in found.items() if not gradient.any()]
    assert not silent, "all of them are trained"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_checkpointing_changes_no_gradient(tiny_ltx2: Path, precision: str) -> None:
    plain, recomputed = (
        gradients(adapted(tiny_ltx2, checkpointing=checkpointing, precision=precision)) for checkpointing in (0, 1)
    )
    for name, gradient in plain.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("adapter", ["default", "average"])
def test_a_plain_pipeline_loads_what_is_saved(tiny_ltx2: Path, tmp_path: Path, adapter: str) -> None:
    """The same videos as the backbone makes with that adapter, α included, and others than the base model's."""
    backbone = adapted(tiny_ltx2, ("default", "average"), audio="trained")
    backbone.save_lora(tmp_path, adapter)
    backbone.transformer.set_adapter(adapter)
    start = noise(backbone)
    with torch.no_grad():
        videos = backbone.decode(backbone.sample(backbone.encode(PROMPTS), start, 3))
    pipeline = load_plain(tiny_ltx2)
    assert backbone.joint is not None
    parts = backbone.joint.split(start)
    assert (call(pipeline, *parts, output_type="pt")[0] - videos).abs().mean() > 0.02
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(call(pipeline, *parts, output_type="pt")[0], videos, rtol=0, atol=5e-4)
    assert next(iter(pipeline.transformer.peft_config.values())).lora_alpha == 6
