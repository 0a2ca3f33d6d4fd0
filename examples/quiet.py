"""Loading and saving without progress bars, and without notices that tell the user nothing."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def quiet(*packages: str) -> Iterator[None]:
    """Switch the bars of ``packages``, "diffusers" and "transformers", off for a block; those that were on come back.

    So is the warning that ``torch_dtype`` is now called ``dtype``: older supported versions know that name only.
    """
    loggers = [import_module(f"{package}.utils.logging") for package in packages]
    shown = [kind for kind in loggers if kind.is_progress_bar_enabled()]
    for kind in shown:
        kind.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype. is deprecated", category=FutureWarning)
            yield
    finally:
        for kind in shown:
            kind.enable_progress_bar()


def without_torchvision_notices() -> None:
    """Drop transformers' notices that an image processor falls back to Pillow: the one with Pillow is meant."""
    from transformers.utils import logging as transformers_logging

    for handler in transformers_logging.get_logger("transformers").handlers:
        handler.addFilter(_other_than_torchvision)


def _other_than_torchvision(record: logging.LogRecord) -> bool:
    return "requires torchvision" not in str(record.msg)
