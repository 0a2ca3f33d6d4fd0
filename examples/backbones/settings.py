"""How a pretrained model is loaded."""

from dataclasses import dataclass

AUDIO = ("isolated", "frozen", "trained")


@dataclass
class ModelSettings:
    """``name``: "tiny", "tiny-edit", "tiny-video", a hub id, or a local folder that ``from_pretrained`` reads.

    ``precision``: "no" computes in fp32, "bf16" and "fp16" load the frozen weights so and run under autocast; LoRA
    weights stay fp32. ``resolution``: pixels of the square images, 0 for the model's own. ``checkpointing`` recomputes
    activations in the backward pass: less memory, one more forward. ``max_tokens`` truncates the T5 sequence.
    ``prompt_cache``: a folder for prompt embeddings, "" keeps them in memory only. ``offload_text_encoders`` keeps them
    on the CPU except while prompts are encoded.

    ``decode_batch``: samples decoded at once, about 1 GB each: images of 512 x 512 pixels, or videos of 25 such frames;
    of larger ones as many fewer. ``tiling`` decodes in overlapping tiles: less memory, small seams. It changes only
    what has a side above that of a tile: 512 pixels for LTX-2, the ``sample_size`` of its VAE for SD3.5 and Flux
    Kontext (1024).

    Flux Kontext: ``guidance``, the scale that its network is told (a guidance-distilled model; not classifier-free
    guidance, which is ``rollout.guidance``); ``resolution`` is the side of a square with as many pixels as an image.

    LTX-2: ``frames`` of a video, 1 more than a multiple of the VAE's temporal ratio (8); ``frame_rate`` per second.
    ``audio``: "isolated" lets the video stream run without the audio, which is left out of everything; "frozen" samples
    the audio along and lets the video hear it, outside the loss; "trained" has it in the loss too.
    """

    name: str = "tiny"
    precision: str = "no"
    resolution: int = 0
    checkpointing: bool = False
    max_tokens: int = 128
    prompt_cache: str = ""
    offload_text_encoders: bool = True
    decode_batch: int = 8
    tiling: bool = False
    guidance: float = 2.5
    frames: int = 25
    frame_rate: float = 24.0
    audio: str = "isolated"

    def __post_init__(self) -> None:
        # To YAML the bare word no, as in model.precision=no, is the boolean; OmegaConf makes a string of it.
        if self.precision == "False":
            self.precision = "no"
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"model.precision must be no, bf16 or fp16, got {self.precision!r}")
        if self.resolution < 0 or self.resolution % 8:
            raise ValueError(f"model.resolution must be 0 or a positive multiple of 8, got {self.resolution}")
        if self.max_tokens < 1 or self.decode_batch < 1:
            raise ValueError("model.max_tokens and model.decode_batch must be at least 1")
        if self.frames < 1 or not self.frame_rate > 0 or self.guidance < 0:
            raise ValueError("model.frames must be at least 1, model.frame_rate positive, model.guidance at least 0")
        if self.audio not in AUDIO:
            raise ValueError(f"model.audio must be one of {AUDIO}, got {self.audio!r}")
