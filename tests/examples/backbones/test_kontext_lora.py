"""LoRA on the Flux Kontext backbone: which modules, their gradients, and what is saved."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxKontextPipeline
from kontext_cases import TOKENS, load, noise, prompts
from peft import LoraConfig
from PIL import Image

from backbones.flux_kontext import FluxKontextBackbone
from backbones.flux_tokens import pack
from backbones.preferred import PreferredBackbone, preferring
from factored_cases import compare_blocks, trained
from factored_cases import loop as one_by_one
from marble_opt import SeparableLoss, losses
from marble_opt.per_sample.engine import RowEngine


def adapted(folder: Path, fused: bool = False, **options: object) -> FluxKontextBackbone:
    """With an adapter that changes the output: neither of LoRA's matrices is zero."""
    backbone = load(folder, **options)
    if fused:
        backbone.transformer.fuse_qkv_projections()
    # α / r = 3: a loader that ignores α would take 1.
    config = LoraConfig(r=2, lora_alpha=6, target_modules=list(backbone.lora_targets), init_lora_weights=False)
    backbone.transformer.add_adapter(config)
    for name, weight in backbone.transformer.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    return backbone


def with_lora(backbone: FluxKontextBackbone) -> set[str]:
    return {name.split(".lora_A")[0] for name, _ in backbone.transformer.named_modules() if name.endswith(".lora_A")}


def test_targets_are_the_attention_of_double_and_single_blocks(tiny_kontext: Path) -> None:
    names = with_lora(adapted(tiny_kontext))
    assert len([name for name in names if name.startswith("transformer_blocks.")]) == 2 * 8
    assert len([name for name in names if name.startswith("single_transformer_blocks.")]) == 2 * 3
    assert all(".attn." in name for name in names)


def test_targets_of_a_fused_transformer_are_the_fused_projections(tiny_kontext: Path, tmp_path: Path) -> None:
    backbone = adapted(tiny_kontext, fused=True)
    names = with_lora(backbone)
    assert len([name for name in names if name.endswith(("to_qkv", "to_added_qkv"))]) == 2 * 2 + 2
    assert len(names) == 2 * 4 + 2
    some = prompts(tmp_path)
    v = backbone.velocity(noise(backbone, some), torch.full((3,), 0.5), backbone.encode(some))
    gradients = torch.autograd.grad(v.square().sum(), trained(backbone.transformer), allow_unused=True)
    assert all(gradient is not None and gradient.any() for gradient in gradients), "each adapter is in the forward"


def prediction_loss(backbone: FluxKontextBackbone, tmp_path: Path) -> SeparableLoss:
    some = prompts(tmp_path, 96, 60)
    random = torch.Generator().manual_seed(0)
    epsilon = noise(backbone, some)
    x_0, old = (torch.randn(epsilon.shape, generator=random) for _ in range(2))
    t = torch.tensor([0.2, 0.5, 0.9])
    x_t = (1 - t.view(-1, 1, 1, 1)) * x_0 + t.view(-1, 1, 1, 1) * epsilon
    advantages = torch.randn(3, len(some), generator=random)
    advantages[2, 1] = torch.nan
    v = backbone.velocity(x_t, t, backbone.encode(some))
    return losses.diffusion_nft(v, old, x_t, x_0, t, advantages, beta=0.5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_factored_gradients_equal_one_backward_per_reward(
    tiny_kontext: Path, tmp_path: Path, checkpointing: bool
) -> None:
    backbone = adapted(tiny_kontext, checkpointing=checkpointing)
    parameters = trained(backbone.transformer)
    engine = RowEngine(backbone.transformer, 3)
    loss = prediction_loss(backbone, tmp_path)
    expected = one_by_one(loss, parameters)
    assert all(block.any() for block in expected.values())
    compare_blocks(engine.gradients(loss, parameters, retain_graph=True), expected, tolerance=1e-5)


def test_a_plain_pipeline_loads_what_is_saved(tiny_kontext: Path, tmp_path: Path) -> None:
    """The same images as the backbone makes with that adapter, α included, and others than the base model's."""
    backbone = adapted(tiny_kontext, guidance=2.0)
    backbone.save_lora(tmp_path, "default")
    some = prompts(tmp_path)
    start = noise(backbone, some)
    images = backbone.decode(backbone.sample(backbone.encode(some), start, 2))

    pipeline = FluxKontextPipeline.from_pretrained(tiny_kontext)
    pipeline.set_progress_bar_config(disable=True)

    def call() -> torch.Tensor:
        return pipeline(
            image=[Image.open(prompt.metadata["image"]) for prompt in some], prompt=[prompt.text for prompt in some],
            latents=pack(start), height=64, width=64, max_area=64**2, num_inference_steps=2, guidance_scale=2.0,
            output_type="pt", max_sequence_length=TOKENS, _auto_resize=False,
        ).images  # fmt: skip

    assert (call() - images).abs().mean() > 0.02
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(call(), images, rtol=0, atol=1e-5)
    assert next(iter(pipeline.transformer.peft_config.values())).lora_alpha == 6
    with pytest.raises(ValueError, match="no adapter 'old', only default"):
        backbone.save_lora(tmp_path, "old")


def test_guidance_with_a_preference_keeps_source_and_preference(tiny_kontext: Path, tmp_path: Path) -> None:
    backbone, some = load(tiny_kontext), prompts(tmp_path)
    preferred = PreferredBackbone(backbone, 2, lambda: None, lambda adapter: 1 / 0)
    conditioning = preferred.encode([preferring(some[0], [0.9, 0.1]), *some[1:]])
    empty = preferred.unconditional(conditioning)
    assert all(torch.equal(empty[name], conditioning[name]) for name in ("source", "preference"))
    assert torch.equal(empty["pooled"], backbone.encode(some[1:2])["pooled"].expand(3, -1)), "the second text is empty"
    start = noise(backbone, some)
    expected = backbone.sample(backbone.encode(some), start, 2, guidance=3.0)
    assert torch.equal(preferred.sample(conditioning, start, 2, guidance=3.0), expected)
