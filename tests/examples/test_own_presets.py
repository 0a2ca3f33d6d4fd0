"""Which preset a model gets, by what its folder says it is."""

import json
from pathlib import Path

import pytest

from backbones.load import SHIPPED, load_backbone
from backbones.settings import ModelSettings
from trainer.config import load_config
from trainer.own_presets import PRESETS_OF, own_preset


@pytest.mark.parametrize("algorithm", ["nft", "crd", "slider"])
@pytest.mark.parametrize("model", PRESETS_OF)
def test_every_kind_of_model_has_a_preset_per_algorithm(model: str, algorithm: str, tmp_path: Path) -> None:
    name = model
    if model == "TinyModel":
        name = str(SHIPPED["tiny"])
    elif model not in SHIPPED:
        name = str(tmp_path)
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": model}))
    preset = own_preset(name, algorithm)
    assert load_config(preset).algorithm == algorithm


def test_unknown_models_are_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(ValueError, match=r"is a StableDiffusionXLPipeline, which has no preset: .*--config"):
        own_preset(str(tmp_path), "nft")
    with pytest.raises(ValueError, match=r"there are backbones for .*LTX2Pipeline: add yours to .*BACKBONES.md"):
        load_backbone(ModelSettings(name=str(tmp_path)))
    with pytest.raises(ValueError, match=r"holds no model_index.json: give the folder of a saved pipeline"):
        own_preset(str(tmp_path.parent), "nft")
