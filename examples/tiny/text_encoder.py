"""The small learned text encoder: words and single letters in, sequence and pooled embeddings out."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .captions import COLOURS, COUNTS, EXTRAS, GROUNDS, RELATIONS, SHAPES, SKIES
from .font import LETTERS

MAX_TOKENS = 10


def _vocabulary() -> list[str]:
    phrases = (*COLOURS, *COUNTS, *EXTRAS, *GROUNDS, *RELATIONS, *SKIES, "the word in over")
    words = {word for phrase in phrases for word in phrase.split()}
    words |= {shape + plural for shape in SHAPES for plural in ("", "s")}
    return ["<pad>", "<unknown>", *sorted(words), *LETTERS]


VOCABULARY = {token: index for index, token in enumerate(_vocabulary())}


def tokenize(captions: Sequence[str]) -> Tensor:
    """Token ids [B, 10], padded; a word in capitals becomes its letters.

    Raises ``ValueError`` for a caption of more than 10 tokens.
    """
    ids = torch.zeros(len(captions), MAX_TOKENS, dtype=torch.long)
    for row, caption in enumerate(captions):
        tokens = re.findall(r"[A-Z]|[a-z]+", caption)
        if len(tokens) > MAX_TOKENS:
            raise ValueError(
                f"caption {caption!r} has {len(tokens)} tokens, the tiny model reads {MAX_TOKENS}: shorten it"
            )
        for column, token in enumerate(tokens):
            ids[row, column] = VOCABULARY.get(token, VOCABULARY["<unknown>"])
    return ids


class TextEncoder(nn.Module):
    """Two pre-norm transformer layers over token and position embeddings.

    ``forward(captions)`` returns the sequence [B, 10, width] and its mean over tokens [B, width].
    """

    def __init__(self, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.token = nn.Embedding(len(VOCABULARY), width)
        self.position = nn.Parameter(0.02 * torch.randn(MAX_TOKENS, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = tokenize(captions).to(self.position.device)
        sequence = self.norm(self.layers(self.token(ids) + self.position))
        return sequence, sequence.mean(dim=1)
