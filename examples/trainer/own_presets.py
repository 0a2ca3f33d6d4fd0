"""The preset that a model gets where no config is named."""

from backbones.load import SHIPPED, kind_of

# By model of this repository or class of pipeline: a preset per algorithm.
PRESETS_OF = {
    "tiny": {"nft": "tiny", "crd": "crd_tiny", "slider": "slider_tiny"},
    "tiny-edit": {"nft": "tiny_edit", "crd": "crd_tiny_edit", "slider": "slider_tiny_edit"},
    "tiny-video": {"nft": "tiny_video", "crd": "crd_tiny_video", "slider": "slider_tiny_video"},
    "TinyModel": {"nft": "tiny", "crd": "crd_tiny", "slider": "slider_tiny"},
    "StableDiffusion3Pipeline": {"nft": "marble_sd35_1gpu", "crd": "crd_sd35", "slider": "slider_sd35"},
    "FluxKontextPipeline": {"nft": "kontext_edit", "crd": "crd_kontext", "slider": "slider_kontext"},
    "LTX2Pipeline": {"nft": "ltx2_video", "crd": "crd_ltx2", "slider": "slider_ltx2"},
}


def own_preset(model: str, algorithm: str) -> str:
    """The preset of ``model``: a name from this repository, a hub id or a folder, whose model_index.json is read.

    Raises ``ValueError`` for what is no model, and for a pipeline without a preset.
    """
    kind = model if model in SHIPPED else kind_of(model)
    if kind not in PRESETS_OF:
        raise ValueError(
            f"{model} is a {kind}, which has no preset: there are {', '.join(PRESETS_OF)}; for your own backbone "
            "(examples/BACKBONES.md) give --config"
        )
    return PRESETS_OF[kind][algorithm]
