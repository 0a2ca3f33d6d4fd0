"""Requests for one reward, joined to batches by its one thread."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread

import numpy as np
import torch

from rewards.interface import Reward

from .limits import Refused, busy
from .wire import Batch, scores_to_json

logger = logging.getLogger(__name__)
Scores = list[float | None]


@dataclass(eq=False)
class Job:
    """One request, and where its scores go."""

    batch: Batch
    answer: "Future[Scores]" = field(default_factory=Future)


class Batcher:
    """Calls ``reward`` from a thread of its own, because rewards are called by one thread at a time.

    The oldest request goes first. Requests that arrive up to ``window`` seconds later, with images of the same size,
    join it while the batch has at most ``batch_size`` images; a single request may be larger, and goes alone. Its
    neighbours change a request's scores by no more than the rounding of a batched model. Where a joined batch raises,
    each of its requests is tried alone: a bad one fails alone.
    """

    def __init__(self, name: str, reward: Reward, batch_size: int, queue: int = 256, window: float = 0.003) -> None:
        self.name, self.reward, self.batch_size, self.queue, self.window = name, reward, batch_size, queue, window
        self.served = 0
        self._jobs: list[Job] = []
        self._closed = False
        self._changed = Condition()
        # A daemon: a reward that never returns must not keep the process alive.
        self._thread = Thread(target=self._run, name=f"reward {name}", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many requests wait for their turn."""
        with self._changed:
            return sum(not job.answer.cancelled() for job in self._jobs)

    def check_room(self) -> None:
        """Refuse with 503 where the queue is full or closed."""
        with self._changed:
            self._jobs = [job for job in self._jobs if not job.answer.cancelled()]
            if self._closed:
                raise busy("the server is stopping")
            if len(self._jobs) >= self.queue:
                raise busy(f"{len(self._jobs)} requests wait for {self.name!r} already")

    def submit(self, batch: Batch) -> "Future[Scores]":
        """Queue a request. Its future gives the scores, or raises ``Refused``: 422 for a ``ValueError``, else 500."""
        job = Job(batch)
        with self._changed:
            self.check_room()
            self._jobs.append(job)
            self._changed.notify_all()
        return job.answer

    def close(self, seconds: float) -> None:
        """Take no more, score what waits, and end the thread; give up after ``seconds``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(seconds)

    def _run(self) -> None:
        while (jobs := self._next()) is not None:
            # A request whose client went away while it waited is cancelled, and costs nothing.
            if running := [job for job in jobs if job.answer.set_running_or_notify_cancel()]:
                self._score(running)

    def _next(self) -> list[Job] | None:
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return None
                self._changed.wait()
            deadline = time.monotonic() + self.window
            while not self._closed and (left := deadline - time.monotonic()) > 0:
                if sum(len(job.batch) for job in self._joined()) >= self.batch_size:
                    break
                self._changed.wait(left)
            jobs = self._joined()
            self._jobs = [job for job in self._jobs if job not in jobs]
            return jobs

    def _joined(self) -> list[Job]:
        """The oldest request and those that may join it, oldest first."""
        joined: list[Job] = self._jobs[:1]
        for job in self._jobs[1:]:
            same_size = job.batch.images.shape[1:] == joined[0].batch.images.shape[1:]
            if same_size and sum(len(other.batch) for other in joined) + len(job.batch) <= self.batch_size:
                joined.append(job)
        return joined

    def _score(self, jobs: Sequence[Job]) -> None:
        try:
            scores = self._call(jobs)
        except BaseException as error:  # SystemExit too: this thread must live on
            if len(jobs) > 1:
                for job in jobs:
                    self._score([job])
            else:
                jobs[0].answer.set_exception(self._refusal(error))
            return
        for job in jobs:
            job.answer.set_result(scores[: len(job.batch)])
            scores = scores[len(job.batch) :]
        self.served += len(jobs)

    def _call(self, jobs: Sequence[Job]) -> Scores:
        images = torch.from_numpy(np.concatenate([job.batch.images for job in jobs]))
        prompts = [prompt for job in jobs for prompt in job.batch.prompts]
        metadata = [facts for job in jobs for facts in job.batch.metadata]
        with torch.no_grad():
            scores = self.reward(images.permute(0, 3, 1, 2).contiguous().float().div_(255), prompts, metadata)
        if not isinstance(scores, torch.Tensor) or scores.shape != (len(prompts),):
            raise RuntimeError(f"expected {len(prompts)} scores, got {getattr(scores, 'shape', type(scores))}")
        return scores_to_json(scores.tolist())

    def _refusal(self, error: BaseException) -> Refused:
        if isinstance(error, ValueError):
            return Refused(422, f"{self.name}: {error}")
        logger.error("reward %r failed", self.name, exc_info=error)
        return Refused(500, f"reward {self.name!r} failed ({type(error).__name__}); the server's log says where")
