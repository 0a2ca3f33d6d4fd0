"""Images to latents and back, by a VAE whose latents are shifted and scaled (Stable Diffusion 3, Flux).

With a VAE's f (``shift_factor``) and s (``scaling_factor``), a transformer's latents are (z − f) s.
"""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def decode_images(vae: Any, latents: Tensor, batch: int) -> Tensor:
    """Images [B, 3, H, W], float32 in [0, 1], on the CPU, of ``latents`` [B, C, h, w]; ``batch`` at a time.

    The VAE computes in fp32 under any autocast. At 512 pixels it holds about 1 GB per image of the batch.
    """
    config = vae.config
    images = []
    with torch.autocast(latents.device.type, enabled=False):
        for part in latents.float().split(batch):
            decoded = vae.decode(part / config.scaling_factor + config.shift_factor, return_dict=False)[0]
            images.append((decoded / 2 + 0.5).clamp(0, 1).cpu())
    # cuDNN and oneDNN may leave the channels last.
    return torch.cat(images).contiguous()


@torch.no_grad()
def encode_images(vae: Any, images: Tensor) -> Tensor:
    """Latents [B, C, h, w], float32 on the VAE's device, of ``images`` [B, 3, H, W] in [−1, 1]: the posterior's mode.

    One image at a time: its latents are then the same whatever else is encoded with it, bit for bit.
    """
    with torch.autocast(vae.device.type, enabled=False):
        modes = [vae.encode(image).latent_dist.mode() for image in images.float().to(vae.device).split(1)]
    return ((torch.cat(modes) - vae.config.shift_factor) * vae.config.scaling_factor).contiguous()
