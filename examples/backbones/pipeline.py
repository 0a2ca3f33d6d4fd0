"""What the backbones that wrap a saved pipeline of diffusers have in common."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prompts.prompt import Prompt

from . import saved_pipeline
from .interface import Backbone, Conditioning
from .lora import save_lora
from .offload import visiting
from .plan import Parts, Plan, loaded_parts
from .prompt_cache import PromptCache
from .settings import ModelSettings


class PipelineBackbone(Backbone):
    """A pipeline whose transformer is trained: a subclass states what its kind has of its own.

    Frozen weights are stored in ``settings.precision``, the VAE's in fp32; LoRA weights are whatever the trainer makes
    them. Conditionings are in the precision of the encoders. Latents are those of the transformer.

    Attributes:
        kind: the pipeline's class.
        encoders: the parts that a prompt goes through.
        tokenizers: the parts that make tokens of it.
        others: further parts that the pipeline must have been saved with.
        optional: those of the parts that it may have been saved without; a pipeline with the first has all of them.
        most_tokens: the largest ``max_tokens``.
        encoded_at_once: prompts per call of :meth:`embed`.
        decode_size: latents (h times w, of videos times f) of a sample as ``settings.decode_batch`` counts them.
        decoder: of the VAE, the module that runs and so is moved to the device; "" is the VAE itself.

    Args:
        pipeline: as :func:`saved_pipeline.load_frozen` returns it; its transformer and VAE are moved to ``device``.
        settings: how it was loaded.
        device: where it runs.

    Raises:
        ValueError: settings that the model cannot serve, parts that do not fit.
    """

    kind: ClassVar[type]
    encoders: ClassVar[Sequence[str]] = ("text_encoder",)
    tokenizers: ClassVar[Sequence[str]] = ("tokenizer",)
    others: ClassVar[Sequence[str]] = ()
    optional: ClassVar[Sequence[str]] = ()
    most_tokens: ClassVar[int] = 512
    encoded_at_once: ClassVar[int] = 8
    decode_size: ClassVar[int] = 64 * 64
    decoder: ClassVar[str] = ""

    def __init__(self, pipeline: Any, settings: ModelSettings, device: torch.device) -> None:
        self.plan = self.plan_of(loaded_parts(pipeline), settings)
        self.pipeline, self.settings, self.schedule = pipeline, settings, self.plan.schedule
        self.dtype = saved_pipeline.DTYPES[settings.precision]
        self.transformer, self.vae = pipeline.transformer.to(device), pipeline.vae
        self.vae.get_submodule(self.decoder).to(device)
        if settings.tiling:
            self.vae.enable_tiling()
        if settings.checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if not settings.offload_text_encoders:
            for encoder in self._encoders():
                encoder.to(device)
        encode, folder = torch.no_grad()(self.embed), settings.prompt_cache or None
        self.cache = PromptCache(encode, self.fingerprint(), folder, self.encoded_at_once, ready=self._encoders_ready)

    @classmethod
    def from_pretrained(cls, settings: ModelSettings, device: str | torch.device = "cpu") -> "PipelineBackbone":
        """Load ``settings.name``, a hub id or a folder.

        Raises:
            ValueError: settings that this model or device cannot serve, a folder that lacks a part, parts that do not
                fit.
            ImportError: a missing package, with the command that installs it.
        """
        device = torch.device(device)
        cls.read_plan(settings, device)
        left_out = {*cls.optional} - saved_pipeline.parts_of(settings.name, cls.optional)
        return cls(saved_pipeline.load_frozen(cls.kind, settings, left_out), settings, device)

    @classmethod
    def read_plan(cls, settings: ModelSettings, device: torch.device) -> Plan:
        """The plan of ``settings.name`` from its configurations alone: what is wrong is said before weights are loaded.

        Raises ``ValueError`` as :meth:`from_pretrained` does.
        """
        saved_pipeline.check_settings(settings, device, cls.most_tokens)
        return cls.plan_of(saved_pipeline.read_parts(settings.name, cls._saved_parts(settings.name)), settings)

    @classmethod
    @abstractmethod
    def plan_of(cls, parts: Parts, settings: ModelSettings) -> Plan:
        """What the model makes; ``ValueError`` for settings that it cannot serve and for parts that do not fit."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.plan.latent_shape

    def latent_shape_of(self, prompt: Prompt) -> tuple[int, ...]:
        return self.plan.latent_shape_of(prompt)

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        embeddings = self.cache([prompt.text for prompt in prompts])
        return {name: tensor.to(self.device) for name, tensor in embeddings.items()}

    def autocast(self) -> torch.autocast:
        """A context in which the network computes in ``settings.precision``."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images or videos of ``latents``, ``settings.decode_batch`` at a time, in fp32 under any autocast.

        Of samples larger than :attr:`decode_size` fewer, as many as have no more latents together, but one at least.
        """
        together, made = self.settings.decode_batch, []
        fitting = together * self.decode_size // math.prod(latents.shape[2:])
        with torch.autocast(self.device.type, enabled=False):
            for part in latents.float().split(min(together, max(fitting, 1))):
                made.append((self.pixels(part) / 2 + 0.5).clamp(0, 1).cpu())
        # cuDNN and oneDNN may leave the channels last.
        return torch.cat(made).contiguous()

    def save_lora(self, folder: Path, adapter: str, write: bool = True) -> None:
        save_lora(self.kind, self.transformer, folder, adapter, write)

    def fingerprint(self) -> str:
        """What a prompt's embedding depends on beside its text; see :func:`saved_pipeline.fingerprint`."""
        return saved_pipeline.fingerprint(self.pipeline, self.settings, self.tokenizers, self.encoders)

    @abstractmethod
    def embed(self, texts: list[str]) -> dict[str, Tensor]:
        """The conditionings of ``texts``, named tensors [B, ...]; called without gradients."""

    def pixels(self, latents: Tensor) -> Tensor:
        """Images or videos in [−1, 1]: of z / s + f for latents z, and the VAE's scaling and shift factors s, f."""
        config = self.vae.config
        shift = config.get("shift_factor") or 0.0
        return self.vae.decode(latents / config.scaling_factor + shift, return_dict=False)[0]

    def _encoders(self) -> list[nn.Module]:
        parts = [getattr(self.pipeline, name) for name in self.encoders]
        return [part for part in parts if part is not None]

    def _encoders_ready(self) -> AbstractContextManager[None]:
        return visiting(self._encoders(), self.device) if self.settings.offload_text_encoders else nullcontext()

    @classmethod
    def _saved_parts(cls, name: str) -> set[str]:
        """The parts that the pipeline ``name`` was saved with; ``ValueError`` if one is missing."""
        known = {"transformer", "vae", "scheduler", *cls.encoders, *cls.tokenizers, *cls.others}
        present = saved_pipeline.parts_of(name, known)
        needed = known if present & {*cls.optional[:1]} else known - {*cls.optional}
        hint = f" (only {' with '.join(cls.optional)} may be left out, as null in model_index.json)"
        saved_pipeline.check_parts(name, needed, present, hint if cls.optional else "")
        return present
