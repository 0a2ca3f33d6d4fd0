"""Loading and saving without progress bars, and without notices that tell the user nothing."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Switch the bars of diffusers and transformers off for a block; those that were on come back after it.

    So is the warning that ``torch_dtype`` is now called ``dtype``: older supported versions know that name only.
    """
    shown = [kind for kind in (diffusers_logging, transformers_logging) if kind.is_progress_bar_enabled()]
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
    for handler in transformers_logging.get_logger("transformers").handlers:
        handler.addFilter(_other_than_torchvision)


def _other_than_torchvision(record: logging.LogRecord) -> bool:
    return "requires torchvision" not in str(record.msg)
