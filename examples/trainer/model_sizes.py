"""What an estimate needs to know of a model: its sizes, and the time of a forward."""

import statistics
import time
from collections import Counter

import torch
from torch import nn

from backbones.interface import Backbone, repeat
from prompts.prompt import Prompt

from .estimate import ModelSizes


def sizes_of(backbone: Backbone, prompt: Prompt) -> ModelSizes:
    """Read the sizes of ``backbone`` after its adapters were added, with one of them trainable.

    ``prompt`` is one that it serves.

    The tokens are those of the image's patches and of the longest conditioning; activations are taken to be of the type
    that most frozen weights have.

    Raises ``ValueError``: no trainable LoRA weights, or a transformer whose config does not tell its width.
    """
    lora = {name: p for name, p in backbone.transformer.named_parameters() if ".lora_" in name}
    trained = sum(p.numel() for p in lora.values() if p.requires_grad)
    if not trained:
        raise ValueError("the transformer has no trainable LoRA weights: add the adapters first")
    frozen = [p for name, p in backbone.transformer.named_parameters() if name not in lora]
    itemsizes = Counter[int]()
    for parameter in frozen:
        itemsizes[parameter.element_size()] += parameter.numel()
    frozen_bytes = sum(size * count for size, count in itemsizes.items())
    config = backbone.transformer.config
    try:
        width = config.num_attention_heads * config.attention_head_dim
    except AttributeError as error:
        raise ValueError(f"the transformer's config does not tell its size ({error}): make a ModelSizes") from error
    conditioning = backbone.encode([prompt])
    text = max((tensor.shape[1] for tensor in conditioning.values() if tensor.dim() == 3), default=0)
    return ModelSizes(
        frozen_bytes=frozen_bytes + sum(b.numel() * b.element_size() for b in backbone.transformer.buffers()),
        lora_parameters=trained,
        adapters=sum(p.numel() for p in lora.values()) // trained,
        tokens=backbone.tokens + text,
        width=width,
        layers=sum(len(each) for each in backbone.transformer.children() if isinstance(each, nn.ModuleList)),
        value_bytes=itemsizes.most_common(1)[0][0],
        prompt_bytes=sum(tensor.numel() * tensor.element_size() for tensor in conditioning.values()),
    )


@torch.no_grad()
def seconds_per_forward(backbone: Backbone, prompt: Prompt, batch: int, calls: int = 5) -> float:
    """Seconds that a forward without gradient takes per image, in batches of ``batch``: the median of ``calls``.

    One more call goes before, unmeasured. Raises ``ValueError`` for ``batch`` or ``calls`` < 1.
    """
    if batch < 1 or calls < 1:
        raise ValueError(f"batch and calls must be at least 1, got {batch} and {calls}")
    device = backbone.device
    conditioning = repeat(backbone.encode([prompt]), batch)
    x, t = (
        torch.zeros(batch, *backbone.latent_shape_of(prompt), device=device),
        torch.full((batch,), 0.5, device=device),
    )
    times = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        backbone.velocity(x, t, conditioning)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) / batch
