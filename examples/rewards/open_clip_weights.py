"""OpenCLIP weights in transformers' CLIP model."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

# OpenCLIP's names outside of the blocks, and inside of one.
NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TRANSPOSED = ("visual.proj", "text_projection")
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an OpenCLIP model ``state`` under transformers' names.

    Raises ``ValueError`` for a name that OpenCLIP's plain ViT does not have.
    """
    converted = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        block = BLOCK.fullmatch(name)
        if name in NAMES:
            converted[NAMES[name]] = tensor.T.contiguous() if name in TRANSPOSED else tensor
        elif block and block[3] == "attn.in_proj":
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{_layer(block)}.self_attn.{part}_proj.{block[4]}"] = rows.contiguous()
        elif block and block[3] in IN_BLOCK:
            converted[f"{_layer(block)}.{IN_BLOCK[block[3]]}.{block[4]}"] = tensor
        else:
            raise ValueError(f"{name!r} is not a tensor of an OpenCLIP ViT model")
    return converted


def _layer(block: re.Match[str]) -> str:
    return f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}"


def load_open_clip(path: str | Path, config: str) -> CLIPModel:
    """The model of an OpenCLIP checkpoint, {"state_dict": {name: tensor}} or the dict itself, on the CPU.

    ``config``: hub id or folder with the configuration of the same architecture for transformers. The file is read
    without unpickling code. Raises ``ValueError`` where its tensors are not those of that architecture.
    """
    state = torch.load(path, "cpu", weights_only=True)
    model, info = CLIPModel.from_pretrained(
        None,
        config=CLIPConfig.from_pretrained(config),
        state_dict=convert(state.get("state_dict", state)),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            example = next(iter(info[problem]))
            raise ValueError(f"{path} does not fit the model of {config}: {problem} {example}")
    return model
