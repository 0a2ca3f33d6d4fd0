"""LTX-2, which makes videos with sound, behind the backbone interface."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from diffusers import LTX2Pipeline
from torch import Tensor

from prompts.prompt import Prompt

from .interface import Backbone, Conditioning
from .lora import save_lora
from .ltx2_latents import Joint, pack, tile_stride, unpack
from .ltx2_parts import (
    RESOLUTION,
    audio_shape,
    encoders,
    fingerprint,
    grid_of,
    load_pipeline,
    lora_targets,
    schedule_of,
)
from .offload import visiting
from .prompt_cache import PromptCache
from .saved_pipeline import DTYPES
from .settings import ModelSettings

# Of a prompt's metadata: the number of frames and [width, height] in pixels, in place of the settings'. Plain "frames"
# and "size" may be in people's data and mean something else.
FRAMES, SIZE = "video_frames", "video_size"
# Gemma's states in all of its 49 layers, 0.8 GB at 1024 places, and their copies in the connectors.
_ENCODED_AT_ONCE = 2


class LTX2Backbone(Backbone):
    """An ``LTX2Pipeline`` whose transformer is trained.

    Latents are those of the transformer, the VAE's after normalisation. What they hold depends on ``settings.audio``:

    - "isolated": [B, C, F, H, W], the video's. The transformer runs with ``isolate_modalities`` and one silent token in
      place of the sound, which nothing of the video sees. A prompt may then have a size of its own, in its metadata:
      "video_frames", a number as of ``settings.frames``, and "video_size", [width, height] in pixels.
    - "frozen", "trained": [B, C F H W + L D], the video and after it the sound (:class:`Joint`), sampled together.
      "frozen" has the video alone in the loss.

    Frozen weights are stored in ``settings.precision``, those of the video VAE in fp32: of it only the decoder is moved
    to the device. Conditioning is what the connectors make of Gemma's states, "sequence" and "audio", [B, S, D]
    (isolated: [B, 1, D]), with a "mask" [B, S] if they have no registers, which fill all S places.

    Times are the scheduler's for videos of the settings' size, whatever size a prompt asks for.

    Args:
        pipeline: as :func:`load_pipeline` returns it; its transformer and the VAE's decoder are moved to ``device``.
        settings: how it was loaded; ``resolution`` is the side of a square video, 0: 512 pixels.
        device: where it runs.

    Raises:
        ValueError: frames or a resolution that the model cannot make, a video too short for sound, a scheduler of
            another kind.
    """

    def __init__(self, pipeline: LTX2Pipeline, settings: ModelSettings, device: torch.device) -> None:
        self.pipeline, self.settings, self.grid = pipeline, settings, grid_of(pipeline)
        side = settings.resolution or RESOLUTION
        self._video = self.grid.shape(settings.frames, side, side, ("model.frames", "model.resolution"))
        self.joint = None
        if settings.audio != "isolated":
            self.joint = Joint(self._video, audio_shape(pipeline, settings.frames, settings.frame_rate))
        self.lora_targets = lora_targets(settings.audio)
        self.schedule = schedule_of(pipeline, self._video)
        self.dtype = DTYPES[settings.precision]
        self.transformer = pipeline.transformer.to(device)
        self.vae = pipeline.vae
        self.vae.decoder.to(device)
        if settings.tiling:
            self.vae.enable_tiling()
        if settings.checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if not settings.offload_text_encoders:
            for encoder in encoders(pipeline):
                encoder.to(device)
        self.cache = PromptCache(
            self._encode,
            fingerprint(pipeline, settings),
            settings.prompt_cache or None,
            _ENCODED_AT_ONCE,
            ready=self._encoders_ready,
        )

    @classmethod
    def from_pretrained(cls, settings: ModelSettings, device: str | torch.device = "cpu") -> "LTX2Backbone":
        """Load ``settings.name``, a hub id or a folder; for errors see :func:`load_pipeline`."""
        device = torch.device(device)
        return cls(load_pipeline(settings, device), settings, device)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Channels, frames, height, width; where there is sound, the length of the vector."""
        return self._video if self.joint is None else self.joint.shape

    def latent_shape_of(self, prompt: Prompt) -> tuple[int, ...]:
        facts = prompt.metadata
        if FRAMES not in facts and SIZE not in facts:
            return self.latent_shape
        side = self.settings.resolution or RESOLUTION
        size, where = facts.get(SIZE, [side, side]), f"the prompt {prompt.text[:60]!r} has "
        if isinstance(size, str) or not isinstance(size, Sequence) or len(size) != 2:
            raise ValueError(f"{where}{SIZE} = {size!r}: give [width, height] in pixels")
        names = (f"{where}{FRAMES}", f"{where}{SIZE} {[*size]}, a side")
        shape = self.grid.shape(facts.get(FRAMES, self.settings.frames), size[0], size[1], names)
        if self.joint is not None and shape != self._video:
            raise ValueError(
                f"{where}{FRAMES} or a {SIZE} of its own, which model.audio={self.settings.audio} cannot serve: set "
                "model.audio=isolated, or the same size for all by model.frames and model.resolution"
            )
        return self.latent_shape if self.joint is not None else shape

    @property
    def tokens(self) -> int:
        """Those of the video, and of the sound if it is sampled."""
        return math.prod(self._video[1:]) + (1 if self.joint is None else self.joint.audio[0])

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        embeddings = self.cache([prompt.text for prompt in prompts])
        return {name: tensor.to(self.device) for name, tensor in embeddings.items()}

    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        video, audio = self._split(x)
        mask = conditioning.get("mask")
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
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

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Videos [B, F, 3, H, W], float32 in [0, 1], on the CPU, without sound; ``settings.decode_batch`` at once.

        The VAE computes in fp32 under any autocast.
        """
        latents = self._split(latents.float())[0]
        vae, videos = self.vae, []
        if self.settings.tiling:
            self._fit_tiles(latents.shape[3], latents.shape[4])
        with torch.autocast(self.device.type, enabled=False):
            for part in latents.split(self.settings.decode_batch):
                part = self.pipeline._denormalize_latents(
                    part, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
                )
                decoded = vae.decode(part, return_dict=False)[0]
                videos.append((decoded / 2 + 0.5).clamp(0, 1).transpose(1, 2).cpu())
        return torch.cat(videos).contiguous()

    def trained(self, latents: Tensor) -> Tensor:
        """All of it; the video's part where the sound is "frozen"."""
        return latents if self.joint is None or self.settings.audio == "trained" else self.joint.video_of(latents)

    def save_lora(self, folder: Path, adapter: str, write: bool = True) -> None:
        save_lora(LTX2Pipeline, self.transformer, folder, adapter, write)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Video latents [B, C, F, H, W] and audio tokens [B, L, D]: silence if the video is isolated."""
        if self.joint is not None:
            return self.joint.split(x)
        return x, x.new_zeros(len(x), 1, self.transformer.config.audio_in_channels)

    def _fit_tiles(self, height: int, width: int) -> None:
        vae, space = self.vae, self.grid.space
        for name, side in (("height", height), ("width", width)):
            tile = getattr(vae, f"tile_sample_min_{name}") // space
            stride = tile_stride(side, tile, tile * 7 // 8)
            setattr(vae, f"tile_sample_stride_{name}", stride * space)

    def _encoders_ready(self) -> AbstractContextManager:
        if not self.settings.offload_text_encoders:
            return nullcontext()
        return visiting(encoders(self.pipeline), self.device)

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
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
