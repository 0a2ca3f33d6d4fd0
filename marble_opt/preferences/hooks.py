"""The hooks by which the conditionings of one transformer act."""

from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Stage
from .conditioning import PreferenceConditioning, given


class Installation:
    """The hooks of all conditionings on one transformer; what :func:`install` returns is a handle on one of them.

    Nothing is computed from global state inside a block. m(ω) travels with the time embedding, [..., D] more of it,
    as an argument of each block, where it is split off again: a block that is recomputed for its backward gets the ω of
    its own forward, and gradients reach m through the arguments. Its product with the gate is not written out:
    h + gate_mlp ⊙ ff + gate_mlp ⊙ m is h + gate_mlp ⊙ (ff + m), so that m joins the output of the feed-forward.
    """

    def __init__(self, transformer: nn.Module, anatomy: Anatomy) -> None:
        self.transformer, self.anatomy = transformer, anatomy
        self.conditionings: list[PreferenceConditioning] = []
        # m(ω) on its way from the source to a carrier that is another module.
        self.pending: Tensor | None = None
        self.handles: list[Any] = []

    def attach(self) -> None:
        """Hook the time embedding, the blocks, the places where m joins them and the last norm."""
        parts = self.anatomy
        self.handles.append(parts.source.register_forward_hook(self.embed, with_kwargs=True))
        if parts.carrier is not parts.source:
            self.handles.append(parts.carrier.register_forward_hook(self.carry))
        # First in line, so that other hooks of these modules see the plain time embedding.
        for stage in parts.stages:
            hooks = StageHooks(self, stage)
            self.handles += [
                stage.block.register_forward_pre_hook(hooks.enter, prepend=True, with_kwargs=True),
                stage.block.register_forward_hook(hooks.leave, always_call=True),
                stage.spot.register_forward_hook(hooks.join),
            ]
        if parts.last is not None:
            self.handles.append(parts.last.register_forward_pre_hook(self.strip, prepend=True, with_kwargs=True))

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self.handles:
            handle.remove()
        self.handles, self.pending = [], None

    def embed(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        """The embedding plus e(ω), [N, D]; with m(ω), [N, 2 D], where it goes to the blocks as it is."""
        self.pending = None
        vectors = self._vectors(output, kwargs)
        if vectors is None:
            return None
        time, block = vectors
        if self.anatomy.carrier is self.anatomy.source:
            return torch.cat([output + time, block], -1)
        self.pending = block
        return output + time

    def carry(self, module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> Any:
        """m(ω) behind the modulations, the first output."""
        vector, self.pending = self.pending, None
        return None if vector is None else (torch.cat([output[0], vector.to(output[0].dtype)], -1), *output[1:])

    def strip(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The time embedding alone for the last norm."""
        if len(args) > 1:
            return (args[0], self.split(args[1])[0], *args[2:]), kwargs
        two = {name for name, value in kwargs.items() if isinstance(value, Tensor) and value.dim() == 2}
        return args, {name: self.split(value)[0] if name in two else value for name, value in kwargs.items()}

    def split(self, temb: Tensor) -> tuple[Tensor, Tensor | None]:
        """The plain time embedding and m(ω), ``None`` where it is plain already."""
        plain = self.anatomy.plain
        if temb.shape[-1] != plain + self.anatomy.width:
            return temb, None
        # The base would get a contiguous tensor, and must stay the same bit for bit.
        return temb[..., :plain].contiguous(), temb[..., plain:]

    def _vectors(self, output: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """e(ω) and m(ω), [N, D], in the dtype of ``output`` [N, D], sample after sample."""
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
        # LTX-2 says how many samples its times, one per token perhaps, belong to.
        batch = kwargs.get("batch_size") or len(output)
        omega = found.omega.to(output.device)
        if omega.dim() == 1:
            omega = omega.expand(batch, -1)
        if len(omega) != batch:
            raise ValueError(
                f"the transformer runs {batch} samples with {len(omega)} preferences: pass one preference [M], or one "
                "per sample, repeated as the samples are (for guidance: torch.cat([omega, omega]))"
            )
        time, block = (vector.to(output.dtype) for vector in found.conditioning(omega))
        tokens = len(output) // batch
        return (time, block) if tokens == 1 else (time.repeat_interleave(tokens, 0), block.repeat_interleave(tokens, 0))


class StageHooks:
    """The hooks of one block: m(ω) from its arguments to its tokens."""

    def __init__(self, installation: Installation, stage: Stage) -> None:
        self.installation, self.stage = installation, stage
        # m(ω), [B, 1 or T, D], and the first token that it is for, while the block runs.
        self.running: tuple[Tensor, int] | None = None

    def enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Split the time embedding of a block, and keep m."""
        place = self.installation.anatomy.place
        plain, vector = self.installation.split(kwargs["temb"] if "temb" in kwargs else args[place])
        self.running = None
        if vector is None:
            return None
        first = 0
        if self.stage.joint:
            text: Tensor = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
            first = text.shape[1]
        self.running = (vector if vector.dim() == 3 else vector.unsqueeze(1), first)
        if "temb" in kwargs:
            return args, {**kwargs, "temb": plain}
        return (*args[:place], plain, *args[place + 1 :]), kwargs

    def leave(self, block: nn.Module, args: Any, output: Any) -> None:
        """Forget m."""
        self.running = None

    def join(self, spot: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Add m."""
        if self.running is None:
            return None
        vector, first = self.running
        if len(vector) != len(output):
            raise ValueError(
                f"the feed-forward runs {len(output)} of {len(vector)} samples: chunk over tokens (dim=1), not samples"
            )
        vector = vector.to(output.dtype)
        if first == 0:
            return output + vector
        return torch.cat([output[:, :first], output[:, first:] + vector], 1)


def adapters_disabled(module: nn.Module) -> bool:
    """Whether there are adapters (peft's tuner layers) and they are switched off."""
    for each in module.modules():
        # A property of peft's layers; diffusers' models have a method of that name.
        if isinstance(getattr(type(each), "disable_adapters", None), property):
            return bool(each.disable_adapters)
    return False
