"""Pretrain the small Flux Kontext pipeline from scratch: its VAE, then its transformer, on rendered edits.

    python examples/pretrain_edit.py --vae-minutes 6 --minutes 20

The shipped checkpoint (examples/tiny_edit/checkpoint) was made by this script; its pretraining.json says how.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxKontextPipeline
from torch import Tensor, nn
from tqdm import tqdm

from pretrain import learning_rate
from tiny_edit.model import CHECKPOINT, new_pipeline
from tiny_edit.world import Edit, imperfect, random_edit

GUIDANCE, DROPPED, TOKENS = 2.5, 0.1, 12
_BATCH = 32


def steps(model: nn.Module, minutes: float, peak: float, label: str) -> Iterator[torch.optim.Optimizer]:
    """Optimizer steps until the time is over: the caller makes a loss and its backward, then the step is made here."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.99))
    start = time.monotonic()
    with tqdm(total=round(minutes * 60), unit="s", desc=label, mininterval=5) as bar:
        while (elapsed := time.monotonic() - start) < minutes * 60:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(max(elapsed, 1) / (minutes * 60), peak)
            optimizer.zero_grad()
            yield optimizer
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update(int(time.monotonic() - start) - bar.n)


def pairs(rng: np.random.Generator, count: int) -> tuple[list[Edit], Tensor, Tensor]:
    """Edits, their sources and their imperfect results [count, 3, 24, 24] in [-1, 1]."""
    drawn = [random_edit(rng) for _ in range(count)]
    sources, results = [edit.source for edit in drawn], [imperfect(edit, rng) for edit in drawn]
    return drawn, torch.from_numpy(np.stack(sources)) * 2 - 1, torch.from_numpy(np.stack(results)) * 2 - 1


def train_vae(vae: AutoencoderKL, minutes: float, peak: float, rng: np.random.Generator) -> dict[str, float]:
    """Mean absolute error and a little KL; then the shift and the scale that standardise its latents are set."""
    errors: list[float] = []
    for _ in steps(vae.train(), minutes, peak, "VAE"):
        images = torch.cat(pairs(rng, _BATCH // 2)[1:])
        posterior = vae.encode(images).latent_dist
        error = (vae.decode(posterior.sample()).sample - images).abs().mean()
        (error + 1e-5 * posterior.kl().mean()).backward()
        errors.append(error.item() / 2)
    with torch.no_grad():
        latents = vae.eval().encode(torch.cat(pairs(rng, 256)[1:])).latent_dist.mode()
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    return {"vae_batches": len(errors), "vae_error": round(float(np.mean(errors[-100:])), 5)}


def train_transformer(
    pipeline: FluxKontextPipeline, minutes: float, peak: float, rng: np.random.Generator
) -> dict[str, float]:
    """Rectified flow from noise to the edited image; one prompt in ten is dropped, for classifier-free guidance."""
    transformer, embeddings = pipeline.transformer.train(), PromptTable(pipeline)
    average = torch.optim.swa_utils.AveragedModel(
        transformer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    losses: list[float] = []
    for _ in steps(transformer, minutes, peak, "transformer"):
        if losses:
            average.update_parameters(transformer)
        edits, sources, results = pairs(rng, _BATCH)
        with torch.no_grad():
            source, x_0 = (latents(pipeline, images) for images in (sources, results))
        texts = ["" if rng.random() < DROPPED else edit.text for edit in edits]
        t = torch.sigmoid(torch.randn(len(x_0)))
        noise = torch.randn_like(x_0)
        x_t = (1 - t)[:, None, None] * x_0 + t[:, None, None] * noise
        loss = (velocity(pipeline, x_t, t, source, *embeddings(texts)) - (noise - x_0)).square().mean()
        loss.backward()
        losses.append(loss.item())
    transformer.load_state_dict(average.module.state_dict())
    return {"batches": len(losses), "batch_size": _BATCH, "final_loss": round(float(np.mean(losses[-200:])), 5)}


def latents(pipeline: FluxKontextPipeline, images: Tensor) -> Tensor:
    """Standardised latents of images in [-1, 1], packed [B, 36, 64]."""
    config = pipeline.vae.config
    z = (pipeline.vae.encode(images).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    return pipeline._pack_latents(z, *z.shape)


def velocity(
    pipeline: FluxKontextPipeline, x: Tensor, t: Tensor, source: Tensor, sequence: Tensor, pooled: Tensor
) -> Tensor:
    """The transformer's velocity on the tokens of the result."""
    side = int(x.shape[1] ** 0.5)
    own = pipeline._prepare_latent_image_ids(len(x), side, side, x.device, x.dtype)
    others = own + torch.tensor([1.0, 0.0, 0.0])
    return pipeline.transformer(
        hidden_states=torch.cat([x, source], 1),
        timestep=t,
        guidance=torch.full((len(x),), GUIDANCE),
        pooled_projections=pooled,
        encoder_hidden_states=sequence,
        txt_ids=torch.zeros(sequence.shape[1], 3),
        img_ids=torch.cat([own, others]),
        return_dict=False,
    )[0][:, : x.shape[1]]


class PromptTable:
    """Embeddings of the few instructions that there are, computed once."""

    def __init__(self, pipeline: FluxKontextPipeline) -> None:
        self.pipeline, self.known = pipeline, dict[str, tuple[Tensor, Tensor]]()

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """The T5 sequence [B, 12, 64] and CLIP's pooled embedding [B, 32]."""
        for text in {*texts} - {*self.known}:
            sequence, pooled, _ = self.pipeline.encode_prompt(text, None, device="cpu", max_sequence_length=TOKENS)
            self.known[text] = sequence[0], pooled[0]
        sequences, pooled = zip(*(self.known[text] for text in texts), strict=True)
        return torch.stack(sequences), torch.stack(pooled)


def main() -> None:
    """Parse the command line, pretrain, save in half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae-minutes", type=float, default=6, help="wall time of the VAE's training")
    parser.add_argument("--minutes", type=float, default=20, help="wall time of the transformer's")
    parser.add_argument("--vae-lr", type=float, default=3e-3, help="peak learning rate of AdamW")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster, needs a C++ compiler")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng, pipeline = np.random.default_rng(arguments.seed), new_pipeline(arguments.seed)
    if arguments.compile:
        pipeline.transformer.compile()
        pipeline.vae.encoder.compile()
        pipeline.vae.decoder.compile()
    facts = vars(arguments) | {"threads": torch.get_num_threads(), "torch": torch.__version__}
    facts |= train_vae(pipeline.vae, arguments.vae_minutes, arguments.vae_lr, rng)
    facts |= train_transformer(pipeline, arguments.minutes, arguments.lr, rng)
    pipeline.to(torch.float16).save_pretrained(arguments.output)
    del facts["output"]
    (arguments.output / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
