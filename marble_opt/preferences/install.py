"""Putting a conditioning on an unmodified SD3-type transformer, by hooks."""

from typing import Any

import torch
from torch import Tensor, nn

from .conditioning import PreferenceConditioning, given


class Installation:
    """The hooks of all conditionings on one transformer; what :func:`install` returns is a handle on one of them.

    Nothing is computed from global state inside a block. m(ω) travels with the time embedding, [B, 2 D] in place of
    [B, D], as an argument of each block, where it is split off again: a block that is recomputed for its backward gets
    the ω of its own forward, and gradients reach m through the arguments. Its product with the gate is not written
    out: h + gate_mlp ⊙ ff + gate_mlp ⊙ m is h + gate_mlp ⊙ (ff + m), so that m joins the output of the feed-forward.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.conditionings: list[PreferenceConditioning] = []
        # The m(ω) of each block that is running.
        self.running: dict[nn.Module, Tensor] = {}
        self.handles: list[Any] = []

    def attach(self) -> None:
        """Hook the time embedding, the blocks, their feed-forwards and the last norm."""
        embedding, blocks, norm = _parts(self.transformer)
        self.handles.append(embedding.register_forward_hook(self.embed))
        # First in line, so that other hooks of these modules see the plain time embedding.
        for block in blocks:
            self.handles += [
                block.register_forward_pre_hook(self.enter, prepend=True, with_kwargs=True),
                block.register_forward_hook(self.leave, always_call=True),
                block.get_submodule("ff").register_forward_hook(_FeedForwardHook(self, block)),
            ]
        self.handles.append(norm.register_forward_pre_hook(self.strip, prepend=True, with_kwargs=True))

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self.handles:
            handle.remove()
        self.handles, self.running = [], {}

    def embed(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """[B, D] → [B, 2 D]: the time embedding plus e(ω), and m(ω)."""
        if adapters_disabled(self.transformer):
            return None
        found = next((each for each in reversed(given()) if each.conditioning in self.conditionings), None)
        if found is None:
            raise RuntimeError(
                "no preference is given to this transformer: call it inside `with conditioning.preference(omega):`, or "
                "preference(None) for a forward that knows none"
                + ("; the block around it is another conditioning's (copies have their own)" if given() else "")
            )
        if found.omega is None:
            return None
        omega, batch = found.omega.to(output.device), len(output)
        if omega.dim() == 1:
            omega = omega.expand(batch, -1)
        if len(omega) != batch:
            raise ValueError(
                f"the transformer runs {batch} samples with {len(omega)} preferences: pass one preference [M], or one "
                "per sample, repeated as the samples are (for guidance: torch.cat([omega, omega]))"
            )
        time, block = found.conditioning(omega)
        return torch.cat([output + time.to(output.dtype), block.to(output.dtype)], -1)

    def enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Split the time embedding of a block, and keep m for its feed-forward."""
        temb = kwargs["temb"] if "temb" in kwargs else args[2]
        plain, vector = self._split(temb)
        self.running.pop(block, None)
        if vector is None:
            return None
        self.running[block] = vector
        return (args, {**kwargs, "temb": plain}) if "temb" in kwargs else ((*args[:2], plain, *args[3:]), kwargs)

    def leave(self, block: nn.Module, args: Any, output: Any) -> None:
        """Forget m."""
        self.running.pop(block, None)

    def strip(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The time embedding alone for the last norm."""
        if len(args) > 1:
            return (args[0], self._split(args[1])[0], *args[2:]), kwargs
        two = {name for name, value in kwargs.items() if isinstance(value, Tensor) and value.dim() == 2}
        return args, {name: self._split(value)[0] if name in two else value for name, value in kwargs.items()}

    def _split(self, temb: Tensor) -> tuple[Tensor, Tensor | None]:
        width = self.conditionings[0].width
        if temb.shape[-1] != 2 * width:
            return temb, None
        # The base would get a contiguous tensor, and must stay the same bit for bit.
        return temb[..., :width].contiguous(), temb[..., width:]


class Installed:
    """A handle: :meth:`remove` takes the conditioning off the transformer, and so does the end of a ``with`` block."""

    def __init__(self, installation: Installation, conditioning: PreferenceConditioning) -> None:
        self._installation: Installation | None = installation
        self._conditioning = conditioning

    def remove(self) -> None:
        """Take it off; with the last conditioning all hooks go. A second call does nothing."""
        installation, self._installation = self._installation, None
        if installation is None:
            return
        installation.conditionings = [each for each in installation.conditionings if each is not self._conditioning]
        if not installation.conditionings:
            installation.detach()

    def __enter__(self) -> "Installed":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def install(transformer: nn.Module, conditioning: PreferenceConditioning) -> Installed:
    """Make ``transformer`` depend on the preference given by ``conditioning.preference(omega)``.

    The transformer is diffusers' ``SD3Transformer2DModel``, or one with the same parts: ``time_text_embed`` returning
    [B, D], ``transformer_blocks`` that are called with ``temb`` (third argument) and add gate_mlp · ``ff`` to the image
    tokens, and ``norm_out(hidden_states, temb)``. Its own modules, parameters and state dict do not change. LoRA
    adapters may be added before or after, and block-wise activation checkpointing, of either kind, is fine. (Where the
    whole transformer is one checkpoint, open the ``preference`` block inside of it.)

    While all adapters are disabled (``transformer.disable_adapters()``) the transformer is the pretrained one: a
    reference gets no ω. Without adapters, and for a forward of the adapted model that knows no preference, use
    ``conditioning.preference(None)``. A forward outside any block raises ``RuntimeError``.

    Several conditionings may be installed, one for each state of the weights (trained, old, ...): the innermost block
    says which. A deep copy of the transformer has a copy of the conditioning; ``copy.deepcopy((transformer,
    conditioning))`` gives both.

    Raises:
        ValueError: a part that is missing, another width, a conditioning that is installed here already.
    """
    _, blocks, _ = _parts(transformer)
    width = _width(blocks[0])
    if conditioning.width != width:
        raise ValueError(f"the conditioning has width {conditioning.width}, the transformer {width}")
    installation = _find(blocks[0]) or Installation(transformer)
    if conditioning in installation.conditionings:
        raise ValueError("this conditioning is installed on the transformer already: remove() the first handle")
    installation.conditionings.append(conditioning)
    if not installation.handles:
        installation.attach()
    return Installed(installation, conditioning)


def adapters_disabled(module: nn.Module) -> bool:
    """Whether there are adapters (peft's tuner layers) and they are switched off."""
    for each in module.modules():
        # A property of peft's layers; diffusers' models have a method of that name.
        if isinstance(getattr(type(each), "disable_adapters", None), property):
            return bool(each.disable_adapters)
    return False


class _FeedForwardHook:
    def __init__(self, installation: Installation, block: nn.Module) -> None:
        self.installation, self.block = installation, block

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        vector = self.installation.running.get(self.block)
        if vector is None:
            return None
        if len(vector) != len(output):
            raise ValueError(
                f"the feed-forward runs {len(output)} of {len(vector)} samples: chunk over tokens (dim=1), not samples"
            )
        return output + vector.unsqueeze(1)


def _find(block: nn.Module) -> Installation | None:
    hooks = [getattr(hook, "__self__", None) for hook in block._forward_pre_hooks.values()]
    return next((owner for owner in hooks if isinstance(owner, Installation)), None)


def _parts(transformer: Any) -> tuple[nn.Module, list[nn.Module], nn.Module]:
    missing = [name for name in ("time_text_embed", "transformer_blocks", "norm_out") if not hasattr(transformer, name)]
    blocks = [] if missing else list(transformer.transformer_blocks)
    missing += [f"transformer_blocks.{i}.ff" for i, block in enumerate(blocks) if not hasattr(block, "ff")]
    if missing or not blocks or hasattr(transformer, "single_transformer_blocks"):
        raise ValueError(
            f"{type(transformer).__name__} is not an SD3-type transformer: it "
            + (f"has no {', '.join(missing)}" if missing else "has no blocks, or blocks of another kind besides")
        )
    return transformer.time_text_embed, blocks, transformer.norm_out


def _width(block: Any) -> int:
    """D: what the AdaLN of a block reads, in a linear layer of its own."""
    return int(block.norm1.linear.weight.shape[1])
