"""One LoRA adapter as a file that diffusers reads."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from peft.utils import get_peft_model_state_dict
from torch import nn


def save_lora(pipeline: type, transformer: nn.Module, folder: Path, adapter: str, write: bool = True) -> None:
    """Write ``folder``/pytorch_lora_weights.safetensors: the weights of ``adapter``, its config (with α) as metadata.

    ``load_lora_weights(folder)`` of ``pipeline``, a class of diffusers' pipelines, reads it. Sharded weights are
    gathered: then all ranks must call, those that shall not write a file with ``write=False``. The file appears whole
    or not at all. Raises ``ValueError`` for an unknown adapter.
    """
    known = getattr(transformer, "peft_config", {})
    if adapter not in known:
        raise ValueError(f"the transformer has no adapter {adapter!r}, only {', '.join(known) or 'none'}")
    weights = get_peft_model_state_dict(transformer, adapter_name=adapter)
    whole = {name: w.full_tensor() if hasattr(w, "full_tensor") else w for name, w in weights.items()}
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".") as own:
            pipeline.save_lora_weights(
                own,
                transformer_lora_layers={name: weight.detach().cpu() for name, weight in whole.items()},
                transformer_lora_adapter_metadata=known[adapter].to_dict(),
            )
            for file in Path(own).iterdir():
                os.replace(file, folder / file.name)
