"""Flux Kontext, an image editor, behind the backbone interface."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from diffusers import FluxKontextPipeline
from torch import Tensor

from prompts.pictures import SOURCE, pil_picture
from prompts.prompt import Prompt

from . import flux_plan
from .flux_tokens import pack, positions, unpack
from .interface import Conditioning
from .pipeline import PipelineBackbone
from .plan import Parts
from .settings import ModelSettings


class FluxKontextBackbone(PipelineBackbone):
    """A ``FluxKontextPipeline``. Every prompt has a source image, ``metadata["image"]``.

    Latents [B, 16, h, w] are those of the edited image alone. The source's are part of the conditioning {"sequence":
    [B, max_tokens, D], "pooled": [B, P], "source": [B, 16, h, w]} (D = 4096, P = 768); the network reads their tokens
    after those of the edited image, and what it puts out for them is dropped. It takes any ``max_tokens``, but was
    trained with 512.

    Source and edited image have one size, of as many pixels as a square of ``settings.resolution``: the one nearest to
    the source's aspect ratio, as the pipeline chooses it, of those that Kontext was trained on; these are sizes for
    1024, at another resolution they are scaled and rounded (see :mod:`.flux_sizes`). ``latent_shape`` is the square's.
    So is the schedule, whatever the size: the pipeline's own shift differs by less than 1 % between them.

    The pipeline's guidance scale is ``settings.guidance``, for rollouts and in the loss. Classifier-free guidance goes
    from the empty prompt with the same source to the prompt, as the pipeline's ``true_cfg_scale`` does.
    """

    kind = FluxKontextPipeline
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")

    @classmethod
    def plan_of(cls, parts: Parts, settings: ModelSettings) -> flux_plan.KontextPlan:
        return flux_plan.plan(parts, settings)

    @property
    def lora_targets(self) -> Sequence[str]:
        """The projections of all attentions; the fused ones after ``transformer.fuse_qkv_projections()``.

        A saved LoRA of a fused transformer loads after that call, too.
        """
        fused = any(getattr(module, "fused_projections", False) for module in self.transformer.modules())
        separate = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
        names = ("to_qkv", "to_added_qkv") if fused else separate
        return tuple(f"attn.{name}" for name in (*names, "to_out.0", "to_add_out"))

    @property
    def tokens(self) -> int:
        """Tokens of a square sample: those of the edited and of the source image."""
        height, width = self.latent_shape[-2:]
        return 2 * (height // 2) * (width // 2)

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        embeddings = super().encode(prompts)
        shapes = {self.latent_shape_of(prompt) for prompt in prompts}
        if len(shapes) > 1:
            raise ValueError(f"prompts of one call have one latent shape, these have {sorted(shapes)}: part them")
        values = [prompt.metadata[SOURCE] for prompt in prompts]
        different = [*dict.fromkeys(values)]
        latents = self._encode_sources(different, shapes.pop())
        return {**embeddings, "source": latents[[different.index(value) for value in values]]}

    @cached_property
    def empty(self) -> Conditioning:
        """Of the text alone: what is in its place has a source of its own."""
        return super().encode([Prompt("")])

    def unconditional(self, conditioning: Mapping[str, Tensor]) -> Conditioning:
        """The empty prompt with the same sources."""
        return {**super().unconditional(conditioning), "source": conditioning["source"]}

    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        target, source, sequence = pack(x), pack(conditioning["source"]), conditioning["sequence"]
        guided = self.transformer.config.guidance_embeds
        with self.autocast():
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

    def embed(self, texts: list[str]) -> dict[str, Tensor]:
        sequence, pooled, _ = self.pipeline.encode_prompt(
            texts, device=self.device, max_sequence_length=self.settings.max_tokens
        )
        return {"sequence": sequence, "pooled": pooled}

    @torch.no_grad()
    def _encode_sources(self, values: Sequence[str], shape: Sequence[int]) -> Tensor:
        """Latents [n, *shape], float32, of pictures, resized as the pipeline does: the posterior's mode.

        One at a time: the latents are then the same whatever else is encoded with it, bit for bit.
        """
        height, width = (side * self.pipeline.vae_scale_factor for side in shape[-2:])
        processor, config = self.pipeline.image_processor, self.vae.config
        images = [processor.preprocess(pil_picture(value), height, width) for value in values]
        with torch.autocast(self.device.type, enabled=False):
            modes = [self.vae.encode(image.float().to(self.device)).latent_dist.mode() for image in images]
        return ((torch.cat(modes) - config.shift_factor) * config.scaling_factor).contiguous()
