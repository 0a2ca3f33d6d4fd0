"""Pretrain the tiny text-to-image model from scratch on rendered, captioned images.

    python examples/pretrain.py --minutes 30

The shipped checkpoint (examples/tiny/checkpoint) was made by this script; its README says how long it took.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tiny.model import CHECKPOINT, TinyModel
from tiny.render import random_batch


def flow_matching_loss(model: TinyModel, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
    """Mean squared velocity error at logit-normal times (SD3, arXiv 2403.03206, section 3.1)."""
    x0 = images * 2 - 1
    noise = torch.randn_like(x0)
    t = torch.sigmoid(torch.randn(len(x0)))
    x = (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * noise
    velocity = model.velocity(x, t, model.text_encoder(captions))
    return (velocity - (noise - x0)).square().mean()


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over 3 % of the run, then a cosine to zero; ``progress`` in [0, 1]."""
    return peak * min(progress / 0.03, 0.5 * (1 + math.cos(math.pi * progress)))


def pretrain(minutes: float, batch_size: int, peak: float, seed: int, compiled: bool = False) -> tuple[TinyModel, dict]:
    """Train for ``minutes`` of wall time; returns the moving-average model and the facts of the run."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = TinyModel.new().train()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999))
    if compiled:
        model.transformer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.99))
    start, steps, losses = time.monotonic(), 0, []
    with tqdm(total=round(minutes * 60), unit="s", desc="pretrain", mininterval=5) as bar:
        while (elapsed := time.monotonic() - start) < minutes * 60:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(max(elapsed, 1) / (minutes * 60), peak)
            images, captions = random_batch(batch_size, rng)
            loss = flow_matching_loss(model, torch.from_numpy(images), captions)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(model)
            steps += 1
            losses.append(loss.item())
            bar.update(int(time.monotonic() - start) - bar.n)
            bar.set_postfix(steps=steps, loss=f"{np.mean(losses[-200:]):.4f}", refresh=False)
    facts = {
        "minutes": round((time.monotonic() - start) / 60, 1),
        "batches": steps,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "final_loss": round(float(np.mean(losses[-200:])), 5),
        "torch": torch.__version__,
        "seed": seed,
    }
    return average.module.eval(), facts


def main() -> None:
    """Parse the command line, pretrain, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="wall time of the run")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of AdamW")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--compile", action="store_true", help="torch.compile: 1.4 x faster, needs a C++ compiler")
    arguments = parser.parse_args()
    model, facts = pretrain(arguments.minutes, arguments.batch_size, arguments.lr, arguments.seed, arguments.compile)
    model.save_pretrained(arguments.output)
    (arguments.output / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
