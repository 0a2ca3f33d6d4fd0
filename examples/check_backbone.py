"""Check a backbone: whether the trainer, the factored gradients and the preference conditioning can rely on it.

    python examples/check_backbone.py --model tiny
    python examples/check_backbone.py --model runs/tiny-kontext --prompts runs/edits/edits.jsonl
    python examples/check_backbone.py --model FOLDER model.resolution=512 model.precision=bf16 --device cuda

For people who add a model (BACKBONES.md): each line is one thing that was tried, and what was found. In half precision
equality holds to its rounding.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

import marble_opt
from backbones.interface import Backbone, repeat, select
from backbones.load import load_backbone, read_plan
from backbones.preferred import load_preferred, preferring
from backbones.settings import ModelSettings
from prompts.prompt import Prompt
from prompts.sampler import noise
from prompts.sources import SourceSettings, load_prompts
from trainer.adapters import Adapters
from trainer.preference_adapters import PreferenceAdapters

REWARDS = ("first", "second")
_BATCH, _RANK = 3, 2

Check = Callable[["Subject"], str]


class Subject:
    """A backbone with LoRA and conditioning, their last layers moved away from zero, and three samples.

    Args:
        load: makes the backbone anew.
        prompts: which it serves; the first ones of one latent shape are used.
    """

    def __init__(self, load: Callable[[], Backbone], prompts: Sequence[Prompt]) -> None:
        self.load, backbone = load, load()
        shape = backbone.latent_shape_of(prompts[0])
        alike = [prompt for prompt in prompts if backbone.latent_shape_of(prompt) == shape]
        self.prompts = (alike * _BATCH)[:_BATCH]
        self.x = noise(range(_BATCH), shape).to(backbone.device)
        self.t = torch.linspace(0.3, 0.9, _BATCH, device=backbone.device)
        self.plain = backbone
        # Rounding of the precision that the network computes in.
        self.tolerance = {"no": 1e-4}.get(getattr(backbone, "settings", ModelSettings()).precision, 0.05)

        trial = load()
        try:
            PreferenceAdapters(trial.transformer, trial.lora_targets, _RANK, 0, 0, ("default",), REWARDS, 2)
            self.preferences = "LoRA and conditioning"
        except ValueError as error:
            self.preferences = f"LoRA (no preferences: {error})"

    @cached_property
    def base(self) -> Tensor:
        """The pretrained velocity. Not made before a check asks for it, so that one that fails is a finding."""
        with torch.no_grad():
            return self.plain.velocity(self.x, self.t, self.plain.encode(self.prompts))

    def adapted(self) -> tuple[Backbone, Adapters, list[torch.nn.Module]]:
        """A new backbone with LoRA and, if its architecture is known, conditioning, both untrained; their modules."""
        backbone = self.load()
        common = (backbone.transformer, backbone.lora_targets, _RANK, 0, 0, ("default",))
        if self.preferences != "LoRA and conditioning":
            return backbone, Adapters(*common), [backbone.transformer]
        adapters = PreferenceAdapters(*common, REWARDS, 2)
        return adapters.wrap(backbone), adapters, adapters.modules

    def close(self, found: Tensor, wanted: Tensor) -> float:
        """The largest deviation relative to the largest value; ``ValueError`` if it is beyond the tolerance."""
        error = ((found - wanted).abs().max() / wanted.abs().max()).item()
        if not error <= self.tolerance:
            raise ValueError(f"they differ by {error:.1e} of the largest value, allowed is {self.tolerance:.0e}")
        return error


def velocity(subject: Subject) -> str:
    """Shape, type and independence of samples within a batch."""
    if subject.base.shape != subject.x.shape or subject.base.dtype != torch.float32:
        raise ValueError(f"velocity is {subject.base.dtype} {list(subject.base.shape)} for x {list(subject.x.shape)}")
    conditioning = subject.plain.encode(subject.prompts)
    with torch.no_grad():
        single = [
            subject.plain.velocity(subject.x[i : i + 1], subject.t[i : i + 1], select(conditioning, slice(i, i + 1)))
            for i in range(_BATCH)
        ]
    return f"samples do not depend on their batch, to {subject.close(torch.cat(single), subject.base):.0e}"


def images(subject: Subject) -> str:
    """What a rollout gives."""
    backbone = subject.plain
    latents = backbone.sample(repeat(backbone.encode(subject.prompts[:1]), 2), subject.x[:2], 2)
    made = backbone.decode(latents)
    kinds = (made.dim() in (4, 5), made.shape[-3] == 3, made.dtype == torch.float32, made.device.type == "cpu")
    if not (all(kinds) and made.min() >= 0 and made.max() <= 1):
        raise ValueError(f"want float32 [B, 3, H, W] or [B, F, 3, H, W] in [0, 1] on the CPU, got {list(made.shape)}")
    return f"{'images' if made.dim() == 4 else 'videos'} {list(made.shape[1:])}, latents {list(subject.x.shape[1:])}"


def start(subject: Subject) -> str:
    """Untrained adapters and conditioning change nothing, not one bit."""
    backbone, _, _ = subject.adapted()
    prompts = [preferring(prompt, [0.2, 0.8]) for prompt in subject.prompts]
    with torch.no_grad():
        found = backbone.velocity(subject.x, subject.t, backbone.encode(prompts))
    if not torch.equal(found, subject.base):
        raise ValueError(f"untrained, {subject.preferences} change v by {(found - subject.base).abs().max():.1e}")
    return f"untrained, it is the pretrained model, bit for bit: {subject.preferences}"


def gradients(subject: Subject) -> str:
    """The factored route against one backward per reward."""
    rows = {route: _rows(subject, route) for route in ("factored", "loop")}
    worst = max(subject.close(own, other) for own, other in zip(rows["factored"], rows["loop"], strict=True))
    return f"factored gradients equal one backward per reward, to {worst:.0e}"


def files(subject: Subject) -> str:
    """What save_lora writes is read again, and means the same."""
    backbone, adapters, modules = subject.adapted()
    _disturb(adapters)
    prompts = [preferring(prompt, [0.2, 0.8]) for prompt in subject.prompts]
    with TemporaryDirectory() as folder, torch.no_grad():
        wanted = backbone.velocity(subject.x, subject.t, backbone.encode(prompts))
        backbone.save_lora(Path(folder), "default")
        again = _read(subject.load(), folder, len(modules) > 1)
        found = again.velocity(subject.x, subject.t, again.encode(prompts))
    change = (wanted - subject.base).abs().max().item()
    if not change:
        raise ValueError("adapters whose weights were changed do not change the velocity: are lora_targets right?")
    return f"read from files, they give the same velocity, to {subject.close(found, wanted):.0e}"


CHECKS: tuple[Check, ...] = (velocity, images, start, gradients, files)


def check(load: Callable[[], Backbone], prompts: Sequence[Prompt]) -> Iterator[tuple[str, str, bool]]:
    """(name, what was found, whether it is right) of each of :data:`CHECKS`."""
    subject = Subject(load, prompts)
    for each in CHECKS:
        try:
            with warnings.catch_warnings():
                # Such as that the factored route had to leave parameters to the loop.
                warnings.filterwarnings("error", category=UserWarning, module="marble_opt")
                yield each.__name__, each(subject), True
        except Exception as error:  # Whatever somebody's backbone may raise is what was found.
            yield each.__name__, f"{type(error).__name__}: {str(error)[:400]}", False


def _rows(subject: Subject, route: str) -> list[Tensor]:
    """The Gram matrix of two rewards' gradients and the combined gradient, of DiffusionNFT on disturbed adapters."""
    backbone, adapters, modules = subject.adapted()
    _disturb(adapters)
    trained = list(adapters.parameters("default").values())
    own = {"route": route, "model": modules if route == "factored" else None}
    optimizer = marble_opt.Marble(torch.optim.SGD(trained, lr=1.0), list(REWARDS), **own)
    prompts = [preferring(prompt, [0.2, 0.8]) for prompt in subject.prompts]
    prediction = backbone.trained(backbone.velocity(subject.x, subject.t, backbone.encode(prompts)))
    old, x_t = backbone.trained(subject.base), backbone.trained(subject.x)
    advantages = torch.tensor([[1.0, -0.5, 0.2], [-1.0, 0.3, 0.8]], device=subject.x.device)
    loss = marble_opt.losses.diffusion_nft(prediction, old, x_t, 0.5 * x_t, subject.t, advantages, beta=0.1)
    optimizer.backward(loss)
    report = optimizer.balance()
    if report is None:
        raise ValueError("no reward has a gradient: does the velocity depend on the adapters?")
    gram, gradient = report.gram, torch.cat([weight.grad.flatten() for weight in trained])
    optimizer.unwatch()
    return [gram, gradient]


