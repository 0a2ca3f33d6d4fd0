"""Results kept by a key, the least recently used forgotten first.

Checking a few thousand tensors takes a slow host longer than the kernel takes the GPU; the key, made of addresses,
shapes, strides and dtypes, is quicker to build, so that a step that meets the same tensors again checks nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """At most ``size`` results. Errors are not kept."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.found: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        """The result kept under ``key``, if any."""
        if key not in self.found:
            return None
        self.found.move_to_end(key)
        return self.found[key]

    def forget(self, key: Hashable) -> None:
        """Drop what is kept under ``key``, if anything."""
        self.found.pop(key, None)

    def __call__(self, key: Hashable, find: Callable[[], T]) -> T:
        """The result kept under ``key``, or a new one."""
        if key not in self.found:
            self.found[key] = find()
            while len(self.found) > self.size:
                self.found.popitem(last=False)
        self.found.move_to_end(key)
        return self.found[key]
