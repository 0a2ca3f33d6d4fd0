"""Every tuner type of peft on a small net of linear, convolution, embedding and norm layers.

A name begins with the ``peft.PeftType``; what follows is a variant of it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .case import Batch, Case, Registry

CASES = Registry("peft")
WIDTH, WORDS, LENGTH, CHANNELS = 16, 20, 6, 4
LINEAR = ["query", "key", "value", "output", "wide", "narrow"]


class SmallBlock(nn.Module):
    """A transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.turn = nn.Parameter(torch.eye(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        heads = [layer(normed).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        x = x + self.output(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.narrow(functional.gelu(self.wide(self.norm2(x @ self.turn))))


class SmallNet(nn.Module):
    """Words and an image [B, C, 4, 4] as one sequence through two blocks; predicts the image."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.patches = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList([SmallBlock() for _ in range(2)])
        self.head = nn.Linear(WIDTH, CHANNELS)

    def forward(self, words: Tensor, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).mT
        x = torch.cat([self.words(words), patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, words.shape[1] :])


def _inputs(batch: Batch) -> dict[str, Any]:
    return {"words": batch.integers(WORDS, LENGTH), "image": batch.normal(CHANNELS, 4, 4)}


def add(name: str, targets: Sequence[str] | None = LINEAR, **options: Any) -> None:
    """A tuner with the options of its configuration on the layers ``targets``."""

    def make() -> nn.Module:
        import peft
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        kind = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[name.split()[0]]]
        chosen = {} if targets is None else {"target_modules": list(targets)}
        net = SmallNet().requires_grad_(False)
        return peft.get_peft_model(net, kind(**chosen, **options))

    CASES[name] = Case("peft", name, make, _inputs, modes=("adapter",))


def _lora() -> None:
    random = {"init_lora_weights": False}
    add("LORA", r=4, **random)
    add("LORA rsLoRA", r=4, use_rslora=True, **random)
    add("LORA DoRA", r=4, use_dora=True, **random)
    add("LORA PiSSA", r=4, init_lora_weights="pissa")
    add("LORA OLoRA", r=4, init_lora_weights="olora")
    add("LORA orthogonal", r=4, init_lora_weights="orthogonal")
    add("LORA dropout", r=4, lora_dropout=0.1, **random)
    add("LORA bias", r=4, lora_bias=True, **random)
    add("LORA biases of the layers", r=4, bias="all", **random)
    add("LORA convolution", ["patches"], r=4, **random)
    add("LORA convolution, DoRA", ["patches"], r=4, use_dora=True, **random)
    add("LORA embedding", ["words"], r=4, **random)
    add("LORA embedding, DoRA", ["words"], r=4, use_dora=True, **random)
    add("LORA all layers", [*LINEAR, "head", "patches", "words"], r=4, **random)
    add("LORA with norms saved", r=4, modules_to_save=["norm1", "norm2"], **random)
    add("LORA with trained tokens", r=4, trainable_token_indices={"words": [1, 2, 3]}, **random)
    add("LORA bare parameter", [], r=4, target_parameters=["turn"], **random)


def _others() -> None:
    add("ADALORA", init_r=4, target_r=2, total_step=100)
    add("ADAMSS", r=4, num_subspaces=2)
    add("BEFT")
    add("BOFT", boft_block_size=4)
    add("C3A", block_size=8)
    add("DEFT", r=4)
    add("DELORA", r=4)
    add("FOURIERFT", n_frequency=16)
    add("FROD", progressbar=False)
    add("GLORA", r=4)
    add("GRALORA", r=4, gralora_k=2)
    add("HIRA", r=4)
    add("HRA", r=4)
    add("IA3", feedforward_modules=["narrow"])
    add("LILY", r=4, stride_A=1, num_B=2)
    add("LN_TUNING", ["norm1", "norm2"])
    add("LOHA", r=4)
    add("LOHA convolution", ["patches"], r=4)
    add("LOKR", r=4)
    add("LOKR convolution", ["patches"], r=4)
    add("MISS", r=4)
    add("OFT", r=0, oft_block_size=4)
    add("OFT convolution", ["patches"], r=0, oft_block_size=4)
    add("OSF")
    add("PEANUT", r=4)
    add("PSOFT", r=4)
    add("PVERA", r=4)
    add("RANDLORA", r=4, randlora_alpha=8)
    add("ROAD", group_size=4)
    add("SHIRA", r=2)
    add("SUPERTUNING")
    add("TINYLORA", r=2, u=8)
    add("TRAINABLE_TOKENS", ["words"], token_indices=[1, 2, 3])
    add("UNILORA", r=4, theta_d_length=64)
    add("VBLORA", r=4, num_vectors=8, vector_length=8, topk=2)
    add("VERA", r=4)
    add("WAVEFT", n_frequency=16)


_lora()
_others()
CASES.without |= {
    "LORA int8": "needs bitsandbytes",
    "LORA nf4": "needs bitsandbytes",
    "LORA EVA": "its start is made from batches of a data set; trained it is LORA",
    "ADAPTION_PROMPT": "adapts the attention of language models of transformers only",
    "CARTRIDGE": "a trained cache of keys and values for language models",
    "CPT": "prompts of language models",
    "MULTITASK_PROMPT_TUNING": "prompts of language models",
    "POLY": "needs the task of every sample in the call of its own model class",
    "PREFIX_TUNING": "prompts of language models",
    "PROMPT_TUNING": "prompts of language models",
    "P_TUNING": "prompts of language models",
    "SHADOW": "adds a second language model beside the first",
    "XLORA": "mixes LoRA adapters that were trained before, inside a language model",
}
