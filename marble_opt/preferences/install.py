"""Putting a conditioning on an unmodified transformer of SD3, Flux or LTX-2, by hooks."""

from torch import nn

from .anatomy import find_anatomy
from .conditioning import PreferenceConditioning
from .hooks import Installation, StageHooks


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

    The transformer is one of diffusers', or one with the same parts:

    - ``SD3Transformer2DModel``: e(ω) joins ``time_text_embed`` [B, D], m(ω) the ``ff`` of all ``transformer_blocks``,
      hence h ← h + gate_mlp ⊙ (ff + m) on the image tokens.
    - ``FluxTransformer2DModel`` (diffusers ≥ 0.35): the same, and in ``single_transformer_blocks``
      h ← h + gate ⊙ (proj_out + m) on the image tokens, which follow the text's. The tokens of Kontext's source image
      are image tokens too and get m as well.
    - ``LTX2VideoTransformer3DModel``: e(ω) joins the embedded time of the video, ``time_embed.emb``, and with it the
      modulation of its attention to itself, of its feed-forward and of the output layer (of its attention to the text
      in LTX-2.3); m(ω) joins the video's ``ff``. With one time per token, ω is repeated per token. The modules of the
      sound, and the modulation of the attention between video and sound, see ω through the video's tokens alone.

    Its own modules, parameters and state dict do not change. LoRA adapters may be added before or after, and block-wise
    activation checkpointing, of either kind, is fine. (Where the whole transformer is one checkpoint, open the
    ``preference`` block inside of it.)

    While all adapters are disabled (``transformer.disable_adapters()``) the transformer is the pretrained one: a
    reference gets no ω. Without adapters, and for a forward of the adapted model that knows no preference, use
    ``conditioning.preference(None)``. A forward outside any block raises ``RuntimeError``.

    Several conditionings may be installed, one for each state of the weights (trained, old, ...): the innermost block
    says which. A deep copy of the transformer has a copy of the conditioning; ``copy.deepcopy((transformer,
    conditioning))`` gives both.

    Raises:
        ValueError: a part that is missing, another width (:func:`conditioning_width` tells it), a conditioning that is
            installed here already.
    """
    anatomy = find_anatomy(transformer)
    if conditioning.width != anatomy.width:
        raise ValueError(f"the conditioning has width {conditioning.width}, the transformer {anatomy.width}")
    installation = _find(anatomy.stages[0].block) or Installation(transformer, anatomy)
    if conditioning in installation.conditionings:
        raise ValueError("this conditioning is installed on the transformer already: remove() the first handle")
    installation.conditionings.append(conditioning)
    if not installation.handles:
        installation.attach()
    return Installed(installation, conditioning)


def _find(block: nn.Module) -> Installation | None:
    hooks = [getattr(hook, "__self__", None) for hook in block._forward_pre_hooks.values()]
    return next((owner.installation for owner in hooks if isinstance(owner, StageHooks)), None)
