"""The factored backward on a small SD3 transformer: LoRA and full training, checkpointed or not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from factored_cases import compare_blocks, loop, make_loss, move, trained
from marble_opt import SeparableLoss, losses
from marble_opt.per_sample.engine import RowEngine
from transformer_families import sd3


def sd3_loss(model: Any, step: int, dtype: torch.dtype, rewards: int = 3) -> SeparableLoss:
    random = torch.Generator().manual_seed(step)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    x_0, noise, t = normal(3, 4, 8, 8), normal(3, 4, 8, 8), torch.rand(3, generator=random).to(dtype)
    time = t.view(-1, 1, 1, 1)
    inputs = {
        "hidden_states": (1 - time) * x_0 + time * noise,
        "timestep": 1000 * t,
        "encoder_hidden_states": normal(3, 5, 12),
        "pooled_projections": normal(3, 10),
    }
    with torch.no_grad():
        model.set_adapter("old")
        old = model(**inputs).sample
    model.set_adapter("default")
    prediction = model(**inputs).sample
    advantages = normal(rewards, 3)
    return losses.diffusion_nft(prediction, old, inputs["hidden_states"], x_0, t, advantages, beta=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_lora_on_a_diffusion_transformer(dtype: torch.dtype, checkpointed: bool) -> None:
    """Adapters ``default`` and ``old`` on one base, added after the engine was built; ``default`` is trained."""
    from peft import LoraConfig

    # diffusers' RMSNorm rounds to fp32 in a model in fp64.
    model = sd3("rms_norm" if dtype is torch.float32 else None).to(dtype)
    model.requires_grad_(False)
    engine = RowEngine(model, 3)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj"]
    for name in ("default", "old"):
        model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), name)
    model.to(dtype)
    if checkpointed:
        model.enable_gradient_checkpointing()
    for step in range(3):
        loss = sd3_loss(model, step, dtype)
        parameters = trained(model)
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        assert names
        assert all(".default." in name for name in names)
        expected = {p: block for p, block in loop(loss, parameters).items() if block.any()}
        found = engine.gradients(loss, parameters, retain_graph=True)
        # What the last block computes for the text stream is not used.
        assert len(expected) >= len(parameters) - 4
        compare_blocks(found, expected)
        move(parameters, step)


def test_full_training_of_a_diffusion_transformer() -> None:
    model = sd3()
    engine = RowEngine(model, 3)
    random = torch.Generator().manual_seed(0)
    for step in range(3):
        inputs = (
            torch.randn(3, 4, 8, 8),
            torch.randn(3, 5, 12),
            torch.randn(3, 10),
            1000 * torch.rand(3, generator=random),
        )
        loss = make_loss(model(*inputs).sample, seed=step)
        parameters = trained(model)
        expected = {p: block for p, block in loop(loss, parameters).items() if block.any()}
        found = engine.gradients(loss, parameters, retain_graph=True)
        total = torch.cat([block.flatten() for block in expected.values()]).norm()
        assert found.uncovered == []
        for parameter, block in expected.items():
            # Biases of keys have a gradient of zero but for rounding.
            assert (found.blocks[parameter] - block).norm() <= 1e-5 * block.norm() + 1e-7 * total
        move(parameters, step)
