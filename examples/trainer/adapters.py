"""The LoRA adapters of one transformer: states of one policy, of which one is trained."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


class Adapters:
    """Adds adapters to ``transformer`` (in place) and freezes everything but the first.

    Args:
        transformer: a diffusers model with peft support.
        targets: names of the modules that get LoRA, as peft's ``target_modules``.
        rank: LoRA rank r.
        alpha: α of the update (α / r) B A; 0 means 2 r.
        seed: of the Gaussian initialisation. B starts at zero, so the adapted model equals the base; all adapters
            start equal.
        names: the first is trained.
    """

    def __init__(
        self,
        transformer: nn.Module,
        targets: Sequence[str],
        rank: int,
        alpha: int = 0,
        seed: int = 0,
        names: Sequence[str] = ("default", "old", "average"),
    ) -> None:
        self.transformer, self.names = transformer, tuple(names)
        transformer.requires_grad_(False)
        config = LoraConfig(
            r=rank, lora_alpha=alpha or 2 * rank, init_lora_weights="gaussian", target_modules=list(targets)
        )
        # peft draws on the CPU, so all ranks draw the same. Forking the generators of all GPUs as well would make every
        # rank of a machine with several print a warning.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft warns about what is meant here: several adapters on one model.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            torch.manual_seed(seed)
            for name in self.names:
                transformer.add_adapter(config, adapter_name=name)
        # Looked for once: a transformer has thousands of modules, and adapters change several times per micro-step.
        self._layers = [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]
        for name in self.names:
            for weight in self.parameters(name).values():
                weight.data = weight.data.float()
        for name in self.names[1:]:
            self.copy(self.names[0], name, 0.0)
        self._activate(self.names[0])

    def parameters(self, name: str) -> dict[str, Tensor]:
        """The weights of one adapter by name, the adapter's own name left out."""
        return {
            key.replace(f".{name}.", "."): weight
            for key, weight in self.transformer.named_parameters()
            if ".lora_" in key and f".{name}." in key
        }

    @torch.no_grad()
    def copy(self, source: str, target: str, decay: float) -> None:
        """target ← decay · target + (1 − decay) · source."""
        weights = self.parameters(source)
        for key, weight in self.parameters(target).items():
            weight.copy_(decay * weight + (1 - decay) * weights[key] if decay else weights[key])

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Run the block without gradient under another adapter, or under none: the pretrained model."""
        self._activate(name)
        try:
            with torch.no_grad():
                yield
        finally:
            self._activate(self.names[0])

    def _activate(self, name: str | None) -> None:
        """Switch to an adapter or to none. peft moves ``requires_grad`` along; here it stays with the trained one, as
        FSDP2 and Marble look at it."""
        for layer in self._layers:
            layer.enable_adapters(name is not None)
            layer.set_adapter(name or self.names[0])
            for kind in layer.adapter_layer_names:
                for other, weights in getattr(layer, kind).items():
                    if other in self.names:
                        weights.requires_grad_(other == self.names[0])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """All adapters' weights."""
        return {name: {k: w.detach().clone() for k, w in self.parameters(name).items()} for name in self.names}

    @torch.no_grad()
    def load_state_dict(
        self, state: dict[str, dict[str, Tensor]], copy: Callable[[Tensor, Tensor], object] = Tensor.copy_
    ) -> None:
        """Restore what :meth:`state_dict` returned; ``copy(target, value)`` writes one weight."""
        for name in self.names:
            for key, weight in self.parameters(name).items():
                copy(weight, state[name][key])


def average_decay(step: int) -> float:
    """Decay of the evaluated average: min((1 + s) / (10 + s), 0.9)."""
    return min((1 + step) / (10 + step), 0.9)
