"""Small random models with the outer form of GenEval's, saved as a hub would hold them."""

import string
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from make_rewards import processor, save_mask2former

__all__ = ["save_clip", "save_mask2former"]


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
    processor("CLIPImageProcessor")(**size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
