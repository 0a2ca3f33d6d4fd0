"""The work that epoch.py measures: an epoch of DiffusionNFT with five rewards, phase by phase."""

import resource
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from measure import ROOT, seconds
from torch import Tensor

import marble_opt

sys.path.insert(0, str(ROOT / "examples"))
from backbones.interface import repeat, select
from backbones.load import load_backbone
from backbones.settings import ModelSettings
from prompts.prompt import Prompt
from rewards.interface import Reward
from rewards.registry import RewardSettings, build
from trainer.adapters import Adapters

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Plan:
    """``images`` (or videos) per prompt are made ``rollout_batch`` at a time with ``sampling_steps`` steps of
    ``solver``; ``batch`` of them make an optimizer step of ``micro_steps`` timesteps. ``resolution`` in pixels, 0: the
    model's own; ``frames`` of a video."""

    resolution: int = 512
    prompts: int = 4
    images: int = 9
    rollout_batch: int = 12
    sampling_steps: int = 25
    batch: int = 9
    micro_steps: int = 2
    steps: int = 20
    rank: int = 32
    solver: str = "dpm2"
    frames: int = 25


_LARGE = Plan(prompts=2, images=4, rollout_batch=4, sampling_steps=20, batch=4, micro_steps=1, solver="euler")
_TINY = Plan(0, 3, 4, 6, 5, 6, 2, 20, 4)
# By kind of pipeline and size.
PLANS = {
    "sd3": {"medium": Plan(), "tiny": _TINY},
    "kontext": {"full": _LARGE, "tiny": replace(_TINY, solver="euler")},
    "ltx2": {"full": _LARGE, "tiny": replace(_TINY, solver="euler", resolution=64, frames=9)},
}


def brightness(images: Tensor) -> Tensor:
    """1 − |2 m − 1|, m the mean of all channels: 1 for medium grey on average, 0 for black or white."""
    return 1 - (2 * images.flatten(1).mean(1) - 1).abs()


def symmetry(images: Tensor) -> Tensor:
    """1 − the mean absolute difference to the image mirrored left to right."""
    return 1 - (images - images.flip(-1)).abs().flatten(1).mean(1)


REWARDS: dict[str, Callable[[Tensor], Tensor] | str] = {
    "colour": "colour",
    "contrast": "contrast",
    "clean": "clean",
    "brightness": brightness,
    "symmetry": symmetry,
}


