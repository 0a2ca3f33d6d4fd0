"""The two modules that make a diffusion transformer depend on a preference ω (ParetoSlider, arXiv 2604.20816)."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..balance import check_rewards
from .simplex import check_preferences

CONFIG_NAME = "preference_conditioning.json"
WEIGHTS_NAME = "preference_conditioning.safetensors"

Preference = Tensor | Mapping[str, float] | None


class Given(NamedTuple):
    """What a ``with conditioning.preference(omega)`` block says."""

    conditioning: "PreferenceConditioning"
    omega: Tensor | None


# Innermost last. One stack for all conditionings: of several on one transformer the innermost is meant.
_GIVEN: ContextVar[tuple[Given, ...]] = ContextVar("preferences given", default=())


def given() -> tuple[Given, ...]:
    """The blocks that we are in, innermost last."""
    return _GIVEN.get()


class PreferenceConditioning(nn.Module):
    """Two additive paths from ω [B, M] into a transformer of width D:

        e(ω) = MLP(ω), M → D → D                 added to the time and pooled-text embedding, hence to every AdaLN
        m(ω) = MLP(features), 2 F M → D → D → D → D,  features sin(π 2^k ω_m), cos(π 2^k ω_m), k = 0..F − 1
               one vector for all blocks, added to image tokens after the feed-forward:  h ← h + gate_mlp ⊙ m(ω)

    with SiLU between layers. The last layer of both starts at zero, so that the conditioned model is the base bit for
    bit until it is trained. :func:`install` puts it on a transformer; its parameters stay its own:

        conditioning = PreferenceConditioning(["photo", "sketch"], width=preferences.conditioning_width(transformer))
        handle = preferences.install(transformer, conditioning)
        with conditioning.preference(omega):
            v = transformer(...)

    Give its parameters to the optimizer beside the LoRA's, and ``Marble(model=[transformer, conditioning])`` for the
    factored route.

    Args:
        rewards: names of the M rewards, in the order of ω; saved with the weights.
        width: D, what :func:`conditioning_width` says: 1536 in SD3.5-M (then 9.5 million parameters), 3072 in Flux.
        frequencies: F. The finest period of the features in ω is 2^(2 − F); larger F resolves ω more sharply and
            interpolates less smoothly.

    Raises:
        ValueError: names that Marble would refuse, a number below 1.
    """

    def __init__(self, rewards: Sequence[str], width: int, *, frequencies: int = 6) -> None:
        super().__init__()
        self.rewards = check_rewards(rewards)
        if width < 1 or frequencies < 1:
            raise ValueError(f"width and frequencies must be at least 1, got {width} and {frequencies}")
        self.width, self.frequencies = width, frequencies
        size = len(self.rewards)
        self.time_path = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))
        self.block_path = nn.Sequential(
            nn.Linear(2 * frequencies * size, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        for path in (self.time_path, self.block_path):
            last = list(path.children())[-1]
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, omega: Tensor) -> tuple[Tensor, Tensor]:
        """e(ω) and m(ω), both [B, D], for ω [B, M]."""
        like = next(self.parameters())
        return self.time_path(omega.to(like)), self.block_path(self.features(omega.to(like.device)).to(like))

    def features(self, omega: Tensor) -> Tensor:
        """[B, 2 F M]: for each reward in turn the sines, then the cosines, of increasing frequency; at least fp32."""
        omega = omega.to(torch.promote_types(omega.dtype, torch.float32))
        octaves = torch.arange(self.frequencies, dtype=omega.dtype, device=omega.device)
        angles = math.pi * omega.unsqueeze(-1) * 2**octaves
        return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)

    @contextmanager
    def preference(self, omega: Preference) -> Iterator[None]:
        """Forwards of the transformers that this is installed on see ``omega`` inside the block.

        Backwards may come later, recomputations of checkpointed blocks with them: these see the ω of their own forward.

        Args:
            omega: [M] for all samples, [B, M] for one each, a mapping reward → weight, or ``None``: the transformer
                itself, without any conditioning (a reference, or a sampler that knows no preference).

        Raises:
            ValueError: not on the simplex, another number of rewards, unknown or missing names.
        """
        entry = Given(self, self._read(omega))
        token = _GIVEN.set((*_GIVEN.get(), entry))
        try:
            yield
        finally:
            _GIVEN.reset(token)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the configuration and the weights (safetensors) into a folder, beside what else is there: the LoRA's
        ``pytorch_lora_weights.safetensors``, for example. Each file is complete or not there.

        Raises:
            ImportError: safetensors is missing.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"rewards": list(self.rewards), "width": self.width, "frequencies": self.frequencies}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        beside = folder / f"{WEIGHTS_NAME}.part"
        save_file(tensors, beside, metadata={"format": "pt"})
        os.replace(beside, folder / WEIGHTS_NAME)
        beside = folder / f"{CONFIG_NAME}.part"
        beside.write_text(json.dumps(config, indent=2) + "\n")
        os.replace(beside, folder / CONFIG_NAME)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PreferenceConditioning":
        """What :meth:`save_pretrained` wrote, in its dtype, on the CPU.

        Raises:
            ValueError: a folder without it, or weights of another configuration.
            ImportError: safetensors is missing.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder} has no {' and no '.join(missing)}: save_pretrained writes both")
        config = json.loads((folder / CONFIG_NAME).read_text())
        conditioning = cls(config["rewards"], config["width"], frequencies=config["frequencies"])
        weights = load_file(folder / WEIGHTS_NAME)
        conditioning.to(next(iter(weights.values())).dtype)
        try:
            conditioning.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{folder / WEIGHTS_NAME} does not fit {config}: {error}") from error
        return conditioning

    def extra_repr(self) -> str:
        return f"rewards={self.rewards}, width={self.width}, frequencies={self.frequencies}"

    def _read(self, omega: Preference) -> Tensor | None:
        if omega is None:
            return None
        if isinstance(omega, Mapping):
            if set(omega) != set(self.rewards):
                raise ValueError(f"the preference names {sorted(omega)}, the rewards are {list(self.rewards)}")
            omega = torch.tensor([float(omega[name]) for name in self.rewards], dtype=torch.float64)
        if not isinstance(omega, Tensor) or omega.dim() not in (1, 2):
            shape = list(omega.shape) if isinstance(omega, Tensor) else type(omega).__name__
            raise ValueError(f"a preference is [{len(self.rewards)}] or [B, {len(self.rewards)}], got {shape}")
        check_preferences(omega, len(self.rewards), "a preference")
        return omega.detach()
