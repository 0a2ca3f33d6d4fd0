"""Small random models with the outer form of GenEval's, saved as a hub would hold them."""

import string
from pathlib import Path

import torch
import transformers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)


def _processor(name: str) -> type:
    """An image processor class: torchvision's where that is installed, else Pillow's."""
    plain = getattr(transformers, f"{name}Pil", None)
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return plain or getattr(transformers, name)
    return getattr(transformers, name)


def save_mask2former(folder: Path, labels: int = 80) -> Path:
    """A Mask2Former on a Swin of width 8 with 20 queries, sure of the classes it draws."""
    torch.manual_seed(5)
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=20,
        num_labels=labels,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        # As initialised, classes are nearly uniform and masks nearly constant over the image: classes get contrast, and
        # the masks lose what is common to all pixels.
        model.class_predictor.weight.normal_(0, 3)
        projection = model.model.pixel_level_module.decoder.mask_projection
        features: list[torch.Tensor] = []
        hook = projection.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
        model(pixel_values=torch.randn(1, 3, 64, 64))
        hook.remove()
        common = torch.nn.functional.normalize(features[0].mean((0, 2, 3)), dim=0)
        weight = projection.weight[..., 0, 0]
        projection.weight.copy_(20 * (weight - torch.outer(weight @ common, common))[..., None, None])
        projection.bias.zero_()
    model.save_pretrained(folder)
    _processor("Mask2FormerImageProcessor")().save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP of width 16 that reads letters."""
    torch.manual_seed(6)
    words = ["<|startoftext|>", "<|endoftext|>"]
    for letter in string.ascii_lowercase + "-":
        words += [letter, f"{letter}</w>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    _processor("CLIPImageProcessor")(**size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