class Epoch:
    """Loads the model; :meth:`run` makes one epoch.

    Attributes:
        seconds: of every call of a phase, by its name.
        peak: bytes, by the phase: on a GPU the most allocated during it; on a CPU the process's most so far.
        held: bytes that are in use after each optimizer step.
    """

    def __init__(
        self, model: str, prompts: Sequence[Prompt], plan: Plan, device: str, precision: str, checkpointing: bool
    ) -> None:
        self.plan, self.device, self.prompts = plan, device, prompts
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peak: dict[str, int] = {}
        self.held: list[int] = []
        if device == "cuda":
            torch.cuda.init()
        settings = ModelSettings(model, precision, plan.resolution, checkpointing, frames=plan.frames, tiling=True)
        self.backbone = self.timed("load", lambda: load_backbone(settings, device))
        transformer = self.backbone.transformer
        self.adapters = Adapters(transformer, self.backbone.lora_targets, plan.rank)
        parameters = list(self.adapters.parameters("default").values())
        base = torch.optim.AdamW(parameters, lr=3e-4, weight_decay=1e-4)
        self.optimizer = marble_opt.Marble(base, list(REWARDS), max_grad_norm=1.0, model=transformer)

    def run(self) -> None:
        """Encode, roll out, decode and score; then the optimizer steps."""
        plan = self.plan
        encoded = self.timed("encode", lambda: self.backbone.encode(self.prompts[: plan.prompts]))
        conditioning = repeat(encoded, plan.images)
        noise = torch.randn(
            plan.prompts * plan.images,
            *self.backbone.latent_shape_of(self.prompts[0]),
            generator=torch.Generator().manual_seed(0),
        )
        x_0 = self.timed("rollout", lambda: self.roll_out(conditioning, noise.to(self.device)))
        images = self.timed("decode", lambda: self.backbone.decode(x_0))
        scores = self.timed("score", lambda: self.score(images))
        groups = torch.arange(plan.prompts).repeat_interleave(plan.images)
        advantages = marble_opt.group_advantages(scores, groups).to(self.device)
        for step in range(plan.steps):
            chosen = torch.randperm(len(x_0), generator=torch.Generator().manual_seed(step))[: plan.batch]
            chosen = chosen.to(self.device)
            part = select(conditioning, chosen)
            self.timed("train", lambda chosen=chosen, part=part: self.step(x_0[chosen], part, advantages[:, chosen]))
            self.held.append(held_bytes(self.device))

    def roll_out(self, conditioning: dict[str, Tensor], noise: Tensor) -> Tensor:
        """Latents x_0 of all samples, by the policy ``old``."""
        slices = [slice(i, i + self.plan.rollout_batch) for i in range(0, len(noise), self.plan.rollout_batch)]
        with self.adapters.using("old"):
            return torch.cat(
                [
                    self.backbone.sample(
                        select(conditioning, each), noise[each], self.plan.sampling_steps, self.plan.solver
                    )
                    for each in slices
                ]
            )

    def score(self, images: Tensor) -> Tensor:
        """Scores [K, B]; those of videos are means over frames."""
        frames = images if images.dim() == 4 else images.flatten(0, 1)
        texts, nothing = [""] * len(frames), [{}] * len(frames)
        scores = torch.stack([_reward(reward)(frames, texts, nothing) for reward in REWARDS.values()])
        return scores.view(len(REWARDS), len(images), -1).mean(2)

    def step(self, x_0: Tensor, conditioning: dict[str, Tensor], advantages: Tensor) -> None:
        """One optimizer step; its forward passes, backward passes and the step itself are timed apart."""
        velocity = self.backbone.velocity
        times = self.backbone.times(self.plan.sampling_steps, self.plan.solver).to(self.device)
        for _ in range(self.plan.micro_steps):
            t = times[torch.randint(len(times), x_0.shape[:1], device=self.device)]
            time = t.view(-1, *[1] * (x_0.dim() - 1))
            x_t = (1 - time) * x_0 + time * torch.randn_like(x_0)

            def fixed(adapter: str | None, x_t: Tensor = x_t, t: Tensor = t) -> Tensor:
                with self.adapters.using(adapter):
                    return velocity(x_t, t, conditioning)

            old = self.timed("train: old forward", lambda f=fixed: f("old"))
            reference = self.timed("train: reference forward", lambda f=fixed: f(None))
            prediction = self.timed("train: forward", lambda x=x_t, t=t: velocity(x, t, conditioning))
            loss = marble_opt.losses.diffusion_nft(prediction, old, x_t, x_0, t, advantages, beta=1.0)
            kl = 1e-4 * (prediction - reference).square().mean()
            self.timed("train: backward", lambda loss=loss, kl=kl: self.optimizer.backward(loss, shared=kl))
        self.timed("train: balance and step", self.optimizer.step)
        self.optimizer.zero_grad()

    def timed(self, phase: str, work: Callable[[], _Result]) -> _Result:
        """The result of ``work``; its time and the peak of memory are kept."""
        outer = ":" not in phase
        if outer and self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result: list[_Result] = []
        self.seconds[phase].append(seconds(lambda: result.append(work()), self.device))
        if outer:
            self.peak[phase] = max(peak_bytes(self.device), self.peak.get(phase, 0))
        return result[0]


def _reward(reward: Callable[[Tensor], Tensor] | str) -> Reward:
    if isinstance(reward, str):
        return build(reward, RewardSettings())
    return lambda images, prompts, metadata: reward(images)


def peak_bytes(device: str) -> int:
    """The most bytes: allocated on the GPU since the last reset, or resident in this process since its start."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held_bytes(device: str) -> int:
    """Bytes in use now: allocated on the GPU, or resident in this process."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
