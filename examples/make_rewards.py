"""Write a folder with reward models, small and of random weights, offline.

    python examples/make_rewards.py runs/tiny-rewards

What is written loads as the real weights do: ``clip`` serves PickScore, CLIPScore, GenEval's colours and the CLIP
rewards of edits and videos, ``dino`` those of kind "dino", ``hps.pt`` is an OpenCLIP checkpoint for HPSv2, ``detector``
a Mask2Former for GenEval, ``judge`` a LLaVA for the judge of edits. The scores mean nothing. OCR needs no folder:
rapidocr's wheel carries its models.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    SwinConfig,
)

from backbones.tokenizers import clip_tokenizer
from quiet import quiet
from rewards.clip_model import ImageProcessor
from rewards.open_clip_weights import IN_BLOCK, NAMES, TRANSPOSED

VOCABULARY, SIZE, WIDTH, PATCH = 1000, 32, 16, 8
# The outer form of a small transformer.
SMALL = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# A conversation of one question as LLaVA 1.5 writes it.
CHAT = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT: "
    "{% endif %}"
)


def make(folder: Path, seed: int = 0) -> Path:
    """Write the models to ``folder`` and return it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(), quiet("diffusers", "transformers"):
        torch.manual_seed(seed)
        model = randomised(CLIPModel(clip_config()))
        model.save_pretrained(folder / "clip")
        clip_tokenizer(VOCABULARY).save_pretrained(folder / "clip")
        crop = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
        ImageProcessor(**crop).save_pretrained(folder / "clip")
        torch.save({"state_dict": open_clip_state(model.state_dict())}, folder / "hps.pt")
        save_mask2former(folder / "detector")
        save_dino(folder / "dino")
        save_judge(folder / "judge")
    return folder


def randomised(model: nn.Module) -> nn.Module:
    """``model`` with weights large enough that its outputs depend on what goes in."""
    for weight in model.parameters():
        if weight.dim():
            nn.init.normal_(weight, std=0.3)
    return model


def clip_config() -> CLIPConfig:
    """A CLIP of width 16 for images of 32 pixels."""
    text = {**SMALL, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**SMALL, "image_size": SIZE, "patch_size": PATCH}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)


def open_clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ``CLIPModel`` under OpenCLIP's names: the inverse of ``rewards.open_clip_weights.convert``."""
    names = {theirs: own for own, theirs in NAMES.items()}
    in_block = {theirs: own for own, theirs in IN_BLOCK.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name in names:
            found[names[name]] = tensor.T.contiguous() if names[name] in TRANSPOSED else tensor
        elif block is not None:
            prefix = f"{'visual.' if block[1] == 'vision' else ''}transformer.resblocks.{block[2]}"
            if block[3] in in_block:
                found[f"{prefix}.{in_block[block[3]]}.{block[4]}"] = tensor
            elif block[3] == "self_attn.q_proj":
                parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                found[f"{prefix}.attn.in_proj_{block[4]}"] = torch.cat(parts)
    return found


def processor(name: str) -> type:
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
    processor("Mask2FormerImageProcessor")().save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    """A DINOv2 of width 16 for images of 32 pixels, with its image processor."""
    torch.manual_seed(6)
    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=PATCH
    )
    randomised(Dinov2Model(config)).save_pretrained(folder)
    crop = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    processor("BitImageProcessor")(**crop).save_pretrained(folder)
    return folder


def save_judge(folder: Path) -> Path:
    """A LLaVA of width 16 for images of 32 pixels that reads bytes and has the tokens Yes and No."""
    torch.manual_seed(7)
    tokenizer = byte_tokenizer(["<pad>", "<s>", "</s>", "<image>"], ["Yes", "No"])
    text = LlamaConfig(
        **SMALL,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(**SMALL, image_size=SIZE, patch_size=PATCH)
    image = tokenizer.convert_tokens_to_ids("<image>")
    # The id has the second name in older releases of transformers.
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, image_token_index=image)
    randomised(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    crop = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    LlavaProcessor(
        image_processor=processor("CLIPImageProcessor")(**crop),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)
    return folder


def byte_tokenizer(special: list[str], words: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes and ``words``; ``special`` begins with padding, start and end."""
    names = [*special, *words, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    known = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **known, additional_special_tokens=special[3:])
    tokenizer.add_tokens(words)
    return tokenizer


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write")
    print(f"reward models: {make(parser.parse_args().folder)}")


if __name__ == "__main__":
    main()
