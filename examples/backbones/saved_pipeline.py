"""Loading a saved pipeline of diffusers: what is checked first, and how its parts are stored."""

import hashlib
import inspect
from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, pipelines
from torch import nn

from quiet import quiet

from .plan import Part, Parts
from .settings import ModelSettings

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_INSTALL = "pip install diffusers transformers tokenizers sentencepiece"


def check_settings(settings: ModelSettings, device: torch.device, most_tokens: int) -> None:
    """Raise ``ValueError`` for fp16 on a CPU and for more than ``most_tokens`` tokens of a T5 or Gemma."""
    if settings.precision == "fp16" and device.type == "cpu":
        raise ValueError("model.precision fp16 needs a GPU: on a CPU use bf16 or no")
    if settings.max_tokens > most_tokens:
        raise ValueError(f"model.max_tokens must be at most {most_tokens}, got {settings.max_tokens}")


def check_multiple(resolution: int, step: int) -> None:
    """Raise ``ValueError`` for a resolution that is no multiple of ``step``, with those next to it."""
    if resolution % step:
        below = resolution // step * step
        fitting = f"{below} or {below + step}" if below else str(step)
        raise ValueError(
            f"model.resolution must be a multiple of {step} for this model, got {resolution}: use {fitting}"
        )


def parts_of(name: str, known: Collection[str]) -> set[str]:
    """Those of the parts ``known`` that the index of the pipeline ``name`` has."""
    index = DiffusionPipeline.load_config(name)
    return {part for part in known if (index.get(part) or [None])[0] is not None}


def read_parts(name: str, names: Collection[str]) -> Parts:
    """Those of the parts ``names`` that diffusers defines, of the pipeline ``name``: from its JSON files alone."""
    index = DiffusionPipeline.load_config(name)
    own = {part: index[part] for part in names if index[part][0] != "transformers"}
    return {part: _read_part(name, part, *own[part]) for part in own}


def _read_part(name: str, part: str, library: str, kind: str) -> Part:
    # Where the index names a pipeline, its parts are in that one's module.
    module = getattr(pipelines, library, None) or import_module(library)
    found = getattr(module, kind)
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(found.__init__).parameters.items()
        if parameter.default is not parameter.empty
    }
    return Part(found, {**defaults, **found.load_config(name, subfolder=part)})


def check_parts(name: str, needed: Collection[str], present: Collection[str], hint: str = "") -> None:
    """Raise ``ValueError`` naming what is ``needed`` but not ``present``, or present but not in the folder ``name``."""
    missing = {*needed} - {*present}
    if Path(name).is_dir():
        missing |= {part for part in present if not (Path(name) / part).is_dir()}
    if missing:
        raise ValueError(
            f"{name} lacks {', '.join(sorted(missing))}: save the whole pipeline there with save_pretrained{hint}"
        )


def load_frozen(kind: Any, settings: ModelSettings, left_out: Collection[str] = ()) -> Any:
    """The pipeline ``settings.name`` of the class ``kind``, on the CPU: frozen, in evaluation mode, in
    ``settings.precision``; the VAE in fp32. ``left_out``: the parts that it was saved without.

    In fp32 nothing of the VAE can overflow, at the cost of one slower pass per image or video. That of SD3.5 and Flux
    (84 M parameters) asks for it in its configuration (``force_upcast``; the pipelines do not look at it), and
    DiffusionNFT's code keeps its weights so. LTX-2's decoder has 0.5 B, 2 GB in fp32, its transformer 38 GB in bf16.

    Raises ``ImportError`` for a missing package, with the command that installs it.
    """
    try:
        with quiet("diffusers", "transformers"):
            pipeline = kind.from_pretrained(
                settings.name,
                torch_dtype={"default": DTYPES[settings.precision], "vae": torch.float32},
                # diffusers wants to be told what a saved pipeline was saved without.
                **dict.fromkeys(left_out),
            )
    except ImportError as error:
        raise ImportError(f"loading {settings.name} needs a package that is missing: {_INSTALL} ({error})") from error
    except ValueError as error:
        # How transformers says that it found no tokenizer.json and cannot read the sentencepiece model instead.
        if "sentencepiece" not in str(error):
            raise
        raise ImportError(f"the tokenizers of {settings.name} need a package: {_INSTALL} ({error})") from error
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return pipeline


def fingerprint(pipeline: Any, settings: ModelSettings, tokenizers: Sequence[str], encoders: Sequence[str]) -> str:
    """What embeddings depend on beside the text: a digest of the parts ``tokenizers``, of the shapes of the parts
    ``encoders`` and of up to 64 values of each of their weights, of the precision and of ``max_tokens``.

    Taken from what was loaded, it tells models and their revisions apart wherever they lie.
    """
    digest = hashlib.sha256(f"{settings.precision} {settings.max_tokens}".encode())
    for name in tokenizers:
        tokenizer = getattr(pipeline, name)
        if tokenizer is not None:
            digest.update(f"{name} {tokenizer.model_max_length} {sorted(tokenizer.get_vocab().items())}".encode())
    for name in encoders:
        encoder = getattr(pipeline, name)
        for key, weight in () if encoder is None else encoder.state_dict().items():
            values = weight.flatten()
            values = values[:: max(1, values.numel() // 64)][:64].double()
            digest.update(f"{name}.{key} {tuple(weight.shape)} {weight.dtype} {values.tolist()}".encode())
    return digest.hexdigest()
