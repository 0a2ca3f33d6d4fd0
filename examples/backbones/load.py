"""Which backbone a name means."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from .interface import Backbone
from .pipeline import PipelineBackbone
from .plan import Plan
from .settings import ModelSettings

# What is found in a folder: "module:class"; pipelines by their class, as model_index.json names it.
BACKBONES = {
    "TinyModel": "backbones.tiny:TinyBackbone",
    "StableDiffusion3Pipeline": "backbones.sd3:SD3Backbone",
    "FluxKontextPipeline": "backbones.flux_kontext:FluxKontextBackbone",
    "LTX2Pipeline": "backbones.ltx2:LTX2Backbone",
}

# Names of models that are part of this repository: where their weights are.
_EXAMPLES = Path(__file__).parents[1]
SHIPPED = {
    "tiny": _EXAMPLES / "tiny" / "checkpoint",
    "tiny-edit": _EXAMPLES / "tiny_edit" / "checkpoint",
    "tiny-video": _EXAMPLES / "tiny_video" / "checkpoint",
}


def load_backbone(settings: ModelSettings, device: str = "cpu") -> Backbone:
    """Load ``settings.name``; its type is read from the model itself.

    Raises ``ValueError`` for a name that is neither a model of this repository nor a pipeline with a backbone here.
    """
    kind, settings = _found(settings)
    return kind.from_pretrained(settings, device)


def read_plan(settings: ModelSettings, device: str = "cpu") -> Plan | None:
    """What ``settings.name`` makes, as known before weights are loaded; ``None`` for a backbone that has no plan.

    Raises ``ValueError`` as :func:`load_backbone` does.
    """
    kind, settings = _found(settings)
    return kind.read_plan(settings, torch.device(device)) if issubclass(kind, PipelineBackbone) else None


def _found(settings: ModelSettings) -> tuple[Any, ModelSettings]:
    """The backbone's class, and the settings with the place of a model of this repository."""
    settings = replace(settings, name=str(SHIPPED.get(settings.name, settings.name)))
    kind = kind_of(settings.name)
    if kind not in BACKBONES:
        raise ValueError(
            f"{settings.name} is a {kind}; there are backbones for {', '.join(BACKBONES)}: add yours to "
            "examples/backbones/load.py, examples/BACKBONES.md says how"
        )
    module, name = BACKBONES[kind].split(":")
    return getattr(import_module(module), name), settings


def kind_of(name: str) -> str:
    """What a folder or a hub id holds: the ``_class_name`` in its model_index.json, or "TinyModel".

    Raises ``ValueError`` where there is no model, or none that says its class.
    """
    if (Path(name) / "text_encoder.json").is_file():
        return "TinyModel"
    if Path(name).is_dir() and not (Path(name) / "model_index.json").is_file():
        raise ValueError(f"{name} holds no model_index.json: give the folder of a saved pipeline")
    try:
        index = DiffusionPipeline.load_config(name)
    except OSError as error:
        raise ValueError(f"{name!r} is neither a folder nor a model that can be read from the hub: {error}") from error
    if "_class_name" not in index:
        raise ValueError(f"the model_index.json of {name} has no _class_name: save the pipeline with save_pretrained")
    return str(index["_class_name"])
