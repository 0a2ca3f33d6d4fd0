"""Per-sample contractions, looked up by the exact type of a module."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .base import Handler, NotPerSampleError
from .conv import ConvHandler
from .embedding import EmbeddingHandler
from .generic import GenericHandler
from .linear import LinearHandler
from .norm import (
    BatchNormHandler,
    GroupNormHandler,
    NormHandler,
    group_norm,
    layer_norm,
    layer_norm_in_fp32,
    rms_norm,
    rms_norm_of_diffusers,
)

__all__ = ["Handler", "NotPerSampleError", "find_handler"]

GENERIC: Handler = GenericHandler()
BATCH_NORM: Handler = BatchNormHandler()
HANDLERS: dict[type[nn.Module], Handler] = {
    nn.Linear: LinearHandler(),
    nn.modules.linear.NonDynamicallyQuantizableLinear: LinearHandler(),
    nn.Conv1d: ConvHandler(1),
    nn.Conv2d: ConvHandler(2),
    nn.LayerNorm: NormHandler(layer_norm),
    nn.RMSNorm: NormHandler(rms_norm),
    nn.GroupNorm: GroupNormHandler(group_norm),
    nn.Embedding: EmbeddingHandler(),
}
# By name, so that diffusers is not imported.
HANDLERS_BY_NAME: dict[str, Handler] = {
    "diffusers.models.normalization.RMSNorm": NormHandler(rms_norm_of_diffusers),
    "diffusers.models.normalization.FP32LayerNorm": NormHandler(layer_norm_in_fp32),
}


def find_handler(module: nn.Module) -> Handler:
    """The handler of a module.

    A subclass may compute anything, and so may a module whose ``forward`` was replaced or that owns parameters
    which its type does not have (``weight_norm`` adds some): these go to the generic handler.
    """
    if isinstance(module, _BatchNorm):
        return BATCH_NORM
    kind = type(module)
    if kind.__bases__[0].__name__ == "FSDPModule":
        # fully_shard gives a module a class of its own, derived from this mixin and the former class.
        kind = kind.__bases__[-1]
    known = HANDLERS.get(kind) or HANDLERS_BY_NAME.get(f"{kind.__module__}.{kind.__qualname__}")
    if known is None or known.names is None or "forward" in vars(module):
        return GENERIC
    return known if known.names.issuperset(module._parameters) else GENERIC
