"""Flux Kontext, an image editor, behind the backbone interface."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from diffusers import FluxKontextPipeline
from torch import Tensor

from prompts.pictures import SOURCE, picture_size, pil_picture, shown
from prompts.prompt import Prompt

from .flux_parts import encoders, fingerprint, load_pipeline, schedule_of
from .flux_sizes import Size, nearest, offered, side_of, step_of
from .flux_tokens import pack, positions, unpack
from .interface import Backbone, Conditioning
from .lora import save_lora
from .offload import visiting
from .prompt_cache import PromptCache
from .saved_pipeline import DTYPES
from .settings import ModelSettings
from .vae_images import decode_images, encode_images


class FluxKontextBackbone(Backbone):
    """A ``FluxKontextPipeline`` whose transformer is trained. Every prompt has a source image, ``metadata["image"]``.

    Latents [B, 16, h, w] are those of the edited image alone. The source's are part of the conditioning {"sequence":
    [B, max_tokens, D], "pooled": [B, P], "source": [B, 16, h, w]} (D = 4096, P = 768); the network reads their tokens
    after those of the edited image, and what it puts out for them is dropped. Frozen weights are stored in
    ``settings.precision``, the VAE's in fp32. The network takes any ``max_tokens``, but was trained with 512.

    Source and edited image have one size, of as many pixels as a square of ``settings.resolution``: the one nearest to
    the source's aspect ratio, as the pipeline chooses it, of those that Kontext was trained on; these are sizes for
    1024, at another resolution they are scaled and rounded (see :mod:`.flux_sizes`). ``latent_shape`` is the square's.
    So is the schedule, whatever the size: the pipeline's own shift differs by less than 1 % between them.

    The pipeline's guidance scale is ``settings.guidance``, for rollouts and in the loss. Classifier-free guidance goes
    from the empty prompt with the same source to the prompt, as the pipeline's ``true_cfg_scale`` does.

    Args:
        pipeline: as :func:`load_pipeline` returns it; its transformer and VAE are moved to ``device``.
        settings: how it was loaded.
        device: where it runs.

    Raises:
        ValueError: a resolution that the model cannot make, a scheduler of another kind.
    """

    def __init__(self, pipeline: FluxKontextPipeline, settings: ModelSettings, device: torch.device) -> None:
        side, step = side_of(pipeline, settings.resolution), step_of(pipeline)
        self.sizes = offered(side, step)
        self._latent_shape = self._shape((side, side), pipeline)
        self.pipeline, self.settings = pipeline, settings
        self.dtype = DTYPES[settings.precision]
        self.transformer = pipeline.transformer.to(device)
        self.vae = pipeline.vae.to(device)
        self.schedule = schedule_of(pipeline, (side // step) ** 2)
        if settings.tiling:
            self.vae.enable_tiling()
        if settings.checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if not settings.offload_text_encoders:
            for encoder in encoders(pipeline):
                encoder.to(device)
        self.cache = PromptCache(
            self._encode, fingerprint(pipeline, settings), settings.prompt_cache or None, ready=self._encoders_ready
        )

    @classmethod
    def from_pretrained(cls, settings: ModelSettings, device: str | torch.device = "cpu") -> "FluxKontextBackbone":
        """Load ``settings.name``, a hub id or a folder; for errors see :func:`load_pipeline`."""
        device = torch.device(device)
        return cls(load_pipeline(settings, device), settings, device)

    @property
    def lora_targets(self) -> Sequence[str]:
        """The projections of all attentions; the fused ones after ``transformer.fuse_qkv_projections()``."""
        fused = any(getattr(module, "fused_projections", False) for module in self.transformer.modules())
        separate = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
        names = ("to_qkv", "to_added_qkv") if fused else separate
        return tuple(f"attn.{name}" for name in (*names, "to_out.0", "to_add_out"))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of a square sample's latents: channels, height, width."""
        return self._latent_shape

    def latent_shape_of(self, prompt: Prompt) -> tuple[int, ...]:
        """Channels, height, width for the prompt's source image; ``ValueError`` without one that can be served."""
        value = prompt.metadata.get(SOURCE)
        if not isinstance(value, str):
            raise ValueError(
                f"the prompt {prompt.text[:80]!r} has no source image: Flux Kontext edits images, so give it prompts "
                f'of a .jsonl file with {{"prompt": ..., "{SOURCE}": path}} on each line'
            )
        try:
            size = nearest(picture_size(value), self.sizes, step_of(self.pipeline))
        except ValueError as error:
            raise ValueError(f"the source image of {prompt.text[:80]!r}, {shown(value)}: {error}") from error
        return self._shape(size, self.pipeline)

    @property
    def tokens(self) -> int:
        """Tokens of a square sample: those of the edited and of the source image."""
        height, width = self.latent_shape[-2:]
        return 2 * (height // 2) * (width // 2)

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        embeddings = self.cache([prompt.text for prompt in prompts])
        shapes = {self.latent_shape_of(prompt) for prompt in prompts}
        if len(shapes) > 1:
            raise ValueError(f"prompts of one call have one latent shape, these have {sorted(shapes)}: part them")
        values = [prompt.metadata[SOURCE] for prompt in prompts]
        different = [*dict.fromkeys(values)]
        latents = self._encode_sources(different, shapes.pop())
        source = latents[torch.tensor([different.index(value) for value in values], device=self.device)]
        return {**{name: tensor.to(self.device) for name, tensor in embeddings.items()}, "source": source}

    def unconditional(self, conditioning: Mapping[str, Tensor]) -> Conditioning:
        """The empty prompt with the same sources."""
        source = conditioning["source"]
        empty = {name: tensor.to(self.device) for name, tensor in self.cache([""]).items()}
        return {**{name: tensor.repeat_interleave(len(source), 0) for name, tensor in empty.items()}, "source": source}

    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        target, source, sequence = pack(x), pack(conditioning["source"]), conditioning["sequence"]
        guided = self.transformer.config.guidance_embeds
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            v = self.transformer(
                hidden_states=torch.cat([target, source.to(target)], 1).to(self.dtype),
                timestep=t,
                guidance=torch.full_like(t, self.settings.guidance) if guided else None,
                encoder_hidden_states=sequence,
                pooled_projections=conditioning["pooled"],
                txt_ids=torch.zeros(sequence.shape[1], 3, device=x.device),
                img_ids=positions(x, conditioning["source"]),
                return_dict=False,
            )[0]
        return unpack(v[:, : target.shape[1]].float(), x.shape[-2:])

    def decode(self, latents: Tensor) -> Tensor:
        """Images of ``latents``, ``settings.decode_batch`` at a time; see :func:`decode_images`."""
        return decode_images(self.vae, latents, self.settings.decode_batch)

    def save_lora(self, folder: Path, adapter: str, write: bool = True) -> None:
        """As the interface says; that of a fused transformer loads after ``transformer.fuse_qkv_projections()``."""
        save_lora(FluxKontextPipeline, self.transformer, folder, adapter, write)

    @staticmethod
    def _shape(size: Size, pipeline: FluxKontextPipeline) -> tuple[int, ...]:
        width, height = size
        factor = pipeline.vae_scale_factor
        return (pipeline.vae.config.latent_channels, height // factor, width // factor)

    def _encode_sources(self, values: Sequence[str], shape: Sequence[int]) -> Tensor:
        """Latents [n, *shape] of pictures, resized as the pipeline does."""
        height, width = (side * self.pipeline.vae_scale_factor for side in shape[-2:])
        processor = self.pipeline.image_processor
        return encode_images(
            self.vae, torch.cat([processor.preprocess(pil_picture(value), height, width) for value in values])
        )

    def _encoders_ready(self) -> AbstractContextManager:
        if not self.settings.offload_text_encoders:
            return nullcontext()
        return visiting(encoders(self.pipeline), self.device)

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        sequence, pooled, _ = self.pipeline.encode_prompt(
            texts, device=self.device, max_sequence_length=self.settings.max_tokens
        )
        return {"sequence": sequence, "pooled": pooled}
