"""The scorer: order, overlap, errors, and what it leaves behind."""

import re
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from prompts.prompt import Prompt
from prompts.world import world_prompts
from rewards.interface import Metadata, Reward
from rewards.registry import RewardSettings, build
from rewards.scorer import Scorer

TIMEOUT = 20


def brightness(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
    return images.mean((1, 2, 3))


def red(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
    return images[:, 0].mean((1, 2))


def constant(value: object) -> Reward:
    return lambda images, prompts, metadata: value


def batch(*values: float) -> tuple[Tensor, list[Prompt]]:
    """Images of one grey each."""
    images = torch.tensor(values, dtype=torch.float32)[:, None, None, None].repeat(1, 3, 4, 4)
    return images, [Prompt(f"grey {value}") for value in values]


def reward_threads() -> list[str]:
    """Of scorers: a server's, in other tests, are not numbered."""
    return [thread.name for thread in threading.enumerate() if re.fullmatch(r"reward \w+_\d+", thread.name)]


@pytest.fixture
def new(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scorer]:
    """``new(first=reward, second=(reward, settings))``: a scorer of these; closed at the end of the test."""
    made = []

    def make(**rewards: object) -> Scorer:
        pairs = {name: item if isinstance(item, tuple) else (item, RewardSettings()) for name, item in rewards.items()}
        monkeypatch.setattr("rewards.scorer.build", lambda name, settings: pairs[name][0])
        made.append(Scorer({name: settings for name, (_, settings) in pairs.items()}))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()


def test_scores_are_those_of_the_rewards_in_order_and_scaled() -> None:
    prompts = [prompt for kind in ("general", "text", "composition") for prompt in world_prompts(kind, True)[:4]]
    settings = {"clean": RewardSettings(), "reading": RewardSettings(scale=0.5), "colour": RewardSettings(scale=-2)}
    images = torch.rand(len(prompts), 3, 24, 24)
    texts, metadata = [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts]
    expected = [build(name, one)(images, texts, metadata) * one.scale for name, one in settings.items()]
    with Scorer(settings) as scorer:
        assert scorer.names == ("clean", "reading", "colour")
        scores = scorer.score(images, prompts)
    assert scores.dtype == torch.float32
    assert torch.equal(scores.nan_to_num(-9), torch.stack(expected).nan_to_num(-9))
    assert scores[1].isnan().any()  # reading applies to some prompts only
    assert not scores[1].isnan().all()


def test_rewards_get_texts_metadata_and_source(new: Callable[..., Scorer]) -> None:
    seen = []

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        seen.append((prompts, metadata))
        return brightness(images, prompts, metadata)

    new(only=reward).score(torch.zeros(2, 3, 4, 4), [Prompt("a"), Prompt("b", "ocr", {"text": "OPEN"})])
    assert seen == [(["a", "b"], [{"source": "general"}, {"source": "ocr", "text": "OPEN"}])]


def test_submit_returns_before_the_scores_exist_and_copies_the_images(new: Callable[..., Scorer]) -> None:
    go = threading.Event()

    def patient(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        assert go.wait(TIMEOUT)
        return brightness(images, prompts, metadata)

    scorer = new(patient=patient)
    images, prompts = batch(0.25, 0.5)
    for value in (0, 1):  # the same buffer again, as a rollout would
        scorer.submit(images.add_(value / 4), prompts)
    images.zero_()
    go.set()
    assert scorer.collect().tolist() == [[0.25, 0.5, 0.5, 0.75]]
    assert scorer.waited >= 0


def test_rewards_overlap_and_may_finish_in_any_order(new: Callable[..., Scorer]) -> None:
    done = threading.Event()
    calls = []

    def last(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        assert done.wait(TIMEOUT)  # all batches of the other reward
        return brightness(images, prompts, metadata)

    def first(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        calls.append(len(images))
        if len(calls) == 3:
            done.set()
        return 10 * brightness(images, prompts, metadata)

    scorer = new(last=last, first=first)
    for values in ((0.25,), (0.5, 0.75), (1.0,)):
        scorer.submit(*batch(*values))
    assert scorer.collect().tolist() == [[0.25, 0.5, 0.75, 1], [2.5, 5, 7.5, 10]]
    assert calls == [1, 2, 1]


def test_a_reward_is_called_by_one_thread_at_a_time(new: Callable[..., Scorer]) -> None:
    lock, threads = threading.Lock(), set()

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        assert lock.acquire(blocking=False)
        threads.add(threading.get_ident())
        time.sleep(0.002)
        lock.release()
        return brightness(images, prompts, metadata)

    scorer = new(only=reward)
    for _ in range(8):
        scorer.submit(*batch(0.5))
    assert scorer.collect().shape == (1, 8)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_many_large_batches_keep_their_order(new: Callable[..., Scorer]) -> None:
    values = torch.rand(8, 256)
    scorer = new(red=red, brightness=brightness)
    for row in values:
        scorer.submit(row[:, None, None, None].expand(-1, 3, 32, 32), [Prompt("")] * 256)
    torch.testing.assert_close(scorer.collect(), values.flatten().expand(2, -1))


def test_an_error_names_its_reward_drops_what_is_pending_and_leaves_the_scorer_usable(
    new: Callable[..., Scorer],
) -> None:
    started, release, seen = threading.Event(), threading.Event(), []

    def slow(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        seen.append(prompts)
        started.set()
        assert release.wait(TIMEOUT)
        return brightness(images, prompts, metadata)

    def picky(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        if images.max() > 0.9:
            assert started.wait(TIMEOUT)
            raise ValueError("too bright")
        return red(images, prompts, metadata)

    scorer = new(picky=picky, slow=slow)
    scorer.submit(*batch(1.0))
    scorer.submit(*batch(0.25))
    with pytest.raises(RuntimeError, match="reward 'picky' failed: ValueError: too bright") as raised:
        scorer.collect()
    assert isinstance(raised.value.__cause__, ValueError)
    assert scorer.collect().shape == (2, 0)
    release.set()
    assert scorer.score(*batch(0.5, 0.75)).tolist() == [[0.5, 0.75], [0.5, 0.75]]
    assert seen == [["grey 1.0"], ["grey 0.5", "grey 0.75"]]  # the batch that waited was never scored


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), r"returned torch.float32 \[3\] on cpu, not torch.float32 \[2\] on cpu"),
        (torch.zeros(2, 1), r"returned torch.float32 \[2, 1\] on cpu"),
        (torch.zeros(()), r"returned torch.float32 \[\] on cpu"),
        (torch.zeros(2, dtype=torch.float64), r"returned torch.float64 \[2\] on cpu"),
        (torch.zeros(2, dtype=torch.long), r"returned torch.int64 \[2\] on cpu"),
        (torch.zeros(2, device="meta"), r"returned torch.float32 \[2\] on meta"),
        ([0.0, 0.0], "returned list, not a tensor"),
        (torch.tensor([0.0, torch.inf]), "returned inf for image 1"),
        (torch.tensor([-torch.inf, torch.nan]), "returned -inf for image 0"),
    ],
)
def test_what_a_reward_must_not_return(new: Callable[..., Scorer], value: object, message: str) -> None:
    scorer = new(good=brightness, bad=constant(value))
    with pytest.raises(RuntimeError, match=f"reward 'bad' failed: .*{message}"):
        scorer.score(*batch(0.5, 0.5))


def test_nan_and_inference_tensors_pass(new: Callable[..., Scorer]) -> None:
    with torch.inference_mode():
        value = torch.tensor([torch.nan, 2.0])
    scores = new(some=(constant(value), RewardSettings(scale=3.0))).score(*batch(0, 0))
    assert scores[0].isnan().tolist() == [True, False]
    assert scores.add_(1)[0, 1] == 7


def test_nothing_submitted_and_empty_batches_give_no_columns(new: Callable[..., Scorer]) -> None:
    scorer = new(one=brightness, two=brightness)
    assert scorer.collect().shape == (2, 0)
    scorer.submit(torch.empty(0, 3, 4, 4), [])
    assert scorer.collect().shape == (2, 0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 4, 4, 3), r"images must be floats .*, got torch.float32 \[2, 4, 4, 3\]"),
        (torch.zeros(3, 4, 4), "images must be floats"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "got torch.uint8"),
        (torch.zeros(3, 3, 4, 4), "one prompt per image: got 2 prompts for 3 images"),
    ],
)
def test_a_batch_that_cannot_be_scored_is_refused_at_once(
    new: Callable[..., Scorer], images: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        new(one=brightness).submit(images, [Prompt("")] * 2)


def test_score_does_not_mix_with_what_is_pending(new: Callable[..., Scorer]) -> None:
    scorer = new(one=brightness)
    scorer.submit(*batch(0.5))
    with pytest.raises(RuntimeError, match="collect first"):
        scorer.score(*batch(0.25))
    assert scorer.collect().tolist() == [[0.5]]


def test_seconds_are_those_of_the_last_collect(new: Callable[..., Scorer]) -> None:
    def slow(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        time.sleep(0.02 * len(images))
        return brightness(images, prompts, metadata)

    scorer = new(slow=slow, fast=brightness)
    assert scorer.seconds == {"slow": 0.0, "fast": 0.0}
    for _ in range(2):
        scorer.submit(*batch(0.5))
    scorer.collect()
    assert scorer.seconds["slow"] >= 0.04
    assert scorer.seconds["fast"] > 0
    scorer.collect()
    assert scorer.seconds == {"slow": 0.0, "fast": 0.0}


def test_closing_ends_the_threads_and_refuses_more(new: Callable[..., Scorer]) -> None:
    with new(one=brightness, two=red) as scorer:
        scorer.submit(*batch(0.5))
        assert sorted(reward_threads()) == ["reward one_0", "reward two_0"]
    scorer.close()
    assert not reward_threads()
    with pytest.raises(RuntimeError, match="closed"):
        scorer.submit(*batch(0.5))


def test_a_reward_on_a_gpu_runs_on_a_stream_of_its_own(
    new: Callable[..., Scorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for torch's streams: which thread enters which, and after what."""
    events = []

    class Stream:
        def __init__(self, device: str):
            self.device = device

        def wait_stream(self, other: object) -> None:
            events.append(("wait", self.device, other))

        def __enter__(self) -> None:
            events.append(("enter", self.device, threading.current_thread().name))

        def __exit__(self, *error: object) -> None:
            events.append(("exit", self.device, threading.current_thread().name))

    fake = {"Stream": Stream, "stream": lambda stream: stream, "current_stream": lambda device: f"loads on {device}"}
    monkeypatch.setattr("rewards.scorer.torch.cuda", SimpleNamespace(**fake))
    served = RewardSettings(device="cuda:0", url="http://127.0.0.1:1")
    scorer = new(cpu=brightness, gpu=(brightness, RewardSettings(device="cuda:1")), served=(brightness, served))
    assert scorer.score(*batch(0.5)).tolist() == [[0.5]] * 3
    assert events == [
        ("wait", "cuda:1", "loads on cuda:1"),
        ("enter", "cuda:1", "reward gpu_0"),
        ("exit", "cuda:1", "reward gpu_0"),
    ]
