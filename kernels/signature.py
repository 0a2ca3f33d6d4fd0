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


_lasting: Memo[tuple[list["ref[Tensor]"], Signature]] = Memo(64)


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
    """The same of tensors that live for many steps, such as parameters and moments, at a third of the price.

    Objects that are still alive and still at their addresses are not looked at again: what swaps a tensor's data, as
    ``module.half()`` does, gives it another address. (Shapes and strides are tuples, so many of which also wake the
    garbage collector.)
    """
    key, addresses = (len(tensors), id(tensors[0]) if tensors else 0), places(tensors)
    known = _lasting.get(key)
    if known is not None:
        owners, seen = known
        # An id alone may be that of an object that came after it.
        if seen.addresses.value == addresses and all(map(operator.is_, [owner() for owner in owners], tensors)):
            return seen
        _lasting.forget(key)
    return _lasting(key, lambda: ([ref(tensor) for tensor in tensors], signature(tensors)))[1]


def places(tensors: Sequence[Tensor | None]) -> tuple[int, ...]:
    """The address of each tensor, 0 for ``None``."""
    return tuple([0 if tensor is None else tensor.data_ptr() for tensor in tensors])
