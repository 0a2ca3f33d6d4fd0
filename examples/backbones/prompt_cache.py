"""Embeddings of prompts, computed once: in memory and, if wanted, on disk."""

import hashlib
import os
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# Named tensors of one prompt, without the batch, on the CPU.
Entry = dict[str, Tensor]
_CHECKSUM = "sha256"


class PromptCache:
    """Wraps a function that encodes prompts.

    A prompt of SD3.5 takes 1.7 MB in half precision (77 + 128 tokens of width 4096): 25 000 of them are 42 GB on disk,
    and the default bound holds some 1200 in memory.

    Args:
        encode: texts to named tensors, each [B, ...]. It always gets ``batch`` texts (the last one repeated), so that
            all batches take the same kernels and an embedding does not depend on what else was missing.
        fingerprint: whatever else an embedding depends on: the encoders, the precision, the length.
        folder: where embeddings are kept for other processes and later runs; ``None``: in memory only. Ranks may share
            it: files appear whole or not at all.
        batch: texts per call of ``encode``.
        max_bytes: of embeddings kept in memory; the least recently used go first.
        ready: a context that is entered once per request that has to encode.

    Raises:
        ValueError: ``batch`` below 1.
    """

    def __init__(
        self,
        encode: Callable[[list[str]], dict[str, Tensor]],
        fingerprint: str,
        folder: str | Path | None = None,
        batch: int = 8,
        max_bytes: int = 2 * 2**30,
        ready: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.encode, self.ready = encode, ready
        self.fingerprint, self.batch, self.max_bytes = fingerprint, batch, max_bytes
        self.folder = Path(folder) if folder else None
        self._memory: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings in the order of ``texts``, each [B, ...], on the CPU; repeated texts are encoded once.

        Raises ``ValueError`` for an empty list, and for an embedding that is not finite, which is not kept.
        """
        if not texts:
            raise ValueError("there are no prompts to encode")
        found = {text: self._find(text) for text in dict.fromkeys(texts)}
        missing = [text for text, entry in found.items() if entry is None]
        if missing:
            with self.ready():
                for start in range(0, len(missing), self.batch):
                    found |= self._encoded(missing[start : start + self.batch])
        return {name: torch.stack([found[text][name] for text in texts]) for name in found[texts[0]]}

    def path(self, text: str) -> Path | None:
        """The file of a prompt; ``None`` without a folder."""
        if self.folder is None:
            return None
        key = hashlib.sha256(f"{self.fingerprint}\0{text}".encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def _encoded(self, texts: list[str]) -> dict[str, Entry]:
        """Encode and keep at most one batch, all of it finite."""
        padded = texts + texts[-1:] * (self.batch - len(texts))
        tensors = {name: tensor.detach().cpu() for name, tensor in self.encode(padded).items()}
        # Clones: a view would keep the whole batch alive.
        entries = {text: {name: tensor[i].clone() for name, tensor in tensors.items()} for i, text in enumerate(texts)}
        for text, entry in entries.items():
            for name, tensor in entry.items():
                if not tensor.isfinite().all():
                    raise ValueError(
                        f"the text encoder made {name!r} of the prompt {text[:60]!r} that is not finite: encoders such "
                        "as T5 and Gemma overflow in fp16, use model.precision=bf16"
                    )
        for text, entry in entries.items():
            path = self.path(text)
            if path is not None:
                _write(path, entry)
            self._keep(text, entry)
        return entries

    def _find(self, text: str) -> Entry | None:
        """From memory, else from disk."""
        if text in self._memory:
            self._memory.move_to_end(text)
            return self._memory[text]
        path = self.path(text)
        entry = None if path is None else _read(path)
        if entry is not None:
            self._keep(text, entry)
        return entry

    def _keep(self, text: str, entry: Entry) -> None:
        self._memory[text] = entry
        self._bytes += _size(entry)
        while self._bytes > self.max_bytes:
            self._bytes -= _size(self._memory.popitem(last=False)[1])


def _size(entry: Entry) -> int:
    return sum(tensor.nbytes for tensor in entry.values())


def _checksum(entry: Entry) -> str:
    digest = hashlib.sha256()
    for name in sorted(entry):
        digest.update(f"{name}{entry[name].dtype}{tuple(entry[name].shape)}".encode())
        digest.update(entry[name].contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _write(path: Path, entry: Entry) -> None:
    """Whole or not at all: to a file of our own, which then takes the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.stem}.{os.getpid()}.{uuid.uuid4().hex}")
    try:
        save_file(entry, own, metadata={_CHECKSUM: _checksum(entry)})
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)


def _read(path: Path) -> Entry | None:
    """What the file holds; ``None`` if there is none, or, with a warning, if it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            entry = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checksum = (file.metadata() or {}).get(_CHECKSUM)
        if entry and checksum == _checksum(entry):
            return entry
        reason = "its checksum does not match"
    except (SafetensorError, OSError) as error:
        reason = str(error)
    warnings.warn(f"{path} is damaged ({reason}): the prompt is encoded again", stacklevel=2)
    return None
