"""How the judges' network is made: from renderings only, distorted so that it does not live on their details.

python -m comparison.judge_training     (in benchmarks/) minutes on one thread; writes results/judges.safetensors
"""

import json
import math
from datetime import date
from pathlib import Path

import numpy as np
import torch
from measure import commit
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad
from tqdm import trange

from tiny.captions import COLOURS, KINDS, RELATIONS, SHAPES, Caption, Group, composition_caption, random_caption
from tiny.captions import text_caption as text
from tiny.font import LETTERS
from tiny.render import SIZE, render

from .judge_network import LENGTH, WEIGHTS, JudgeNetwork, facts_of, right

STEPS, BATCH, PEAK, SEED = 1500, 64, 5e-3, 0
_SHIFT = 1
_PATCH = 3


def free_caption(rng: np.random.Generator) -> Caption:
    """Any landscape, any three letters, up to three objects in each of one or two groups.

    Wider than the prompts: words that are no words and counts that no prompt asks for leave nothing to be guessed
    from the rest of the caption.
    """
    kind = KINDS[rng.integers(3)]
    if kind == "text":
        return text("".join(rng.choice(list(LETTERS), LENGTH)), rng.choice(COLOURS))
    if kind == "composition":
        first, second = rng.permutation(COLOURS)[:2]
        groups = [Group(int(rng.integers(1, 4)), colour, rng.choice(SHAPES)) for colour in (first, second)]
        if rng.random() < 0.3:
            return composition_caption(groups[0])
        return composition_caption(groups[0], rng.choice(RELATIONS), groups[1])
    while (caption := random_caption(rng)).kind != "general":
        pass
    return caption


def free_batch(size: int, rng: np.random.Generator) -> tuple[Tensor, list[dict[str, int]]]:
    """``size`` fresh renderings [size, 3, 24, 24] and their facts.

    Beside those of the captions: of the colours that a composition does not name there are no objects.
    """
    captions = [free_caption(rng) for _ in range(size)]
    images = torch.from_numpy(np.stack([render(caption, rng) for caption in captions]))
    absent = {f"count {colour}": 0 for colour in COLOURS}
    return images, [(absent if caption.groups else {}) | facts_of(caption) for caption in captions]


def distorted(images: Tensor, random: torch.Generator, strength: float = 1.0) -> Tensor:
    """Each image moved by a pixel, blurred, with other saturation, contrast, brightness and noise.

    The noise is of pixels and of the model's 3 × 3 patches. How much of each is drawn for each image; ``strength`` in
    [0, 1] scales it all.
    """

    def draw(low: float, high: float) -> Tensor:
        return strength * (low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=random))

    images = torch.where(draw(0, 1) > 0.3, _moved(images, random), images)
    blur = draw(-1, 1).clamp_min(0)
    images = (1 - blur) * images + blur * blurred(images)
    grey = images.mean(1, keepdim=True)
    images = images + draw(-0.5, 0.6) * (images - grey)
    level = images.mean((1, 2, 3), keepdim=True)
    images = images + draw(-0.5, 0.8) * (images - level) + draw(-0.1, 0.1)
    images = images + draw(-0.1, 0.1).clamp_min(0) * torch.randn(images.shape, generator=random)
    patches = torch.randn(len(images), 3, SIZE // _PATCH, SIZE // _PATCH, generator=random)
    return (images + draw(-0.05, 0.05).clamp_min(0) * interpolate(patches, scale_factor=_PATCH)).clamp(0, 1)


def blurred(images: Tensor) -> Tensor:
    """``images`` smoothed by the binomial kernel (1, 2, 1) / 4 in both directions."""
    line = images.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(3, 1, 3, 3)
    return conv2d(pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


def _moved(images: Tensor, random: torch.Generator) -> Tensor:
    padded = pad(images, (_SHIFT,) * 4, mode="replicate")
    corners = torch.randint(2 * _SHIFT + 1, (len(images), 2), generator=random).tolist()
    return torch.stack([image[:, y : y + SIZE, x : x + SIZE] for image, (y, x) in zip(padded, corners, strict=True)])


def trained(steps: int = STEPS, seed: int = SEED, width: int = 8) -> JudgeNetwork:
    """The network after ``steps`` batches of 64: the same one for the same seed. AdamW, one-cycle cosine.

    The loss is the mean negative log-probability over the questions that are asked of the images.
    """
    rng, random = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = JudgeNetwork(width)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    for step in trange(steps, desc="judges", mininterval=5, disable=None):
        images, facts = free_batch(BATCH, rng)
        # Clean ones first: they teach letters in 300 batches, while 500 distorted ones leave them at 14 % right.
        answers = right(network(distorted(images, random, min(2 * step / steps, 1.0))), facts)
        loss = -torch.stack(list(answers.values())).nanmean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def _rate(progress: float) -> float:
    return min((progress + 1e-3) / 0.05, 0.5 * (1 + math.cos(math.pi * progress)))


def accuracy(network: JudgeNetwork, count: int, seed: int, distort: bool = False) -> dict[str, float]:
    """Question → share of right answers on ``count`` fresh renderings."""
    images, facts = free_batch(count, np.random.default_rng(seed))
    if distort:
        images = distorted(images, torch.Generator().manual_seed(seed))
    answers = network(images)
    best = {name: log_probabilities.max(1).values for name, log_probabilities in answers.items()}
    picked = right(answers, facts)
    return {name: (picked[name] == best[name])[~picked[name].isnan()].float().mean().item() for name in answers}


def main(path: Path = WEIGHTS) -> None:
    """Train, store the weights as fp16 and, beside them, how they were made and what they see."""
    # Before the weights are written: they are tracked.
    made_at = commit()
    network = trained().half().float()
    save_file({name: weight.half() for name, weight in network.state_dict().items()}, path)
    facts = {
        "made_by": "python -m comparison.judge_training",
        "settings": {"steps": STEPS, "batch": BATCH, "peak_lr": PEAK, "seed": SEED},
        "torch": torch.__version__,
        "commit": made_at,
        "date": date.today().isoformat(),
        "accuracy": {name: round(value, 4) for name, value in accuracy(network, 6000, SEED + 1).items()},
        "accuracy_distorted": {name: round(v, 4) for name, v in accuracy(network, 6000, SEED + 1, True).items()},
    }
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
