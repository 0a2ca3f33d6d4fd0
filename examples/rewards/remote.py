"""A reward that is computed by a server (``reward_server``), on another GPU or machine."""

import logging
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from reward_server import wire
from reward_server.client import Connection, Patience, Unavailable, token_of_environment

from .interface import Metadata
from .registry import RewardSettings
from .remote_parts import parts, portable

logger = logging.getLogger(__name__)
FORMATS = {"npz": wire.NPZ, "png": wire.JSON}


@dataclass(frozen=True)
class RemoteOptions(Patience):
    """``settings.options`` of a remote reward.

    ``format``: "npz" (3 bytes per pixel, nothing to compute) or "png" (fewer bytes, for a slow network). ``pictures``:
    whether the pictures in the metadata (an edit's source and mask) go along; a reward that does not look at them does
    without. ``cool_down``: for so many seconds after a failure a batch gets one hurried attempt instead of all retries.
    """

    format: str = "npz"
    pictures: bool = True
    cool_down: float = 30.0


class RemoteReward:
    """The reward ``name`` of the server at ``url``.

    Images are sent in requests of at most ``settings.batch_size``, with 8 bits per channel: float images are rounded,
    by at most 1/510. Pictures in the metadata are resized to the images, as
    :mod:`rewards.sources` does it, and sent as data URLs, each once per request: the server needs no file of this
    machine. The token comes from MARBLE_REWARD_TOKEN.

    Construction asks the server for its rewards: ``ConnectionError`` where nobody answers (a run should not start
    without its rewards), ``ValueError`` for a wrong address, option or token, or a reward that the server lacks.

    Later an absent server costs scores, not the run: after all retries the samples of that request get NaN, as from a
    reward that does not apply; ``missing`` counts them. One ``RuntimeWarning`` per outage says so. During ``cool_down``
    seconds every request gets one hurried attempt, then the retries again; the first answer ends the outage.
    Everything else raises: ``ValueError`` where the server refuses the request (4xx), ``RuntimeError`` where the reward
    fails there (500), as it would have here.
    """

    def __init__(self, url: str, name: str, settings: RewardSettings) -> None:
        self.name, self.missing = name, 0
        self.batch_size, self.options = settings.batch_size, _options(settings.options)
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        self._lost, self._hurried_until = 0, -math.inf
        self.connection = Connection(url, token_of_environment(), self.options)
        self.url = self.connection.url
        self._limits = self._limits_of_server()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """Scores [B], NaN where the reward does not apply or the server is away."""
        try:
            return self._call(images, prompts, metadata)
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from error
        except RuntimeError as error:
            raise RuntimeError(f"{self}: {error}") from error

    def __repr__(self) -> str:
        return f"reward {self.name!r} at {self.url}"

    def _call(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        pixels, counts = _bytes(images), (len(images), len(prompts), len(metadata))
        if len(set(counts)) > 1:
            raise ValueError("{} images, {} prompts and {} metadata: give B of each".format(*counts))
        if (size := pixels.shape[1] * pixels.shape[2]) > self._limits["pixels"]:
            raise ValueError(f"images of {size} pixels, the server takes at most {self._limits['pixels']}")
        sent = [portable(facts, *pixels.shape[1:3], self.options.pictures) for facts in metadata]
        scores: list[float] = []
        for part in parts(sent, size, min(self.batch_size, self._limits["images"]), self._limits["body"]):
            scores += self._scores(wire.Batch(pixels[part], list(prompts[part]), sent[part]))
        return torch.tensor(scores)

    def _scores(self, batch: wire.Batch) -> list[float]:
        content_type = FORMATS[self.options.format]
        body = wire.encode(batch, content_type)
        hurried = time.monotonic() < self._hurried_until
        try:
            path = f"/score/{quote(self.name, safe='')}"
            answer = self.connection.post(path, body, content_type, hurried)
            scores = wire.scores_from_json(answer, len(batch))
        except Unavailable as error:
            if not hurried:
                self._hurried_until = time.monotonic() + self.options.cool_down
            self._lose(len(batch), error)
            return [math.nan] * len(batch)
        if self._lost:
            logger.warning("%r answers again; this outage left %d samples without a score", self, self._lost)
        self._lost, self._hurried_until = 0, -math.inf
        return scores

    def _lose(self, count: int, error: Unavailable) -> None:
        first, self._lost = self._lost == 0, self._lost + count
        self.missing += count
        if first:
            text = f"{self} is away ({error}): NaN for {count} samples, {self.missing} so far, until it answers again"
            warnings.warn(text, RuntimeWarning, stacklevel=5)

    def _limits_of_server(self) -> dict[str, int]:
        try:
            health = self.connection.get("/health")
        except Unavailable as error:
            how = f"start it with `python examples/serve_rewards.py {self.name}`, or correct the url"
            raise ConnectionError(f"{self}: nobody answers ({error}); {how}") from error
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{self}: no reward server answers there ({error})") from error
        if not isinstance(health, dict) or health.get("protocol") != wire.PROTOCOL:
            raise ValueError(f"{self}: what answers there is no reward server of protocol {wire.PROTOCOL}")
        if self.name not in health["rewards"]:
            raise ValueError(f"{self}: the server has no such reward, it has {', '.join(health['rewards'])}")
        if not health["authorized"]:
            raise ValueError(f"{self}: the server wants its token; set the environment variable MARBLE_REWARD_TOKEN")
        return health["limits"]


def _options(given: dict[str, Any]) -> RemoteOptions:
    known = [field.name for field in fields(RemoteOptions)]
    if unknown := set(given) - set(known):
        text = (
            f"a reward with a url takes the options {', '.join(known)}; {', '.join(sorted(unknown))} go to its server"
        )
        raise ValueError(text)
    options = RemoteOptions(**given)
    if options.format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {options.format!r}")
    for name in ("timeout", "retries", "backoff", "hurry", "cool_down"):
        value = getattr(options, name)
        positive = name in ("timeout", "hurry")
        if type(value) not in (int, float) or not 0 <= value < math.inf or (positive and not value):
            raise ValueError(f"{name} must be a number {'above' if positive else 'from'} 0, got {value!r}")
    if type(options.pictures) is not bool:
        raise ValueError(f"pictures must be true or false, got {options.pictures!r}")
    if type(options.retries) is not int:
        raise ValueError(f"retries must be an integer, got {options.retries!r}")
    return options


def _bytes(images: Tensor) -> np.ndarray:
    """Images [B, 3, H, W] in [0, 1] as uint8 [B, H, W, 3]."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be floating point [B, 3, H, W], got {images.dtype} {list(images.shape)}")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("images must lie in [0, 1]; these do not, or hold NaN")
    return (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
