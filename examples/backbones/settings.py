"""How a pretrained model is loaded."""

from dataclasses import dataclass


@dataclass
class ModelSettings:
    """``name``: "tiny", a hub id, or a local folder that ``from_pretrained`` reads.

    ``precision``: "no" computes in fp32, "bf16" and "fp16" load the frozen weights so and run under autocast; LoRA
    weights stay fp32. ``resolution``: pixels of the square images, 0 for the model's own. ``checkpointing`` recomputes
    activations in the backward pass: less memory, one more forward. ``max_tokens`` truncates the T5 sequence.
    ``prompt_cache``: a folder for prompt embeddings, "" keeps them in memory only. ``offload_text_encoders`` keeps them
    on the CPU except while prompts are encoded. ``decode_batch``: images decoded at once.
    """

    name: str = "tiny"
    precision: str = "no"
    resolution: int = 0
    checkpointing: bool = False
    max_tokens: int = 128
    prompt_cache: str = ""
    offload_text_encoders: bool = True
    decode_batch: int = 8

    def __post_init__(self) -> None:
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"model.precision must be no, bf16 or fp16, got {self.precision!r}")
        if self.resolution < 0 or self.resolution % 8:
            raise ValueError(f"model.resolution must be 0 or a positive multiple of 8, got {self.resolution}")
        if self.max_tokens < 1 or self.decode_batch < 1:
            raise ValueError("model.max_tokens and model.decode_batch must be at least 1")
