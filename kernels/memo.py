"""Results kept by a key, the least recently used forgotten first.

Checking a few thousand tensors takes a slow host longer than the kernel takes the GPU; the key, made of addresses,
shapes, strides and dtypes, is quicker to build, so that a step that meets the same tensors again checks nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """Results of total weight ``size`` at most, the last one in any case. Errors are not kept.

    Args:
        size: how many results, if each weighs 1.
        weigh: the weight of a result, in any unit.
    """

    def __init__(self, size: int, weigh: Callable[[T], int] = lambda _: 1) -> None:
        self.size, self.weigh, self.total = size, weigh, 0
        self._found: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        """The result kept under ``key``, if any."""
        if key not in self._found:
            return None
        self._found.move_to_end(key)
        return self._found[key]

    def forget(self, key: Hashable) -> None:
        """Drop what is kept under ``key``, if anything."""
        if key in self._found:
            self.total -= self.weigh(self._found.pop(key))

    def __call__(self, key: Hashable, find: Callable[[], T]) -> T:
        """The result kept under ``key``, or a new one."""
        if key not in self._found:
            self._found[key] = found = find()
            self.total += self.weigh(found)
            while self.total > self.size and len(self._found) > 1:
                self.total -= self.weigh(self._found.popitem(last=False)[1])
        self._found.move_to_end(key)
        return self._found[key]
