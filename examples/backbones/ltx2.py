"""LTX-2, which makes videos with sound, behind the backbone interface."""

import math
from collections.abc import Sequence

import torch
from diffusers import LTX2Pipeline
from torch import Tensor

from . import ltx2_plan
from .interface import Conditioning
from .ltx2_latents import Joint, pack, tile_stride, unpack
from .pipeline import PipelineBackbone
from .plan import Parts
from .settings import ModelSettings


class LTX2Backbone(PipelineBackbone):
    """An ``LTX2Pipeline``. What its latents hold depends on ``settings.audio``:

    - "isolated": [B, C, F, H, W], the video's, normalised. The transformer runs with ``isolate_modalities`` and one
      silent token in place of the sound, which nothing of the video sees. A prompt may then have a size of its own, in
      its metadata: "video_frames", a number as of ``settings.frames``, and "video_size", [width, height] in pixels.
    - "frozen", "trained": [B, C F H W + L D], the video and after it the sound (:class:`Joint`), sampled together.
      "frozen" has the video alone in the loss.

    Of the video VAE only the decoder is moved to the device. Conditioning is what the connectors make of Gemma's
    states, "sequence" and "audio", [B, S, D] (isolated: [B, 1, D]), with a "mask" [B, S] if they have no registers,
    which fill all S places.

    Times are the scheduler's for videos of the settings' size, whatever size a prompt asks for.
    """

    kind = LTX2Pipeline
    encoders = ("text_encoder", "connectors")
    others = ("audio_vae", "vocoder")
    most_tokens = 1024
    # Gemma's states in all of its 49 layers, 0.8 GB at 1024 places, and their copies in the connectors.
    encoded_at_once = 2
    # Videos of 25 frames of 512 x 512 pixels.
    decode_size = 4 * 16 * 16
    decoder = "decoder"
    plan: ltx2_plan.LTX2Plan

    @classmethod
    def plan_of(cls, parts: Parts, settings: ModelSettings) -> ltx2_plan.LTX2Plan:
        return ltx2_plan.plan(parts, settings)

    @property
    def joint(self) -> Joint | None:
        """Video and sound, where that is sampled."""
        return self.plan.joint

    @property
    def lora_targets(self) -> Sequence[str]:
        """Attention projections of the streams that take part; see :func:`ltx2_plan.lora_targets`."""
        return ltx2_plan.lora_targets(self.settings.audio)

    @property
    def tokens(self) -> int:
        """Those of the video, and of the sound if it is sampled."""
        if self.joint is None:
            return math.prod(self.latent_shape[1:]) + 1
        return math.prod(self.joint.video[1:]) + self.joint.audio[0]

    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        video, audio = self._split(x)
        mask = conditioning.get("mask")
        with self.autocast():
            tokens, sound = self.transformer(
                hidden_states=pack(video).to(self.dtype),
                audio_hidden_states=audio.to(self.dtype),
                encoder_hidden_states=conditioning["sequence"],
                audio_encoder_hidden_states=conditioning["audio"],
                timestep=1000 * t,
                sigma=1000 * t,
                encoder_attention_mask=mask,
                audio_encoder_attention_mask=None if self.joint is None else mask,
                num_frames=video.shape[2],
                height=video.shape[3],
                width=video.shape[4],
                fps=self.settings.frame_rate,
                audio_num_frames=audio.shape[1],
                isolate_modalities=self.joint is None,
                return_dict=False,
            )
        v = unpack(tokens.float(), video)
        return v if self.joint is None else torch.cat([v.flatten(1), sound.float().flatten(1)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Videos [B, F, 3, H, W] without sound; see :meth:`PipelineBackbone.decode`."""
        video = self._split(latents)[0]
        if self.settings.tiling:
            self._fit_tiles(video.shape[3], video.shape[4])
        return super().decode(video)

    def trained(self, latents: Tensor) -> Tensor:
        """All of it; the video's part where the sound is "frozen"."""
        return latents if self.joint is None or self.settings.audio == "trained" else self.joint.video_of(latents)

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {self.joint is None}"

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Video latents [B, C, F, H, W] and audio tokens [B, L, D]: silence if the video is isolated."""
        if self.joint is not None:
            return self.joint.split(x)
        return x, x.new_zeros(len(x), 1, self.transformer.config.audio_in_channels)

    def _fit_tiles(self, height: int, width: int) -> None:
        vae, space = self.vae, self.plan.grid.space
        for name, side in (("height", height), ("width", width)):
            tile = getattr(vae, f"tile_sample_min_{name}") // space
            stride = tile_stride(side, tile, tile * 7 // 8)
            setattr(vae, f"tile_sample_stride_{name}", stride * space)

    def pixels(self, latents: Tensor) -> Tensor:
        vae = self.vae
        latents = self.pipeline._denormalize_latents(
            latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )
        return vae.decode(latents, return_dict=False)[0].transpose(1, 2)

    def embed(self, texts: list[str]) -> dict[str, Tensor]:
        states, mask, _, _ = self.pipeline.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.max_tokens,
            device=self.device,
        )
        connectors = self.pipeline.connectors
        sequence, audio, mask = connectors(states, mask, padding_side=self.pipeline.tokenizer.padding_side)
        found = {"sequence": sequence, "audio": audio[:, :1] if self.joint is None else audio}
        return found if connectors.config.video_connector_num_learnable_registers else {**found, "mask": mask}
