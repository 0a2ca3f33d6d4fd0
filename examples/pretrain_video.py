"""Pretrain the small LTX-2 pipeline from scratch on rendered, captioned videos: its VAE and its flow.

    python examples/pretrain_video.py

The shipped pipeline (examples/tiny_video/checkpoint) was made by this script; its pretraining.json says how long it
took. Neither network waits for the other: two processes can make them at once, one with --vae-minutes 0, the other with
--flow-minutes 0.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLLTX2Video, LTX2Pipeline
from torch import Tensor, nn
from tqdm import tqdm

from pretrain import learning_rate
from quiet import quiet
from tiny_video.captions import split
from tiny_video.components import Components
from tiny_video.parts import MAX_TOKENS, new_pipeline
from tiny_video.render import random_batch

CHECKPOINT = Path(__file__).parent / "tiny_video" / "checkpoint"
_NOISE = 0.05
_WITHOUT_CAPTION = 0.1


def vae_loss(vae: AutoencoderKLLTX2Video, components: Components, videos: Tensor) -> Tensor:
    """Mean squared errors of the encoder, whose latents shall be the components, and of the decoder, which gets these
    with a little noise."""
    x = pixels(videos)
    z = components.latents(x)
    found = vae.encode(x).latent_dist.mean
    made = vae.decode(z + _NOISE * torch.randn_like(z), return_dict=False)[0]
    return 0.1 * (found - z).square().mean() + (made - x).square().mean()


def flow_loss(pipeline: LTX2Pipeline, latents: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean squared velocity error at logit-normal times, for normalised latents [B, C, F, H, W] and the text encoder's
    states and mask of their captions."""
    noise = torch.randn_like(latents)
    t = torch.sigmoid(torch.randn(len(latents)) + 0.5)
    x = torch.lerp(latents, noise, t[:, None, None, None, None])
    sequence, audio, mask = pipeline.connectors(hidden, mask, padding_side="left")
    frames, height, width = latents.shape[2:]
    velocity = pipeline.transformer(
        hidden_states=tokens(x),
        # One frame of silence: the streams are isolated.
        audio_hidden_states=torch.zeros(len(x), 1, pipeline.transformer.config.audio_in_channels),
        encoder_hidden_states=sequence,
        audio_encoder_hidden_states=audio,
        encoder_attention_mask=mask,
        audio_encoder_attention_mask=mask,
        timestep=1000 * t,
        num_frames=frames,
        height=height,
        width=width,
        audio_num_frames=1,
        isolate_modalities=True,
        return_dict=False,
    )[0]
    return (velocity - tokens(noise - latents)).square().mean()


def pixels(videos: Tensor) -> Tensor:
    """Videos [B, F, 3, H, W] in [0, 1] as the VAE reads them: [B, 3, F, H, W] in [-1, 1]."""
    return videos.transpose(1, 2) * 2 - 1


def tokens(latents: Tensor) -> Tensor:
    """Latents [B, C, F, H, W] as the transformer reads them: [B, F H W, C]."""
    return latents.flatten(2).transpose(1, 2)


def train(
    name: str, modules: nn.ModuleList, losses: Iterator[Tensor], minutes: float, peak: float, average: float
) -> dict[str, float]:
    """AdamW on ``losses`` for ``minutes`` of wall time; ``modules`` end with the moving average of their weights."""
    moving = torch.optim.swa_utils.AveragedModel(
        modules, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(average), use_buffers=True
    )
    weights = [weight for weight in modules.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=peak, weight_decay=0.01, betas=(0.9, 0.99))
    start, values = time.monotonic(), []
    with tqdm(total=round(minutes * 60), unit="s", desc=name, mininterval=20) as bar:
        while (elapsed := time.monotonic() - start) < minutes * 60:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(max(elapsed, 1) / (minutes * 60), peak)
            loss = next(losses)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            moving.update_parameters(modules)
            values.append(loss.item())
            bar.update(int(time.monotonic() - start) - bar.n)
            bar.set_postfix(steps=len(values), loss=f"{np.mean(values[-100:]):.4f}", refresh=False)
    modules.load_state_dict(moving.module.state_dict())
    loss = round(float(np.mean(values[-100:])), 5)
    facts = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"minutes": round(elapsed / 60, 1), "batches": len(values), "loss": loss, **facts}


