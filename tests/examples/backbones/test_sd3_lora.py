"""LoRA on the SD3 backbone: which modules, their gradients, and what is saved."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig

from backbones.load import load_backbone
from backbones.sd3 import SD3Backbone
from backbones.settings import ModelSettings
from factored_cases import compare_blocks, loop, trained
from marble_opt import SeparableLoss, losses
from marble_opt.per_sample.engine import RowEngine
from prompts.prompt import Prompt

PROMPTS = [Prompt("two red circles"), Prompt("a green field"), Prompt("the word SUN")]


def adapted(folder: Path, adapters: tuple[str, ...] = ("default",), **options: object) -> SD3Backbone:
    """With adapters that change the output: neither of LoRA's matrices is zero."""
    backbone = load_backbone(ModelSettings(str(folder), max_tokens=16, **options))
    for name in adapters:
        # α / r = 3: a loader that ignores α would take 1.
        config = LoraConfig(r=2, lora_alpha=6, target_modules=list(backbone.lora_targets), init_lora_weights=False)
        backbone.transformer.add_adapter(config, adapter_name=name)
    backbone.transformer.set_adapter(adapters[0])
    for name, weight in backbone.transformer.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    return backbone


def test_targets_are_the_joint_attention_of_every_block_and_not_the_second_one(tiny_sd3: Path) -> None:
    backbone = adapted(tiny_sd3)
    modules = {name for name, _ in backbone.transformer.named_modules()}
    assert any(".attn2.to_q" in name for name in modules), "the model has dual attention"
    with_lora = {name.split(".lora_A")[0] for name in modules if name.endswith(".lora_A")}
    # The last block has no output for the text stream.
    assert len(with_lora) == 3 * 8 - 1
    assert all(".attn." in name for name in with_lora)


def prediction_loss(backbone: SD3Backbone) -> SeparableLoss:
    random = torch.Generator().manual_seed(0)
    shape = (len(PROMPTS), *backbone.latent_shape)
    x_0, noise = torch.randn(shape, generator=random), torch.randn(shape, generator=random)
    t = torch.tensor([0.2, 0.5, 0.9])
    x_t = (1 - t.view(-1, 1, 1, 1)) * x_0 + t.view(-1, 1, 1, 1) * noise
    conditioning = backbone.encode(PROMPTS)
    old = torch.randn(shape, generator=random)
    advantages = torch.randn(5, len(PROMPTS), generator=random)
    advantages[4, 1] = torch.nan
    return losses.diffusion_nft(backbone.velocity(x_t, t, conditioning), old, x_t, x_0, t, advantages, beta=0.5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-5), ("bf16", 0.03)])
def test_factored_gradients_equal_one_backward_per_reward(
    tiny_sd3: Path, checkpointing: bool, precision: str, tolerance: float
) -> None:
    """Under bf16 the two differ by the rounding of what autocast keeps in half precision."""
    backbone = adapted(tiny_sd3, checkpointing=checkpointing, precision=precision)
    assert backbone.transformer.is_gradient_checkpointing == checkpointing
    parameters = trained(backbone.transformer)
    assert all(parameter.dtype == torch.float32 for parameter in parameters)
    engine = RowEngine(backbone.transformer, 5)
    loss = prediction_loss(backbone)
    expected = {p: block for p, block in loop(loss, parameters).items() if block.any()}
    # What the last block computes for the text queries is not used.
    assert len(parameters) - 2 <= len(expected)
    found = engine.gradients(loss, parameters, retain_graph=True)
    compare_blocks(found, expected, tolerance=tolerance)


def test_checkpointing_changes_no_gradient(tiny_sd3: Path) -> None:
    rows = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = adapted(tiny_sd3, checkpointing=checkpointing)
        rows.append(loop(prediction_loss(backbone), trained(backbone.transformer)))
    for plain, recomputed in zip(rows[0].values(), rows[1].values(), strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("adapter", ["default", "average"])
def test_a_plain_pipeline_loads_what_is_saved(tiny_sd3: Path, tmp_path: Path, adapter: str) -> None:
    """The same images as the backbone makes with that adapter, α included, and others than the base model's."""
    backbone = adapted(tiny_sd3, ("default", "average"))
    backbone.save_lora(tmp_path, adapter)
    backbone.transformer.set_adapter(adapter)
    noise = torch.randn(3, *backbone.latent_shape)
    images = backbone.decode(backbone.sample(backbone.encode(PROMPTS), noise, 3))

    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
    pipeline.set_progress_bar_config(disable=True)

    def call() -> torch.Tensor:
        texts = [prompt.text for prompt in PROMPTS]
        options = {"num_inference_steps": 3, "guidance_scale": 1.0, "max_sequence_length": 16, "output_type": "pt"}
        return pipeline(texts, latents=noise, **options).images

    assert (call() - images).abs().mean() > 0.02
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(call(), images, rtol=0, atol=1e-5)
    assert next(iter(pipeline.transformer.peft_config.values())).lora_alpha == 6


def test_saving_an_unknown_adapter_is_refused_by_name(tiny_sd3: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter 'old', only default"):
        adapted(tiny_sd3).save_lora(tmp_path, "old")


def test_a_save_that_is_cut_short_leaves_the_last_file(
    tiny_sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = adapted(tiny_sd3)
    backbone.save_lora(tmp_path / "best", "default")
    file = tmp_path / "best" / "pytorch_lora_weights.safetensors"
    whole = file.read_bytes()

    def cut_short(folder: str, **options: object) -> None:
        (Path(folder) / file.name).write_bytes(whole[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(StableDiffusion3Pipeline, "save_lora_weights", cut_short)
    with pytest.raises(KeyboardInterrupt):
        backbone.save_lora(tmp_path / "best", "default")
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() == whole
