"""What tensors are and where they lie: the keys by which tables and checks are kept."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from torch import Tensor


class Signature(NamedTuple):
    """What tensors are (``kinds``: shapes, strides, dtypes, devices, which are absent) and where (0: absent)."""

    kinds: Hashable
    addresses: tuple[int, ...]


def signature(tensors: Sequence[Tensor | None]) -> Signature:
    """All that tables and checks of these tensors depend on. Called on every step."""
    present = [tensor for tensor in tensors if tensor is not None]
    absent = () if len(present) == len(tensors) else tuple([tensor is None for tensor in tensors])
    kinds = (
        absent,
        tuple([tensor.shape for tensor in present]),
        tuple([tensor.stride() for tensor in present]),
        tuple([tensor.dtype for tensor in present]),
        tuple([tensor.device for tensor in present]),
    )
    found = present if len(present) == len(tensors) else tensors
    return Signature(kinds, tuple([0 if tensor is None else tensor.data_ptr() for tensor in found]))
