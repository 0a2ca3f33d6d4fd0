"""Small tokenizers of the kinds that the pipelines use, made on the spot: nothing is downloaded."""

import json
import string
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPTokenizer, GemmaTokenizer, T5TokenizerFast

from tiny.captions import KINDS, split

START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"


def clip_tokenizer(vocabulary: int) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer (lower case, 77 positions) with at most ``vocabulary`` ids.

    Bytes, and the prefixes of the commonest words, so that these are one token each. Needs ``vocabulary`` ≥ 514.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([START, END, *letters, *(letter + SUFFIX for letter in letters)])
    merges: dict[str, None] = {}
    for word in _words():
        pieces = [*word[:-1], word[-1] + SUFFIX]
        prefixes = ["".join(pieces[: i + 1]) for i in range(len(pieces))]
        if len(tokens.keys() | set(prefixes)) > vocabulary:
            break
        tokens |= dict.fromkeys(prefixes)
        merges |= dict.fromkeys(f"{left} {right}" for left, right in zip(prefixes, pieces[1:], strict=False))
    with TemporaryDirectory() as folder:
        path = Path(folder)
        ids = {token: i for i, token in enumerate(tokens)}
        (path / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
        (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": END}
        (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(path)


def t5_tokenizer(vocabulary: int) -> T5TokenizerFast:
    """T5's unigram tokenizer (padding 0, end 1, unknown 2) with at most ``vocabulary`` ids: characters and words."""
    pieces = [*dict.fromkeys("▁" + string.printable.strip())]
    words = [f"▁{word}" for word in _words()]
    # Log-probabilities: one word costs less than its letters.
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -10.0) for piece in pieces)]
    scores += [(word, -10.0) for word in words[: vocabulary - len(scores)]]
    raw = Tokenizer(models.Unigram(scores, unk_id=2))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        raw.save(str(path))
        return T5TokenizerFast(tokenizer_file=str(path), extra_ids=0, model_max_length=512)


def gemma_tokenizer(vocabulary: int) -> GemmaTokenizer:
    """Gemma's byte-pair tokenizer (a start token, spaces as "▁", unknown letters as bytes) with at most ``vocabulary``
    ids: bytes, characters, and prefixes of the commonest words. Needs ``vocabulary`` ≥ 356.
    """
    letters = ["▁", *string.printable.strip()]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *bytes_, *letters])
    merges: dict[tuple[str, str], None] = {}
    for word in _words():
        pieces = ["▁", *word]
        prefixes = ["".join(pieces[: i + 1]) for i in range(len(pieces))]
        if len(tokens.keys() | set(prefixes)) > vocabulary:
            break
        tokens |= dict.fromkeys(prefixes)
        merges |= dict.fromkeys(zip(prefixes, pieces[1:], strict=False))
    ids = {token: i for i, token in enumerate(tokens)}
    return GemmaTokenizer(ids, [*merges], add_bos_token=True, model_max_length=1024)


def _words() -> list[str]:
    """The words of the tiny world's captions in lower case, the commonest first."""
    counts = Counter(
        word
        for kind in KINDS
        for caption in split(kind, held_out=False)
        for word in "".join(c if c.isalpha() else " " for c in caption.text.lower()).split()
    )
    return sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
