"""What tensors are and where they lie: the keys by which tables and checks are kept."""

import operator
from collections.abc import Hashable, Sequence
from typing import NamedTuple
from weakref import ref

from torch import Tensor

from .memo import Memo


class Key:
    """Any hashable value, hashed once: Python hashes a tuple of a thousand numbers anew at every look into a table."""

    __slots__ = ("hash", "value")

    def __init__(self, value: Hashable) -> None:
        self.value, self.hash = value, hash(value)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Key) and self.hash == other.hash and self.value == other.value)


class Signature(NamedTuple):
    """What tensors are (``kinds``: shapes, strides, dtypes, devices, which are absent) and where (0: absent)."""

    kinds: Key
    addresses: Key


class _Lasting(NamedTuple):
    owners: list["ref[Tensor]"]
    forms: list[object]
    signature: Signature


_lasting: Memo[_Lasting] = Memo(1024)


def signature(tensors: Sequence[Tensor | None]) -> Signature:
    """All that tables and checks of these tensors depend on."""
    present = [tensor for tensor in tensors if tensor is not None]
    absent = () if len(present) == len(tensors) else tuple([tensor is None for tensor in tensors])
    kinds = (
        absent,
        tuple([tensor.shape for tensor in present]),
        tuple([tensor.stride() for tensor in present]),
        tuple([tensor.dtype for tensor in present]),
        tuple([tensor.device for tensor in present]),
    )
    return Signature(Key(kinds), Key(places(tensors if absent else present)))


def lasting_signature(tensors: Sequence[Tensor]) -> Signature:
    """The same of tensors that live for many steps, such as parameters and moments, at half the price.

    Shapes and strides are not asked of objects that are still alive, at their addresses, of their dtype and as
    contiguous as they were. (These are tuples, so many of which also wake the garbage collector.) What swaps a tensor's
    data, as ``module.half()`` does, changes one of these; a reshaped view of the same memory does not, and needs not.
    """
    key, addresses = (len(tensors), id(tensors[0]) if tensors else 0), places(tensors)
    forms: list[object] = [tensor.dtype for tensor in tensors]
    forms += [tensor.is_contiguous() for tensor in tensors]
    known = _lasting.get(key)
    if known is not None:
        same = known.signature.addresses.value == addresses and known.forms == forms
        # An id alone may be that of an object that came after it.
        if same and all(map(operator.is_, [owner() for owner in known.owners], tensors)):
            return known.signature
        _lasting.forget(key)
    return _lasting(key, lambda: _Lasting([ref(tensor) for tensor in tensors], forms, signature(tensors))).signature


def places(tensors: Sequence[Tensor | None]) -> tuple[int, ...]:
    """The address of each tensor, 0 for ``None``."""
    return tuple([0 if tensor is None else tensor.data_ptr() for tensor in tensors])