def _read(backbone: Backbone, folder: str, preferences: bool) -> Backbone:
    if preferences:
        return load_preferred(backbone, folder)
    backbone.transformer.load_lora_adapter(folder, prefix="transformer", weight_name=LORA_WEIGHT_NAME_SAFE)
    return backbone


@torch.no_grad()
def _disturb(adapters: Adapters) -> None:
    """Weights as after some training, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    for weight in adapters.parameters("default").values():
        weight.add_(0.02 * torch.randn(weight.shape, generator=generator).to(weight))


def read_settings(model: str, given: Sequence[str]) -> ModelSettings:
    """The settings of ``model`` with those ``given`` as "model.NAME=value".

    Raises ``ValueError`` for settings of another section, unknown names and values that do not fit.
    """
    for setting in given:
        if not setting.startswith("model.") or "=" not in setting:
            raise ValueError(f"settings are model.NAME=value, got {setting!r}")
    try:
        own = OmegaConf.merge({"model": {"name": model}}, OmegaConf.from_dotlist([*given]))["model"]
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelSettings), own))  # type: ignore[return-value]
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(f"{' '.join(given)}: {str(error).splitlines()[0]}") from error


def main() -> None:
    """Parse the command line, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="as for train.py")
    parser.add_argument("--prompts", default="generated:general", help="as sources.NAME.path of a config")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("settings", nargs="*", help="model.NAME=value")
    arguments = parser.parse_args()
    try:
        settings = read_settings(arguments.model, arguments.settings)
        prompts = load_prompts("check", SourceSettings(arguments.prompts, count=8), held_out=False)
        plan = read_plan(settings, arguments.device)
        for prompt in prompts if plan is not None else ():
            plan.latent_shape_of(prompt)
        results = [*check(lambda: load_backbone(settings, arguments.device), prompts)]
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    for name, found, right in results:
        print(f"{'ok  ' if right else 'FAIL'} {name:<10} {found}")
    sys.exit(not all(right for _, _, right in results))


if __name__ == "__main__":
    main()