def vae_losses(
    vae: AutoencoderKLLTX2Video, components: Components, batch: int, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Losses of freshly rendered batches, without end."""
    while True:
        yield vae_loss(vae, components, torch.from_numpy(random_batch(batch, split(False), rng)[0]))


def flow_losses(
    pipeline: LTX2Pipeline, latents: Tensor, texts: list[str], batch: int, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Losses of batches drawn from ``latents``, a tenth of them without their caption, without end."""
    encode = encoder(pipeline, ["", *dict.fromkeys(texts)])
    while True:
        index = rng.integers(len(latents), size=batch)
        captions = ["" if rng.random() < _WITHOUT_CAPTION else texts[i] for i in index]
        yield flow_loss(pipeline, latents[index], *encode(captions))


@torch.no_grad()
def encoder(pipeline: LTX2Pipeline, texts: list[str]) -> Callable[[list[str]], tuple[Tensor, Tensor]]:
    """The text encoder's states [B, L, D] and masks [B, L] of captions among ``texts``, each encoded once."""
    hidden, mask, _, _ = pipeline.encode_prompt(
        texts, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
    )
    place = {text: i for i, text in enumerate(texts)}

    def encode(captions: list[str]) -> tuple[Tensor, Tensor]:
        index = [place[caption] for caption in captions]
        return hidden[index], mask[index]

    return encode


def cache(components: Components, videos: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
    """Latents of rendered ``videos`` and their captions."""
    latents, texts = [], []
    for _ in range(videos // 32):
        batch, captions = random_batch(32, split(False), rng)
        latents.append(components.latents(pixels(torch.from_numpy(batch))))
        texts += captions
    return torch.cat(latents), texts


def load(folder: Path) -> LTX2Pipeline:
    """The pipeline of a folder in fp32, quietly."""
    with quiet("diffusers", "transformers"):
        return LTX2Pipeline.from_pretrained(folder, torch_dtype=torch.float32)


def save(pipeline: LTX2Pipeline, folder: Path, kept: set[str], facts: dict) -> None:
    """Write the pipeline but the parts ``kept``, in fp16, which halves the shipped checkpoint, and the facts."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet("diffusers", "transformers"):
        for name, part in pipeline.components.items():
            # transformers would load the encoder in the precision it was saved in.
            if isinstance(part, nn.Module) and name != "text_encoder":
                # Not the classes' own ``to``, which warns about parts that they load in fp32.
                nn.Module.to(part, torch.float16)
            if part is not None and name not in kept:
                part.save_pretrained(folder / name)
        pipeline.save_config(folder)
    file = folder / "pretraining.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    runs = {name: [*known.get(name, []), run] for name, run in facts.items()}
    file.write_text(json.dumps({**known, **runs}, indent=2) + "\n")


def main() -> None:
    """Parse the command line, pretrain both networks, save the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae-minutes", type=float, default=10, help="wall time for the VAE; 0: keep the folder's")
    parser.add_argument(
        "--flow-minutes", type=float, default=20, help="for the transformer and the connectors; 0: keep the folder's"
    )
    parser.add_argument("--videos", type=int, default=16384, help="that the flow is trained on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--resume", action="store_true", help="go on from the pipeline in the output folder")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    components, facts, kept = Components(), {}, set()
    pipeline = load(arguments.output) if arguments.resume else LTX2Pipeline(**new_pipeline(arguments.seed))
    pipeline.text_encoder.requires_grad_(False)
    torch.manual_seed(arguments.seed)
    if arguments.vae_minutes:
        losses = vae_losses(pipeline.vae, components, 8, rng)
        facts["vae"] = train("VAE", nn.ModuleList([pipeline.vae]), losses, arguments.vae_minutes, 1e-3, 0.99)
    else:
        kept |= {"vae"}
    if arguments.flow_minutes:
        losses = flow_losses(pipeline, *cache(components, arguments.videos, rng), 96, rng)
        flow = nn.ModuleList([pipeline.transformer, pipeline.connectors])
        facts["flow"] = train("flow", flow, losses, arguments.flow_minutes, 2e-3, 0.995)
    else:
        kept |= {"transformer", "connectors"}
    save(pipeline, arguments.output, kept, facts)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
