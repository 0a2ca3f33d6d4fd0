"""All rewards of a run, scored beside the rollouts."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from time import perf_counter
from types import TracebackType

import torch
from torch import Tensor

from prompts.prompt import Prompt

from .interface import Metadata, Reward
from .registry import RewardSettings, build
from .video_frames import check_videos, score_frames, takes_video


class Scorer:
    """Scores batches with K rewards, each in a thread of its own and, on a GPU, on a CUDA stream of its own.

    ``rewards``: name to settings; all are built here, in order, with the errors of :func:`rewards.registry.build`.
    Results are in the order of this mapping. The threads start with the first batch; :meth:`close`, or leaving the
    ``with`` block, ends them.

    Attributes:
        names: the K names.
        seconds: per reward, how long it computed for the last :meth:`collect`.
        waited: how long the last :meth:`collect` waited; near 0 where scoring was hidden behind the rollouts.
    """

    def __init__(self, rewards: Mapping[str, RewardSettings]):
        self.names = tuple(rewards)
        self.seconds = dict.fromkeys(self.names, 0.0)
        self.waited = 0.0
        self._closed = False
        self._workers = [_Worker(name, build(name, settings), settings) for name, settings in rewards.items()]
        self._pending: list[tuple[int, list[Future[tuple[Tensor, float]]]]] = []

    def submit(self, images: Tensor, prompts: Sequence[Prompt]) -> None:
        """Start scoring images [N, 3, H, W] or videos [N, F, 3, H, W] in [0, 1], on any device, and return at once.

        They are copied: the caller may overwrite them. The rewards share the copy and do not write to it. ``prompts``
        has N entries; rewards read their metadata and, as ``metadata["source"]``, their source. Raises ``ValueError``
        for another shape or number of prompts, or images where a reward takes videos, and ``RuntimeError`` after
        :meth:`close`.
        """
        if self._closed:
            raise RuntimeError("this scorer is closed")
        if images.ndim not in (4, 5) or images.shape[-3] != 3 or not images.is_floating_point():
            got = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"images must be floats [N, 3, H, W], or videos [N, F, 3, H, W], got {got}")
        if images.ndim == 5 and not images.shape[1]:
            raise ValueError(f"videos must have frames, got {list(images.shape)}")
        if len(prompts) != len(images):
            raise ValueError(f"one prompt per image: got {len(prompts)} prompts for {len(images)} images")
        for name, worker in zip(self.names, self._workers, strict=True):
            if worker.takes_video:
                check_videos(images, f"reward {name!r}")
        if not len(images):
            return
        copy = images.detach().to(device="cpu", dtype=torch.float32, copy=True)
        texts = [prompt.text for prompt in prompts]
        metadata = [{"source": prompt.source, **prompt.metadata} for prompt in prompts]
        self._pending.append((len(images), [worker.submit(copy, texts, metadata) for worker in self._workers]))

    def collect(self) -> Tensor:
        """Scores [K, N] of all batches submitted since the last call, in order, times ``scale``; float32 on the CPU.

        NaN where a reward does not apply. With nothing submitted N is 0. An exception in a reward, an infinite score,
        and a result that is not float32 [N] on the CPU raise ``RuntimeError`` with the reward's name, from the cause.
        Everything pending is dropped then (a batch already in a worker is finished and forgotten), and the scorer can
        be used again.
        """
        start = perf_counter()
        pending, self._pending = self._pending, []
        seconds = dict.fromkeys(self.names, 0.0)
        scores = torch.empty(len(self.names), sum(size for size, _ in pending))
        try:
            column = 0
            for size, futures in pending:
                for k, (name, future) in enumerate(zip(self.names, futures, strict=True)):
                    scores[k, column : column + size], spent = _result(name, future)
                    seconds[name] += spent
                column += size
        finally:
            for _, futures in pending:
                for future in futures:
                    future.cancel()
            self.seconds, self.waited = seconds, perf_counter() - start
        return scores

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """:meth:`submit` and :meth:`collect`. Raises ``RuntimeError`` while other batches wait to be collected."""
        if self._pending:
            raise RuntimeError("score() between submit() and collect() would mix their batches: collect first")
        self.submit(images, prompts)
        return self.collect()

    def close(self) -> None:
        """End the threads and free the rewards; what is pending is dropped. May be called twice."""
        self._closed = True
        self._pending = []
        while self._workers:
            self._workers.pop().close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """One reward and its thread."""

    def __init__(self, name: str, reward: Reward, settings: RewardSettings):
        self._reward, self._scale, self._stride = reward, settings.scale, settings.frame_stride
        self.takes_video = takes_video(reward)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"reward {name}")
        self._stream = None
        if not settings.url and torch.device(settings.device).type == "cuda":
            self._stream = torch.cuda.Stream(settings.device)
            # The weights were copied on this thread's stream.
            self._stream.wait_stream(torch.cuda.current_stream(settings.device))

    def submit(
        self, images: Tensor, texts: Sequence[str], metadata: Sequence[Metadata]
    ) -> "Future[tuple[Tensor, float]]":
        return self._executor.submit(self._score, images, texts, metadata)

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _score(self, images: Tensor, texts: Sequence[str], metadata: Sequence[Metadata]) -> tuple[Tensor, float]:
        start = perf_counter()
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            scores = score_frames(self._reward, images, texts, metadata, self._stride)
        _check(scores, len(images))
        return scores * self._scale, perf_counter() - start


def _result(name: str, future: "Future[tuple[Tensor, float]]") -> tuple[Tensor, float]:
    try:
        return future.result()
    except Exception as error:
        raise RuntimeError(f"reward {name!r} failed: {type(error).__name__}: {error}") from error


def _check(scores: object, size: int) -> None:
    if not isinstance(scores, Tensor):
        raise TypeError(f"returned {type(scores).__name__}, not a tensor")
    if scores.dtype != torch.float32 or scores.device.type != "cpu" or scores.shape != (size,):
        got = f"{scores.dtype} {list(scores.shape)} on {scores.device}"
        raise ValueError(f"returned {got}, not torch.float32 [{size}] on cpu")
    if scores.isinf().any():
        index = int(scores.isinf().nonzero()[0])
        raise ValueError(f"returned {scores[index].item()} for image {index}")
