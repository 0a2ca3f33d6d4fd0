"""What ends a run in one line, and what with its whole traceback."""

import sys
from collections.abc import Callable

import pytest
import torch

import marble_opt
import train
from rewards.registry import RewardSettings, build
from trainer.config import load_config
from trainer.errors import is_for_the_user
from trainer.meter import Meter


def unequal_lists() -> None:
    """A bug in a file of examples/: one reward has steps and losses, two have names."""
    meter = Meter()
    meter.step(torch.ones(1))
    meter._add("losses", torch.ones(1))
    meter.read(["a", "b"])


@pytest.mark.parametrize(
    ("call", "written"),
    [
        (lambda: load_config("tiny", ["optimizer.lr=0"]), True),
        (lambda: load_config("tiny", ["optimizer.lr=fast"]), True),
        (lambda: build("clean", RewardSettings(device="cuda")), True),
        (lambda: marble_opt.Marble(torch.optim.SGD([torch.ones(1)], lr=1), []), True),
        (lambda: torch.optim.SGD([], lr=1), False),
        (lambda: RewardSettings(weight=float("heavy")), False),
        (unequal_lists, False),
    ],
)
def test_a_raise_of_ours_is_written_for_the_user(call: Callable[[], object], written: bool) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (any message)
        call()
    assert is_for_the_user(caught.value) == written


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: load_config("tiny", ["optimizer.lr=0"]), SystemExit),
        (lambda: torch.optim.SGD([], lr=1), ValueError),
        (lambda: __import__("a_module_that_is_not_there"), ImportError),
    ],
)
def test_train_ends_in_one_line_only_for_errors_of_ours(
    call: Callable[[], object], kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train", lambda *arguments: call())
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setattr(sys, "argv", ["train.py", "--device", "cpu"])
    with pytest.raises(kind) as caught:
        train.main()
    if kind is SystemExit:
        assert str(caught.value) == "error: optimizer.lr and optimizer.max_grad_norm must be positive"
