"""Frozen networks that live on the CPU and visit the device for a piece of work."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def visiting(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Run a block with all parameters and buffers of ``modules`` on ``device``.

    After it they are the tensors that they were before: nothing is copied back, so changes made in the block are lost.
    """
    found = {id(tensor): tensor for module in modules for tensor in (*module.parameters(), *module.buffers())}
    homes = [(tensor, tensor.data) for tensor in found.values()]
    try:
        for tensor, home in homes:
            tensor.data = copy(home, device)
        yield
    finally:
        for tensor, home in homes:
            tensor.data = home


def copy(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``."""
    return tensor.to(device)
