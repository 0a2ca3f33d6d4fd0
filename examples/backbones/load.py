"""Which backbone a name means."""

from importlib import import_module
from pathlib import Path

from diffusers import DiffusionPipeline

from .interface import Backbone
from .settings import ModelSettings

# The pipeline's class, as model_index.json names it: "module:class".
BACKBONES = {
    "StableDiffusion3Pipeline": "backbones.sd3:SD3Backbone",
    "FluxKontextPipeline": "backbones.flux_kontext:FluxKontextBackbone",
    "LTX2Pipeline": "backbones.ltx2:LTX2Backbone",
}


def load_backbone(settings: ModelSettings, device: str = "cpu") -> Backbone:
    """Load ``settings.name``; its type is read from the model itself.

    Raises ``ValueError`` for a name that is neither a model of this repository nor a pipeline with a backbone here.
    """
    folder = Path(settings.name)
    if settings.name == "tiny" or (folder / "text_encoder.json").is_file():
        from .tiny import TinyBackbone

        return TinyBackbone.from_pretrained(settings, device)
    kind = pipeline_class(settings.name)
    if kind not in BACKBONES:
        raise ValueError(
            f"{settings.name} is a {kind}; there are backbones for {', '.join(BACKBONES)}: add one to "
            "examples/backbones/load.py"
        )
    module, name = BACKBONES[kind].split(":")
    return getattr(import_module(module), name).from_pretrained(settings, device)


def pipeline_class(name: str) -> str:
    """The ``_class_name`` in the model_index.json of a folder or a hub id."""
    if Path(name).is_dir() and not (Path(name) / "model_index.json").is_file():
        raise ValueError(f"{name} holds no model_index.json: give the folder of a saved pipeline")
    try:
        return str(DiffusionPipeline.load_config(name)["_class_name"])
    except OSError as error:
        raise ValueError(f"{name!r} is neither a folder nor a model that can be read from the hub: {error}") from error
