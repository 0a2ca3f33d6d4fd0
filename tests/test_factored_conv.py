"""Contraction at ``torch.nn.Conv1d`` and ``torch.nn.Conv2d``."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from factored_cases import matches_loop
from marble_opt.per_sample.layers import base, conv


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), dimensions=st.sampled_from([1, 2]), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_equals_the_loop_for_random_options(data: st.DataObject, dimensions: int, dtype: torch.dtype) -> None:
    def several(low: int, high: int) -> Any:
        each = st.integers(low, high)
        return data.draw(st.one_of(each, st.tuples(*[each] * dimensions)))

    groups = data.draw(st.integers(1, 2))
    same = data.draw(st.booleans())
    layer = (nn.Conv1d, nn.Conv2d)[dimensions - 1](
        groups * data.draw(st.integers(1, 2)),
        groups * data.draw(st.integers(1, 2)),
        several(1, 3),
        stride=1 if same else several(1, 2),
        padding="same" if same else data.draw(st.sampled_from(["valid", 0, 1, 2])),
        dilation=several(1, 2),
        groups=groups,
        bias=data.draw(st.booleans()),
        padding_mode=data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )
    model = nn.Sequential(layer, nn.Tanh()).to(dtype)
    batch, size = data.draw(st.integers(1, 4)), [data.draw(st.integers(5, 7)) for _ in range(dimensions)]

    def forward(step: int) -> Tensor:
        y: Tensor = model(torch.randn(batch, layer.in_channels, *size, dtype=dtype))
        return y

    matches_loop(model, forward, layers=1)


@pytest.mark.parametrize("chunk", [1, 200])
def test_chunks_do_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", chunk)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 2)).double()
    matches_loop(model, lambda step: model(torch.randn(4, 2, 5, 5).double()), layers=2)
