"""Rewards by name.

A module registers a factory; it is imported when its reward is first built, so that what a reward needs (transformers,
rapidocr, ...) is only needed by those who use it.
"""

from dataclasses import dataclass, field
from importlib import import_module
from math import isfinite
from typing import Any

import torch

from quiet import quiet

from .interface import Reward
from .prefixed import Prefixed

DTYPES = ("float32", "float16", "bfloat16")

# name: "module:factory"; a factory takes a RewardSettings and returns a Reward.
FACTORIES = {
    "pickscore": "rewards.clip_scores:pickscore",
    "clipscore": "rewards.clip_scores:clipscore",
    "hpsv2": "rewards.hps:hpsv2",
    "aesthetic": "rewards.aesthetic:aesthetic",
    "imagereward": "rewards.image_reward:imagereward",
    "ocr": "rewards.ocr:ocr",
    "geneval": "rewards.geneval:geneval",
    "source_preservation": "rewards.source_preservation:source_preservation",
    "edit_adherence": "rewards.edit_adherence:edit_adherence",
    "edit_judge": "rewards.edit_judge:edit_judge",
    "clip_style": "rewards.clip_style:clip_style",
    "temporal_consistency": "rewards.temporal_consistency:temporal_consistency",
    "reading": "rewards.tiny_world:reading",
    "composition": "rewards.tiny_world:composition",
    "colour": "rewards.tiny_world:colour",
    "contrast": "rewards.tiny_world:contrast",
    "clean": "rewards.tiny_world:clean",
    "soft": "rewards.tiny_world:soft",
    "adherence": "rewards.tiny_edit:adherence",
    "preservation": "rewards.tiny_edit:preservation",
    "vivid": "rewards.tiny_video:vivid",
    "steady": "rewards.tiny_video:steady",
}


@dataclass
class RewardSettings:
    """How one reward is computed and what it counts.

    ``weight``: its factor in the weighted sum, its fixed α under ``equal``, its prior under ``marble``. ``scale``
    multiplies the score before anything else (the recipe divides PickScore by 26). ``device``, ``dtype`` ("float32",
    "float16", "bfloat16") and ``batch_size`` say where and how the model runs. ``url``: the address of a reward server
    that has this reward; nothing is then loaded here. ``prefix`` is put before every prompt that it reads ("a pencil
    sketch of "). ``frame_stride``: of videos it sees every so-many-th frame, the first included; a reward of images
    scores the mean over them. ``options`` go to the reward: ``{"model": "/weights/pickscore"}`` instead of its hub id.
    Raises ``ValueError`` for values that no reward can have, before anything is loaded.
    """

    weight: float = 1.0
    scale: float = 1.0
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 16
    url: str = ""
    prefix: str = ""
    frame_stride: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isfinite(self.weight) or not isfinite(self.scale):
            raise ValueError(f"a reward's weight and scale must be finite, got {self.weight} and {self.scale}")
        if self.dtype not in DTYPES:
            raise ValueError(f"a reward's dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {self.dtype!r}")
        if self.batch_size < 1:
            raise ValueError(f"a reward's batch_size must be at least 1, got {self.batch_size}")
        if self.frame_stride < 1:
            raise ValueError(f"a reward's frame_stride must be at least 1, got {self.frame_stride}")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"a reward's device must be one that torch knows, got {self.device!r}") from error


def build(name: str, settings: RewardSettings) -> Reward:
    """The reward ``name``, ready to score prompts with ``settings.prefix`` before them.

    Raises ``ValueError`` for an unknown name, a GPU that is not there, or weights that cannot be loaded, and
    ``ImportError`` with the install command where a package is missing.
    """
    reward = _build(name, settings)
    return Prefixed(reward, settings.prefix) if settings.prefix else reward


def _build(name: str, settings: RewardSettings) -> Reward:
    if settings.url:
        from .remote import RemoteReward

        return RemoteReward(settings.url, name, settings)
    if name not in FACTORIES:
        known = ", ".join(FACTORIES)
        raise ValueError(f"unknown reward {name!r}: known are {known}; a new one goes into rewards.registry.FACTORIES")
    if torch.device(settings.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"reward {name}: there is no GPU here for its device {settings.device!r}; or set its url")
    module, factory = FACTORIES[name].split(":")
    try:
        with quiet("transformers"):
            return getattr(import_module(module), factory)(settings)
    except OSError as error:
        raise ValueError(
            f"reward {name}: its weights cannot be loaded with options {settings.options or '{}'}: give them as local "
            f"folders, or serve this reward elsewhere and set its url. {error}"
        ) from error
