"""A DiffusionNFT-style loop: torchrun, peft adapters `default` and `old`, GradScaler, accumulation per timestep.

    python examples/integrations/diffusion_nft_loop.py
    torchrun --nproc-per-node 2 examples/integrations/diffusion_nft_loop.py

What changes in such a loop, where advantages were mixed into one number per sample:

    - optimizer = torch.optim.AdamW(trainable, lr=lr)
    + optimizer = marble_opt.Marble(torch.optim.AdamW(trainable, lr=lr), rewards=NAMES, model=model, reduction="sum")
    - advantages = weighted_sum(scores)                                    # [B]
    + advantages = marble_opt.group_advantages(scores, prompt_ids)         # [K, B], NaN: does not apply
      for t in times:                                                      # and for each micro-batch
    -     loss = nft_loss(prediction, old, x_t, x_0, t, advantages) + kl
    -     scaler.scale(loss / accumulation_steps).backward()
    +     loss = marble_opt.losses.diffusion_nft(prediction, old, x_t, x_0, t, advantages, beta=beta, counts=counts)
    +     optimizer.backward(loss, shared=kl / (accumulation_steps * world_size), scaler=scaler)
    + optimizer.balance()
      scaler.unscale_(optimizer)
      clip_grad_norm_(trainable, 1.0)
      scaler.step(optimizer)

Micro-steps need no `no_sync`: gradients stay local until `balance()`, which makes the one reduction. `counts` are the
samples of the whole step on all ranks, hence reduction="sum"; the KL term is divided by as many. The scaler's scale is
that of all rows: a reward that overflows sits the step out, if all do the scaler skips the step as ever.
"""

import copy
import os

import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import marble_opt
from tiny_flow import REWARDS, SIZE, Velocity, prompt_batch, sample, score, seeded

BETA, KL, MICRO_BATCHES, TIMESTEPS, OLD_DECAY = 0.5, 1e-3, 2, 3, 0.5


def with_adapters() -> PeftModel:
    """The model with the adapters ``default``, which is trained, and ``old``, which makes the rollouts."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["inner", "outer"])
    model = get_peft_model(Velocity(), config)
    model.add_adapter("old", copy.deepcopy(config))
    blend(model, 0.0)
    model.set_adapter("default")
    return model


@torch.no_grad()
def blend(model: nn.Module, decay: float) -> None:
    """old ← decay · old + (1 − decay) · default."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if ".old." in name:
            weight.lerp_(weights[name.replace(".old.", ".default.")], 1 - decay)


def train(steps: int = 6, scaled: bool = True) -> tuple[PeftModel, marble_opt.Marble]:
    """Optimizer steps of MICRO_BATCHES x TIMESTEPS micro-steps; the samples are shared out among the ranks."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = with_adapters()
    ddp = DistributedDataParallel(model) if ranks > 1 else model
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = marble_opt.Marble(torch.optim.AdamW(trainable, lr=1e-2), rewards=REWARDS, model=model, reduction="sum")
    # On CUDA: GradScaler("cuda"), and torch.autocast("cuda", torch.float16) around the forwards.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
    everybody = prompt_batch()
    mine = slice(rank * len(everybody) // ranks, (rank + 1) * len(everybody) // ranks)
    for step in range(steps):
        # Each rank draws for all and keeps its share, so that the result does not depend on their number.
        x_1 = torch.randn(len(everybody), SIZE, generator=seeded(step, 0))[mine]
        times = torch.rand(TIMESTEPS, len(everybody), generator=seeded(step, 1))[:, mine]
        fresh = torch.randn(TIMESTEPS, len(everybody), SIZE, generator=seeded(step, 2))[:, mine]
        prompt_ids = everybody[mine]
        model.set_adapter("old")
        x_0 = sample(ddp, prompt_ids, x_1)
        model.set_adapter("default")
        scores = gather(score(x_0, prompt_ids), ranks)
        advantages = marble_opt.group_advantages(scores, everybody)
        counts = (~advantages.isnan()).sum(1) * TIMESTEPS
        for part in torch.arange(len(prompt_ids)).chunk(MICRO_BATCHES):
            for t, epsilon in zip(times, fresh, strict=True):
                t_part, x_part, ids = t[part], x_0[part], prompt_ids[part]
                time = t_part.unsqueeze(1)
                x_t = (1 - time) * x_part + time * epsilon[part]
                with torch.no_grad():
                    model.set_adapter("old")
                    old = ddp(x_t, t_part, ids)
                    model.set_adapter("default")
                    with model.disable_adapter():
                        reference = model(x_t, t_part, ids)
                prediction = ddp(x_t, t_part, ids)
                kl = KL * (prediction - reference).square().mean(1).sum() / (len(everybody) * TIMESTEPS)
                loss = marble_opt.losses.diffusion_nft(
                    prediction, old, x_t, x_part, t_part, advantages[:, mine][:, part], beta=BETA, counts=counts
                )
                optimizer.backward(loss, shared=kl, scaler=scaler)
        optimizer.balance()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        blend(model, OLD_DECAY)
    return model, optimizer


def gather(scores: Tensor, ranks: int) -> Tensor:
    """The scores [K, B] of all ranks."""
    if ranks == 1:
        return scores
    parts = [torch.empty_like(scores) for _ in range(ranks)]
    dist.all_gather(parts, scores)
    return torch.cat(parts, 1)


def main() -> None:
    """Train, alone or as one rank of torchrun, and print the last report."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")  # "nccl" once the model is on GPUs
    model, optimizer = train()
    if not dist.is_initialized() or dist.get_rank() == 0:
        report = optimizer.report
        assert report is not None
        print({name: round(value, 3) for name, value in zip(REWARDS, report.alpha.tolist(), strict=True)})
        print(f"checksum {sum(float(w.detach().double().abs().sum()) for w in model.parameters()):.5f}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
