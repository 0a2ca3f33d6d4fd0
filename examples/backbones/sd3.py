"""Stable Diffusion 3 and 3.5 behind the backbone interface."""

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from .interface import Conditioning
from .pipeline import PipelineBackbone
from .plan import Part, Parts, Plan, image_factor
from .saved_pipeline import check_multiple
from .settings import ModelSettings
from .solvers import Schedule


class SD3Backbone(PipelineBackbone):
    """A ``StableDiffusion3Pipeline``; its T5 may have been left out.

    Conditioning is {"sequence": [B, 77 + max_tokens, D], "pooled": [B, P]} (SD3.5: D = 4096, P = 2048).

    ``lora_targets`` are those of DiffusionNFT's code. They end in "attn.…", which leaves out ``attn2``, the second
    attention over the image alone that SD3.5 Medium has in its first 13 blocks: so does that code.
    """

    kind = StableDiffusion3Pipeline
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    optional = ("text_encoder_3", "tokenizer_3")
    lora_targets = tuple(
        f"attn.{name}"
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    )

    @classmethod
    def plan_of(cls, parts: Parts, settings: ModelSettings) -> Plan:
        shift = _shift(parts["scheduler"])
        side = latent_side(parts, settings.resolution)
        inputs, made = parts["transformer"].config["in_channels"], parts["vae"].config["latent_channels"]
        if inputs != made:
            raise ValueError(
                f"the transformer of {settings.name} takes {inputs} channels, and its VAE's latents have {made}: the "
                "two do not belong together"
            )
        return Plan((inputs, side, side), Schedule(shift))

    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        with self.autocast():
            v = self.transformer(
                hidden_states=x.to(self.dtype),
                timestep=1000 * t,
                encoder_hidden_states=conditioning["sequence"],
                pooled_projections=conditioning["pooled"],
                return_dict=False,
            )[0]
        return v.float()

    def embed(self, texts: list[str]) -> dict[str, Tensor]:
        sequence, _, pooled, _ = self.pipeline.encode_prompt(
            texts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.max_tokens,
        )
        return {"sequence": sequence, "pooled": pooled}


def latent_side(parts: Parts, resolution: int) -> int:
    """Side of the latents for square images of ``resolution`` pixels, 0: the model's own.

    Raises ``ValueError`` where the patches do not fit, or where there are more of them than positions.
    """
    config, factor = parts["transformer"].config, image_factor(parts)
    if resolution == 0:
        return config["sample_size"]
    step = factor * config["patch_size"]
    check_multiple(resolution, step)
    most = config["pos_embed_max_size"] * step
    if resolution > most:
        raise ValueError(f"model.resolution must be at most {most}, where this model's positions end, got {resolution}")
    return resolution // factor


def _shift(scheduler: Part) -> float:
    shift = scheduler.config.get("shift")
    if shift is None or scheduler.config.get("use_dynamic_shifting"):
        raise ValueError(
            f"the scheduler {scheduler.kind.__name__} has no fixed shift: give the pipeline a "
            "FlowMatchEulerDiscreteScheduler with shift=3.0 and use_dynamic_shifting=False, as SD3 has"
        )
    return shift
